"""What a processor is to the engine: the port that `streams/` fills, and what passes through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    portion: int
    """So many records are read and applied at a time: few stay in the CPU's cache until their documents are encoded,
    many share what `prepare` asks Redis."""

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
        """Apply in memory: change documents, mark them dirty, count, and return what to emit."""
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


def portions(
    records: dict[TP, list[Record]], size: int
) -> Iterator[tuple[dict[TP, list[Record]], dict[TP, list[str]]]]:
    """The records in portions; with each the keys that do not come again, which is what documents are named by."""
    if sum(map(len, records.values())) <= size:
        yield records, {}
        return
    for tp, found in records.items():
        last = {record.key(): n for n, record in enumerate(found)}
        complete: list[list[str]] = [[] for _ in range(0, len(found), size)]
        for key, n in last.items():
            if key is not None:
                complete[n // size].append(key.decode(errors="replace"))
        for at, names in enumerate(complete):
            yield {tp: found[at * size : (at + 1) * size]}, {tp: names}
