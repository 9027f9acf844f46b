"""One turn of a processor: its records read, applied and encoded, in portions, up to the bytes to commit and write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from msgspec import Struct, field

from segue.log.port import TP, Output, Record
from segue.processor import Processor, Shard
from segue.store.shards import Fence, ShardStore, Write, encode_fence, encode_stats


def applied(
    processor: Processor,
    store: ShardStore,
    shards: dict[TP, Shard],
    records: dict[TP, list[Record]],
    offsets: dict[TP, int],
    ready: Callable[[], None],
) -> tuple[list[Output], list[Write]]:
    """Apply records to their shards. Returns what to emit, in the order of the records, and what to write. `offsets`
    are the next ones to read. `ready` is called before anything is prepared. Raises what the processor raises."""
    outputs: list[Output] = []
    size = processor.portion
    if size is None or sum(map(len, records.values())) <= size:
        outputs = _portion(processor, [(shards[tp], Portion(found)) for tp, found in records.items()], ready)
    else:
        portions = [(shards[tp], list(_portions(found, size))) for tp, found in records.items()]
        _read_ahead(store, portions)
        for shard, found in portions:
            outputs += _in_portions(processor, shard, found, ready)
    return outputs, [_write(processor, shard, offsets[tp]) for tp, shard in shards.items()]


def _read_ahead(store: ShardStore, portions: list[tuple[Shard, list[Portion]]]) -> None:
    """Read the documents that the cache lacks, of all portions at once."""
    missing = (
        (shard.name, name)
        for shard, found in portions
        for portion in found
        for name in portion.names
        if name not in shard.documents
    )
    store.read_ahead(missing, {shard.name: shard.fence for shard, _ in portions})


def _in_portions(
    processor: Processor, shard: Shard, portions: list[Portion], ready: Callable[[], None]
) -> Iterable[Output]:
    found: list[Sequence[Output]] = [()] * sum(len(portion.records) for portion in portions)
    for portion in portions:
        outputs, start = _portion(processor, [(shard, portion)], ready), 0
        for place, end in zip(portion.places, shard.ends, strict=True):
            found[place], start = outputs[start:end], end
        _encode(processor, shard, portion.names)
    return chain.from_iterable(found)


def _portion(processor: Processor, found: list[tuple[Shard, Portion]], ready: Callable[[], None]) -> list[Output]:
    batch = [(shard, processor.read(shard, portion.records)) for shard, portion in found]
    for shard, portion in found:
        shard.places = portion.places
    ready()
    processor.prepare(batch)
    return processor.apply(batch)


class Portion(Struct):
    """Records of one partition. `places` is where in the partition's turn they stand (empty: these are all of it);
    `names` are their keys, none of which comes again in this turn: the names of documents."""

    records: list[Record]
    places: Sequence[int] = ()
    names: list[str] = field(default_factory=list)


def _portions(records: list[Record], size: int) -> Iterator[Portion]:
    """The records in portions of whole keys: those of a key stay together and in order."""
    by_key: dict[bytes | None, list[int]] = {}
    for n, record in enumerate(records):
        key = record.key()
        there = by_key.get(key)
        if there is None:
            by_key[key] = [n]
        else:
            there.append(n)
    places: list[int] = []
    names: list[str] = []
    for key, there in by_key.items():
        places += there
        if key is not None:
            names.append(key.decode(errors="replace"))
        if len(places) >= size:
            yield Portion([records[n] for n in places], places, names)
            places, names = [], []
    if places:
        yield Portion([records[n] for n in places], places, names)


def _encode(processor: Processor, shard: Shard, names: Iterable[str]) -> None:
    """Encode those of the documents that have changed."""
    dirty = {name: shard.dirty.pop(name) for name in names if name in shard.dirty}
    encoded = processor.encode(shard.name, dirty)
    shard.encoded.documents.update(encoded.documents)
    shard.encoded.lines += encoded.lines
    for name, document in dirty.items():
        shard.changed[name] = document.revision


def _write(processor: Processor, shard: Shard, next_offset: int) -> Write:
    _encode(processor, shard, list(shard.dirty))
    return Write(
        shard=shard.name,
        expected=shard.fence,
        fence=encode_fence(Fence(shard.topic_id, shard.epoch, next_offset, shard.stream_time_ms)),
        documents=shard.encoded.documents,
        stats=encode_stats(processor.counters(shard)),
        changed=shard.changed,
        wake=shard.wake,
        lines=shard.encoded.lines,
    )
