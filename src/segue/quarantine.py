"""Records that a processor fails at, and partitions of which it refuses too much.

Theory of operation. When a turn fails and no outage is to blame, some record in it is: the turn is read again in
halves, until the record that fails alone is found. From then on it is set aside and becomes a dead letter, and the
turns grow back to their size. A partition of which more is refused than `rejections.Limit` allows is not read beyond
that record: it stands still, loudly, until a restart or another owner.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from heapq import merge as in_time_order
from itertools import islice

import structlog
from msgspec import Struct

from segue.log.port import TP, Record
from segue.rejections import Limit, Rejections

REMIND_S = 60.0
"""How often a stopped partition is logged."""

log = structlog.get_logger()


class Stop(Struct, frozen=True):
    """A partition that is not read from `offset` on: too much of it was refused."""

    offset: int
    why: str


class Quarantine:
    """What a processor knows of records and partitions that are not to be trusted. In memory only."""

    def __init__(self, processor: str, limit: Limit) -> None:
        self._processor, self._limit = processor, limit
        self.stops: dict[TP, Stop] = {}
        self._rejections: dict[TP, Rejections] = {}
        self._failing: dict[TP, dict[int, str]] = {}
        self._size: int | None = None
        self._remind_at = 0.0

    def forget(self, tp: TP) -> None:
        """The partition has another owner."""
        for kept in (self.stops, self._rejections, self._failing):
            kept.pop(tp, None)

    def clear(self) -> None:
        for kept in (self.stops, self._rejections, self._failing):
            kept.clear()

    # --- the record that fails

    @property
    def searching(self) -> bool:
        """Whether turns are small, because a record is sought that a bug hangs on."""
        return self._size is not None

    def parts(self, turn: dict[TP, list[Record]]) -> Iterator[dict[TP, list[Record]]]:
        """The turn as it is; while searching, in received order and small pieces."""
        if turn and self._size is None:
            yield turn
            return
        records = in_time_order(*turn.values(), key=lambda record: record.timestamp()[1])
        while some := list(islice(records, self._size)):
            part: dict[TP, list[Record]] = {}
            for record in some:
                part.setdefault((record.topic(), record.partition()), []).append(record)
            yield part

    def narrow_down(self, records: dict[TP, list[Record]], cause: BaseException) -> int:
        """Have the next turns smaller, by halves; the record that fails alone will be set aside.

        Returns how many records were found to fail. Raises `cause` when it fails without any record too.
        """
        count = sum(len(found) for found in records.values())
        # Never the message: it may quote the record.
        what = {"processor": self._processor, "error": type(cause).__name__, "at": _places(cause)}
        self._size = max(1, count // 2)
        if count > 1:
            log.warning("processing failed; looking for the record", records=count, **what)
            return 0
        ((tp, (record,)),) = records.items()
        if record.offset() in self._failing.get(tp, ()):
            raise cause
        log.error("a record fails alone: it becomes a dead letter", of=_name(tp), offset=record.offset(), **what)
        self._failing.setdefault(tp, {})[record.offset()] = type(cause).__name__
        return 1

    def went_well(self, full: int) -> None:
        """A turn has not failed: the next may be twice as large, up to `full` records."""
        if self._size is not None:
            self._size = None if self._size >= full else self._size * 2

    def failing(self, records: Mapping[TP, object]) -> dict[TP, dict[int, str]]:
        """The records of these partitions that are known to fail: the kind of error by offset."""
        return {tp: self._failing[tp] for tp in self._failing.keys() & records.keys()}

    # --- too many that are refused

    def within_limit(
        self, records: dict[TP, list[Record]], refused: dict[TP, list[int]], emit: bool
    ) -> dict[TP, Rejections] | None:
        """Count what was refused; None when that is too much of some partition, whose stop is noted.

        In a replay only failures count: what was refused then was counted then.
        """
        counted = {}
        within = True
        for tp, found in records.items():
            counts = set(refused.get(tp, ()))
            if not emit:
                counts &= self._failing.get(tp, {}).keys()
            at = [n for n, record in enumerate(found) if record.offset() in counts] if counts else ()
            counted[tp], over = (self._rejections.get(tp) or Rejections()).after(len(found), at, self._limit)
            if over is not None:
                self.stops[tp] = Stop(found[over.position].offset(), over.why)
                self._remind_at = 0.0
                within = False
        return counted if within else None

    def counted(self, rejections: dict[TP, Rejections], offsets: dict[TP, int]) -> None:
        """The turn is done: keep its counts, and forget the failing records before the next `offsets`."""
        self._rejections |= rejections
        for tp in self._failing.keys() & offsets.keys():
            left = {offset: error for offset, error in self._failing[tp].items() if offset >= offsets[tp]}
            if left:
                self._failing[tp] = left
            else:
                del self._failing[tp]

    def short_of_stops(self, records: dict[TP, list[Record]]) -> dict[TP, list[Record]]:
        """The records before the stops."""
        short = dict(records)
        for tp in self.stops.keys() & records.keys():
            short[tp] = [record for record in records[tp] if record.offset() < self.stops[tp].offset]
            if not short[tp]:
                del short[tp]
        return short

    def remind(self) -> None:
        """Say of each stopped partition that it is, once in a while."""
        if not self.stops or time.monotonic() < self._remind_at:
            return
        self._remind_at = time.monotonic() + REMIND_S
        for tp, stop in self.stops.items():
            log.error(
                "stopped: too many records refused",
                processor=self._processor,
                of=_name(tp),
                offset=stop.offset,
                why=stop.why,
                remedy="`segue dlq ls` shows them; mend the sender or the deployment and restart, or let them "
                "through by SEGUE_REJECT_RUN and SEGUE_REJECT_SHARE (docs/dead-letters.md)",
            )


def _name(tp: TP) -> str:
    return f"{tp[0]}-{tp[1]}"


def _places(error: BaseException) -> list[str]:
    """Where it was raised, innermost last: files, lines and functions, no values."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
