"""The rows of the matrix. Importing this package enters them all."""

from tests.chaos.rows import processors  # noqa: F401
