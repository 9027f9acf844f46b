"""Commands for Redis as bytes for the wire, in portions.

Theory of operation. A batch may write tens of megabytes. In one buffer they would cost more than all the work
that made them: memory of that size is fetched from the system each time, a page fault per 4 KB. So commands
are packed into portions that are sent while the next one is made, and a document comes in the pieces that it
has in memory, which nobody puts together before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Pieces = tuple[bytes, ...]
"""One value, in parts that follow each other."""

Argument = str | bytes | int | Pieces

PORTION = 128 * 1024
"""Bytes, more or less: no portion is cut within a piece."""


def packed(commands: Iterable[Sequence[Argument]]) -> Iterator[bytes]:
    """The commands as RESP (arrays of bulk strings), in portions."""
    parts: list[bytes] = []
    size = 0
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            if type(argument) is tuple:
                length = sum(map(len, argument))
                parts += (b"$%d\r\n" % length, *argument, b"\r\n")
            else:
                raw = argument if type(argument) is bytes else str(argument).encode()
                length = len(raw)
                parts.append(b"$%d\r\n%b\r\n" % (length, raw))
            size += length
            if size >= PORTION:
                yield b"".join(parts)
                parts.clear()
                size = 0
    yield b"".join(parts)
