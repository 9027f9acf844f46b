"""Commands for Redis as bytes for the wire, in portions.

Theory of operation. A batch may write tens of megabytes. In one buffer they would cost more than all the work
that made them: memory of that size is fetched from the system each time, a page fault per 4 KB. So commands
are packed into portions that are sent while the next one is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Argument = str | bytes | int

PORTION = 128 * 1024
"""Bytes, more or less: no argument is cut."""


def packed(commands: Iterable[Sequence[Argument]]) -> Iterator[bytes]:
    """The commands as RESP (arrays of bulk strings), in portions."""
    parts: list[bytes] = []
    size = 0
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            raw = argument if type(argument) is bytes else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
            size += len(raw)
            if size >= PORTION:
                yield b"".join(parts)
                parts.clear()
                size = 0
    yield b"".join(parts)
