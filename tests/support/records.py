"""A record without a log, as a processor reads it."""

from __future__ import annotations


class Line:
    """A record that has a value and no headers."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def value(self) -> bytes:
        return self._raw

    def headers(self) -> None:
        return None
