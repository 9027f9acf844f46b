"""The log as a silent engine sees it: everything in it was committed before, and it ends where it is told.

So a rebuild is what the engine does after a crash (`Engine._restore`), from the beginning and into other
keys: the same loop and the same processors, no copy of them. Nothing that is emitted goes anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import redis

from segue.engine import Engine
from segue.log.port import TP, Log, Output, Polled, Reader, Record
from segue.rejections import Limit
from segue.runtime import build_processor
from segue.settings import Settings
from segue.store.keys import Layout
from segue.store.shards import ShardStore
from segue.topics import Topic

BATCH_RECORDS = 20_000
"""Many more than live: a document that changes several times in a batch is encoded and written once."""
_COMMITTED = 1 << 62
"""Beyond every offset: whatever the engine reads, it takes it for committed and emits nothing."""


class Replay:
    """A log (`port.Log`) and the one seat in it (`port.Member`), over partitions up to given offsets."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._ends: dict[TP, int] = {}
        self._next: dict[TP, int] = {}
        self._unassigned: list[TP] = []
        self._ended: list[TP] = []

    @property
    def done(self) -> bool:
        """Whether every partition was read up to its end."""
        return all(self._next.get(tp, -1) >= end for tp, end in self._ends.items())

    def position(self, tp: TP) -> int:
        """The offset up to which a partition was read."""
        return self._next.get(tp, 0)

    def extend(self, ends: dict[TP, int]) -> None:
        """Read (on) up to these offsets, which must be committed already."""
        for tp, end in ends.items():
            if tp not in self._ends:
                self._unassigned.append(tp)
            if end > self._ends.get(tp, -1):
                self._ends[tp] = end
                if tp in self._next:
                    self.start(tp, self._next[tp])

    # --- the seat

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        assigned, self._unassigned = self._unassigned, []
        if assigned:
            return Polled({}, assigned, [], [])
        polled = self._reader.poll(max_records, 0 if self._ended else timeout_s)
        records = {}
        for tp, found in polled.records.items():
            batch = found if found[-1].offset() < self._ends[tp] else self._up_to_end(found, tp)
            if batch:
                records[tp] = batch
            self._reached(tp, found[-1].offset() + 1)
        for tp in polled.ended:  # what is missing up to our end are the broker's own records
            self._reached(tp, self._ends[tp])
        ended, self._ended = self._ended, []
        return Polled(records, [], [], ended)

    def _up_to_end(self, batch: list[Record], tp: TP) -> list[Record]:
        return [record for record in batch if record.offset() < self._ends[tp]]

    def _reached(self, tp: TP, offset: int) -> None:
        self._next[tp] = min(offset, self._ends[tp])
        if offset >= self._ends[tp]:
            self._reader.pause(tp)
            self._ended.append(tp)

    def start(self, tp: TP, offset: int | None) -> None:
        self._next[tp] = offset or 0
        if self._next[tp] < self._ends[tp]:
            self._reader.start(tp, offset)
        else:
            self._ended.append(tp)

    def pause(self, tp: TP) -> None:
        """Not done with it: whoever pauses starts again."""
        self._reader.pause(tp)
        self._next.pop(tp, None)

    def committed(self, tps: Sequence[TP]) -> dict[TP, int | None]:
        return dict.fromkeys(tps, _COMMITTED)

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        return self._reader.topic_ids(topics)

    def ends(self, tps: Sequence[TP]) -> dict[TP, int]:
        return {}  # while a log is replayed nothing falls due by the clock

    def commit(self, outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
        """Nothing: a silent engine's outputs and offsets stand in the log already."""

    begin = commit

    def finished(self) -> bool:
        return True

    def finish(self) -> None:
        """Nothing, as `commit`."""

    # --- the log

    def join(self, group: str, topics: Sequence[str], instance: str) -> Replay:
        return self

    def append(self, outputs: Iterable[Output]) -> None:
        """Nothing, as `commit`."""

    def read(self, topic: str) -> Iterator[Record]:
        """Nothing: whoever rebuilds fills the identity index first."""
        return iter(())

    def create_topics(self, topics: Sequence[Topic]) -> list[str]:
        return []

    def partitions(self, topic: str) -> int:
        return sum(tp[0] == topic for tp in self._ends)

    def bounds(self, topic: str, settled: bool = False) -> dict[int, tuple[int, int]]:
        return {tp[1]: (0, end) for tp, end in self._ends.items() if tp[0] == topic}

    def reader(self) -> Reader:
        return self._reader

    def members(self, group: str) -> list[str]:
        return []

    def offsets(self, group: str, tps: Sequence[TP]) -> dict[TP, int]:
        return {}

    def set_offsets(self, group: str, offsets: dict[TP, int]) -> None:
        """Nothing, as `commit`."""

    def close(self) -> None:
        """Nothing: the engine closes its seat after each run, and this one is used again."""


class _SilentStore(ShardStore):
    def report(self, caught_up: dict[str, int], metrics: bytes, instance: str) -> None:
        """Nothing: this is no processor at work, and readers must not take it for one."""


class SilentEngine:
    """One processor that replays `source` into `client`, under `place`.

    `moved` is called with the records applied so far, many times a second.
    """

    def __init__(
        self, name: str, settings: Settings, source: Log, client: redis.Redis, place: Layout,
        moved: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._moved, self._reader = moved, source.reader()
        self.replay = Replay(self._reader)
        processor, store = build_processor(name, settings, self.replay, client, place, _SilentStore)
        self._engine = Engine(processor, self.replay, store, "rebuild", self._stop, BATCH_RECORDS, limit=Limit(0, 0))
        self.inputs = {
            processor.shard_of((topic, partition)): (topic, partition)
            for topic in processor.topics
            for partition in range(source.partitions(topic))
        }
        """The partitions that the processor reads, by the names of their shards."""

    @property
    def applied(self) -> int:
        """How many records were applied since the start."""
        return self._engine.meter.counts["replayed"]

    @property
    def failed(self) -> int:
        """How many records the processor could not take: they are missing, as dead letters are live."""
        return self._engine.meter.counts["failed"]

    def run(self, ends: dict[TP, int]) -> None:
        """Apply everything up to these offsets; waits out outages. May be called again with later ones."""
        self.replay.extend(ends)
        self._engine.run()

    def close(self) -> None:
        self._reader.close()

    def _stop(self) -> bool:
        self._moved(self.applied)
        return self.replay.done
