"""The rows of the matrix. Importing this package enters them all, in the order of the report."""

from tests.chaos.rows import kafka, merges, mixed, processors, records, redis, short, streams  # noqa: F401
