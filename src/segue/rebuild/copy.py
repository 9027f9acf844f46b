"""The interactions in another number of partitions: a topic copied into another, exactly once.

All of a customer's records lie in one partition in order, and a partition is copied in order, so each
customer's order is kept. Outputs and offsets commit together, so a copy that breaks off is gone on with.
"""

from __future__ import annotations

from collections.abc import Callable

from segue.errors import Fenced
from segue.log.port import TP, Log, Output, Record

BATCH_RECORDS = 5000
_POLL_S = 0.1


class Copy:
    """A copy of topic `old` into `new`, as far as it is told. One at a time: the caller holds the lock."""

    def __init__(self, source: Log, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._member = source.join(f"segue.rebuild.{new}", [old], "rebuild")
        self._next: dict[TP, int] = {}
        self._active: set[TP] = set()
        self._every = {(old, partition) for partition in range(source.partitions(old))}
        self.copied = 0

    def positions(self) -> dict[int, int]:
        """Up to where each old partition is copied, by this and earlier runs. Waits for the seat."""
        while self._every - self._next.keys():
            self._poll({})
        return {partition: offset for (_, partition), offset in self._next.items()}

    def up_to(self, ends: dict[int, int], moved: Callable[[int], None]) -> None:
        """Copy everything before these offsets, which must be committed. `moved` is told how much was copied.

        Raises LogUnavailable, MemberLost: start again, nothing is copied twice.
        """
        self.positions()
        wanted = {(self._old, partition): end for partition, end in ends.items()}
        for tp, end in wanted.items():
            self._run(tp, end)
        while self._active:
            self._poll(wanted)
            moved(self.copied)

    def _run(self, tp: TP, end: int) -> None:
        if self._next[tp] < end:
            self._member.start(tp, self._next[tp])
            self._active.add(tp)

    def _poll(self, wanted: dict[TP, int]) -> None:
        polled = self._member.poll(BATCH_RECORDS, _POLL_S)
        if polled.revoked and self._active:
            raise Fenced("another copy of the interactions is under way")
        if polled.assigned:
            found = self._member.committed(polled.assigned)
            self._next |= {tp: found[tp] or 0 for tp in polled.assigned}
            for tp in polled.assigned:
                self._run(tp, wanted.get(tp, 0))
        outputs: list[Output] = []
        offsets: dict[TP, int] = {}
        for tp, records in polled.records.items():
            inside = [record for record in records if record.offset() < wanted[tp]]
            outputs += [self._copied(record) for record in inside]
            offsets[tp] = min(records[-1].offset() + 1, wanted[tp])
        for tp in polled.ended:  # what is missing up to the end are the broker's own records
            if tp in self._active:
                offsets[tp] = wanted[tp]
        if offsets:
            self._member.commit(outputs, offsets)
            self.copied += len(outputs)
            self._next |= offsets
        for tp in [tp for tp in self._active if self._next[tp] >= wanted[tp]]:
            self._member.pause(tp)
            self._active.discard(tp)

    def _copied(self, record: Record) -> Output:
        return Output(self._new, record.key(), record.value(), headers=record.headers())

    def close(self) -> None:
        self._member.close()
