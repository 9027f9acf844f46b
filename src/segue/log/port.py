"""What a log promises. Two adapters keep these promises: `log.kafka` and `log.sqlite`; one behaviour suite
(`tests/behaviour/test_log.py`) runs on both.

* A topic has partitions; a partition is an ordered sequence of records with offsets that only grow.
* A record with a key goes to `partition_of(key)` unless a partition is named.
* The members of a group share the partitions of their topics: one owner at a time.
* `Member.commit` is atomic: the outputs and the group's offsets become visible together or not at all,
  and only while this member still owns every partition it commits (else `Fenced`, nothing happened).
* A member reads committed records only.
* What is acknowledged is durable: over the death of this process always; over the death of the machine as
  the log is set up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from segue.topics import Topic

TP = tuple[str, int]
"""Topic and partition."""

Headers = Sequence[tuple[str, bytes]]


class Record(Protocol):
    """One record, with the accessors of `confluent_kafka.Message`, so that Kafka's need no wrapping."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Headers | None: ...
    def timestamp(self) -> tuple[int, int]:
        """Kind of timestamp and milliseconds since 1970 UTC."""
        ...


class Output(Struct, frozen=True, gc=False):
    """A record to write. `partition` -1 means: by the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int = -1
    headers: Headers | None = None


class Polled(NamedTuple):
    """What a poll brought. `ended` are partitions read to their end; `revoked` are ours no more.

    `behind` are partitions that hold records received before the newest of `records`, and not delivered yet.
    """

    records: dict[TP, list[Record]]
    assigned: list[TP]
    revoked: list[TP]
    ended: list[TP]
    behind: Sequence[TP] = ()


class Reader(Protocol):
    """Reads partitions from any offset on, in no group: nobody else notices. One thread only."""

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        """Wait for records, at most `timeout_s`. A partition delivers nothing until `start`.

        Raises LogUnavailable (call again), MemberLost (take a new seat).
        """
        ...

    def start(self, tp: TP, offset: int | None) -> None:
        """Deliver `tp` from `offset` on (None: from its beginning). Also rewinds a running partition."""
        ...

    def pause(self, tp: TP) -> None:
        """Deliver nothing of `tp` until `start`."""
        ...

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """By topic an id that, deleted and made again, it does not share with its predecessor; asked for in one go."""
        ...

    def close(self) -> None: ...


class Member(Reader, Protocol):
    """A seat in a consumer group, with the right to commit outputs and offsets together. One thread only."""

    def committed(self, tps: Sequence[TP]) -> dict[TP, int | None]:
        """The group's committed offsets; None where it has none, or one of a topic of that name that is no more."""
        ...

    def ends(self, tps: Sequence[TP]) -> dict[TP, int]:
        """The ends of what is committed of these partitions now; without those of which the log cannot say it."""
        ...

    def commit(self, outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
        """Write `outputs` and the next offsets to read, atomically: `begin` and `finish` in one.

        Raises Fenced (ownership lost), LogUnavailable (nothing happened), MemberLost.
        """
        ...

    def begin(self, outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
        """Begin to commit: returns when all of it is handed over. One commit is under way at a time; meanwhile this
        member is polled at most. Raises as `commit` does, and then nothing is under way."""
        ...

    def finished(self) -> bool:
        """Whether `finish` would answer at once."""
        ...

    def finish(self) -> None:
        """Wait until the commit that was begun has ended. Raises as `commit` does."""
        ...

    def close(self) -> None:
        """Leave the group in order."""
        ...


class Log(Protocol):
    """A log: topics, writing, reading, group seats."""

    def create_topics(self, topics: Sequence[Topic]) -> list[str]:
        """Create what is missing; returns the names created. Raises LogUnavailable, SettingsError."""
        ...

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has; 0 when it does not exist."""
        ...

    def append(self, outputs: Iterable[Output]) -> None:
        """Write outside a group: returns when all are acknowledged. Raises LogUnavailable."""
        ...

    def read(self, topic: str) -> Iterator[Record]:
        """Every committed record of a topic from its beginning to its present end, partition by partition."""
        ...

    def bounds(self, topic: str, settled: bool = False) -> dict[int, tuple[int, int]]:
        """Per partition the first offset that is kept, and the end of what is committed.

        `settled` waits for a moment in which no transaction is open on the topic. Raises LogUnavailable.
        """
        ...

    def reader(self) -> Reader:
        """Read partitions without joining a group."""
        ...

    def members(self, group: str) -> list[str]:
        """Who is in a group now, by instance. Who is not cannot commit for it. Raises LogUnavailable."""
        ...

    def offsets(self, group: str, tps: Sequence[TP]) -> dict[TP, int]:
        """The committed offsets of a group, where it has any."""
        ...

    def set_offsets(self, group: str, offsets: dict[TP, int]) -> None:
        """Commit offsets for a group that has no members."""
        ...

    def join(self, group: str, topics: Sequence[str], instance: str) -> Member:
        """Take a seat in `group`. `instance` names this process among the group's members."""
        ...

    def close(self) -> None: ...
