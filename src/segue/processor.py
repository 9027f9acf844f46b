"""What a processor is to the engine: the port that `streams/` fills, and what passes through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct, field

from segue.core.event import Rejected
from segue.deadletters import attempts, dead_letter
from segue.log.port import TP, Output, Record
from segue.store.shards import Encoded, Fence, ShardStore


class Shard(Struct):
    """What a processor holds of one partition while it owns it."""

    name: str
    tp: TP
    topic_id: str
    epoch: int
    fence: bytes
    next_offset: int
    emit_from: int
    """Records before this offset have been committed already: apply them, emit nothing."""
    stream_time_ms: int
    stats: Counter[str]
    tally: dict[Any, list[int]] = field(default_factory=dict)
    """What this turn adds to `stats`, by whatever the processor counts: how often, and where in the turn first."""
    documents: dict[str, Any] = field(default_factory=dict)
    dirty: dict[str, Any] = field(default_factory=dict)
    """Documents that changed in this turn, and are not encoded yet."""
    encoded: Encoded = field(default_factory=Encoded)
    changed: dict[str, int] = field(default_factory=dict)
    """The revisions of those that are."""
    wake: dict[str, int] = field(default_factory=dict)
    """Customers whose earliest deadline changed, and when it is reached (ms; 0: there is none)."""
    received_ms: list[int] = field(default_factory=list)
    """When the log received the events of this batch: for the latency metric."""
    refused: list[int] = field(default_factory=list)
    """Offsets of this batch's records that count against the limit of rejections."""
    places: Sequence[int] = ()
    """Where in the turn the records of the portion at hand stand; empty: one after the other."""
    ends: list[int] = field(default_factory=list)
    """How many outputs the portion at hand had after each of its records."""

    def refuse(self, record: Record, why: Rejected, stage: str) -> Output:
        """Count a record that cannot be used and return its dead letter. `stage` is the processor."""
        self.stats[f"rejected|{why.reason}"] += 1
        if not attempts(record.headers()):  # one that an operator sent again says nothing of those around it
            self.refused.append(record.offset())
        return dead_letter(record, why, stage)


class Processor(Protocol):
    """What differs between processors. `streams/` holds them."""

    name: str
    group: str
    topics: Sequence[str]
    kind: str
    timed: bool
    """Whether time alone brings anything about: `due`."""
    claims: bool
    """Whether `prepare` claims in Redis what is not committed yet (docs/adr/0005). What was claimed before must be
    committed by then: so the claims of one turn at most wait for their commit."""
    portion: int | None
    """So many records are read and applied at a time, and those of one key together: their document stays in the CPU's
    cache from the first of them until it is encoded. None: all of a turn, as received."""

    def shard_of(self, tp: TP) -> str:
        """The name of a partition's state in Redis."""
        ...

    def read(self, shard: Shard, records: list[Record]) -> list[Any]:
        """Decode the records of one partition, in order."""
        ...

    def prepare(self, batch: list[tuple[Shard, list[Any]]]) -> None:
        """Load whatever `apply` needs. The only step that may read from Redis; what it read decides what is
        committed, so it raises WentBack when Redis is not as this owner left it."""
        ...

    def apply(self, batch: list[tuple[Shard, list[Any]]]) -> list[Output]:
        """Apply in memory: change documents, mark them dirty, count, and return what to emit. Who works in portions
        notes `Shard.ends`."""
        ...

    def counters(self, shard: Shard) -> Mapping[str, int]:
        """The shard's counters at the end of a turn."""
        ...

    def due(self, shards: list[Shard], now_ms: int) -> list[Output]:
        """What time alone brings about in shards that are caught up, as records of the processor's own input.

        Appended in no transaction: a record that comes twice, or from an owner replaced, must change nothing.
        """
        ...

    def encode(self, shard: str, dirty: dict[str, Any]) -> Encoded:
        """These changed documents of a shard, by name, as they will stand in Redis. Called before
        the commit: what fails here fails the record."""
        ...

    def recover(self, shard: Shard, found: Fence | None) -> None:
        """Called after a take-over; `found` is the fence as it stood."""
        ...


def load_missing(
    store: ShardStore, needed: Iterable[tuple[Shard, str]], decode: Callable[[str, str, bytes], Any]
) -> None:
    """Load the documents (shard, name) that the cache lacks, in one read. Raises WentBack.

    `decode` gets the shard's name, the document's, and the bytes.
    """
    missing = {(shard.name, key): shard for shard, key in needed if key not in shard.documents}
    if not missing:  # else even a read of nothing would wait for the write under way
        return
    wanted = list(missing)
    fences = {shard.name: shard.fence for shard in missing.values()}
    for (name, key), raw in zip(wanted, store.load(wanted, fences), strict=True):
        if raw is not None:
            missing[name, key].documents[key] = decode(name, key, raw)
