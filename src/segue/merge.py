"""Reading several topics in one order: that in which the log received the records.

A customer's events come in through many topics, and a processor that catches up would read one topic an
hour ahead of another; the customer's next contact would then be applied before the last. So records are
held until every partition that still has more to give has given something newer: the rule of Kafka
Streams' tasks. In live traffic every partition is at its end and nothing is ever held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from segue.log.port import TP, Record

PATIENCE_S = 1.0
"""How long a partition that gives nothing and does not end may hold up the others (a broker of it is away)."""


class TimeMerge:
    """Buffers per partition; `take` gives out what is certain to be next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._buffers: dict[TP, list[Record]] = {}
        self._open: set[TP] = set()
        self._clock = clock
        self._blocked_since: float | None = None

    def started(self, tp: TP) -> None:
        """The partition is read from some offset on; not known yet whether it has more."""
        self._buffers[tp] = []
        self._open.add(tp)

    def drop(self, tp: TP) -> None:
        """Forget a partition and what is held of it."""
        self._buffers.pop(tp, None)
        self._open.discard(tp)

    def add(self, records: dict[TP, list[Record]], ended: Iterable[TP], behind: Iterable[TP] = ()) -> None:
        """Take in what a poll brought; `ended` have no more for now, `behind` have, though they ended before."""
        for tp, found in records.items():
            if tp in self._buffers:
                self._buffers[tp] += found
                self._open.add(tp)
        self._open.difference_update(ended)
        self._open.update(tp for tp in behind if tp in self._buffers)

    def held(self, tp: TP) -> int:
        """How many records of a partition wait."""
        return len(self._buffers.get(tp, ()))

    def last_offset(self, tp: TP) -> int:
        """Offset of the newest record held of a partition that holds some."""
        return self._buffers[tp][-1].offset()

    def take(self) -> dict[TP, list[Record]]:
        """Return, per partition, the records that nothing older can come before any more."""
        horizon = self._horizon()
        taken: dict[TP, list[Record]] = {}
        for tp, buffer in self._buffers.items():
            if not buffer:
                continue
            if horizon is None or buffer[-1].timestamp()[1] <= horizon:
                taken[tp], self._buffers[tp] = buffer, []
                continue
            count = next(n for n, record in enumerate(buffer) if record.timestamp()[1] > horizon)
            if count:
                taken[tp], self._buffers[tp] = buffer[:count], buffer[count:]
        return taken

    def _horizon(self) -> int | None:
        """The time up to which all is known; None when no partition has more to give."""
        if not self._open:
            self._blocked_since = None
            return None
        waiting = [tp for tp in self._open if not self._buffers[tp]]
        if not waiting:
            self._blocked_since = None
            return min(self._buffers[tp][-1].timestamp()[1] for tp in self._open)
        now = self._clock()
        if self._blocked_since is None:
            self._blocked_since = now
        if now - self._blocked_since < PATIENCE_S:
            return -1
        known = [self._buffers[tp][-1].timestamp()[1] for tp in self._open if self._buffers[tp]]
        return min(known, default=None)
