"""The timeline of a context: encoded entries in event-time order, bounded."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from segue.core.context import Context, lines_of


class Line(Struct, gc=False):
    """The part of an entry that places it."""

    event_time_ms: int
    type: str


_line = msgspec.json.Decoder(Line)


def add(context: Context, at_ms: int, entry: bytes, keep: int) -> None:
    """Add an encoded entry in event-time order. Nearly always at the end; otherwise look back for its place."""
    timeline = lines_of(context)
    if at_ms >= context.stream_time_ms and at_ms >= context.fired_ms:
        timeline.append(entry)
    else:
        index = len(timeline)
        while index and _line.decode(timeline[index - 1]).event_time_ms > at_ms:
            index -= 1
        timeline.insert(index, entry)
    timeline.keep(keep)


def since(context: Context, at_ms: int) -> Iterator[Line]:
    """What is known to have happened from a moment on, the latest first."""
    for raw in reversed(context.timeline):
        line = _line.decode(raw)
        if line.event_time_ms < at_ms:
            return
        yield line
