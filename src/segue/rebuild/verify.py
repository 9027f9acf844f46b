"""Comparing the live state with one rebuilt from the log, byte for byte, while the live one moves on.

The rebuilt state goes into a scratch Redis. A chunk of live documents is read together with its shard's
fence, in one MULTI; the scratch is then brought to exactly that fence, and the chunk compared. So every
document is compared at one position of the log, and live processing is neither stopped nor slowed down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import orjson
import redis
from msgspec import Struct, field

from segue.core.lines import BETWEEN
from segue.embedded.valkey import EmbeddedValkey
from segue.errors import SegueError
from segue.identity_records import committed
from segue.log.port import Log
from segue.rebuild.difference import MISSING, Difference, difference
from segue.rebuild.replay import SilentEngine
from segue.runtime import PROCESSORS
from segue.settings import Settings
from segue.store.connect import connect, layout, reachable
from segue.store.identity import IdentityIndex
from segue.store.keys import TIMELINE, Layout
from segue.store.shards import Fence
from segue.topics import IDENTITY

_CHUNK = 200
"""Documents that are read at once: a few megabytes, so the live Redis is busy for a few milliseconds."""
_SCAN = 1000
_OWNERS = {"ctx": "context", TIMELINE: "context", "sig": "signals"}
"""Which processor writes a kind of document. Other keys name their processor."""

Progress = Callable[[str, int, int], None]
"""Called with a phase, how much of it is done, and the whole."""


class Unable(SegueError):
    """The state cannot be rebuilt from this log; the message says why and what is left to do."""


class Report(Struct):
    """What a comparison found. `compared` counts by kind of key."""

    compared: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)
    first: Difference | None = None
    unconfirmed: int = 0
    """Identifiers claimed and not (yet) in the log: of events whose batch is under way or never was committed."""
    skipped: list[str] = field(default_factory=list)
    """What could not be compared, and why."""

    @property
    def total(self) -> int:
        return sum(self.compared.values())

    def add(self, kind: str, found: Difference | None) -> None:
        self.compared[kind] += 1
        if found is not None:
            self.differing[kind] += 1
            self.first = self.first or found


def fences(client: redis.Redis, place: Layout, processor: str, shards: list[str]) -> dict[str, Fence]:
    """The fences of those shards that have one."""
    with reachable():
        raws: Any = client.mget([place.fence(shard, processor) for shard in shards])
    return {
        shard: msgspec.json.decode(raw, type=Fence) for shard, raw in zip(shards, raws, strict=True) if raw is not None
    }


def check_kept(source: Log, topics: list[str]) -> None:
    """Raise Unable when the start of one of these topics is gone: half a history gives half a context."""
    for topic in topics:
        gone = {partition: first for partition, (first, _) in source.bounds(topic).items() if first > 0}
        if gone:
            raise Unable(
                f"{topic} no longer holds its first records ({len(gone)} partitions begin at an offset up to "
                f"{max(gone.values())}): retention removed them, and what is left would give half contexts. "
                "The live state stays as it is; keep the topic for ever (retention.ms=-1) where it must be rebuilt"
            )


def check_same(source: Log, engine: SilentEngine, found: dict[str, Fence]) -> None:
    """Raise Unable when the live fences are of other topics than there are now, or beyond their ends."""
    topics = sorted({topic for topic, _ in engine.inputs.values()})
    ids = engine.replay.topic_ids(topics)
    ends = {topic: source.bounds(topic) for topic in topics}
    for shard, fence in found.items():
        topic, partition = engine.inputs[shard]
        if fence.topic_id != ids[topic]:
            raise Unable(f"{topic} was deleted and made anew: what the state was made of is gone")
        if fence.next_offset > ends[topic][partition][1]:
            raise Unable(f"{topic} ends before what Redis says was read of it: the log has lost records")


@contextmanager
def scratch() -> Iterator[redis.Redis]:
    """An empty Redis of our own, gone at the end: the embedded Valkey, which here need not survive anything."""
    with TemporaryDirectory(prefix="segue-rebuild-") as directory, EmbeddedValkey(Path(directory)) as server:
        client = connect(server.url)
        client.config_set("appendonly", "no")
        yield client


def verify(settings: Settings, source: Log, live: redis.Redis, scratch: redis.Redis, progress: Progress) -> Report:
    """Rebuild everything into `scratch` and compare. Raises Unable, LogUnavailable, StoreUnavailable."""
    place = layout(live)
    report = Report()
    _compare_identity(source, live, scratch, place, report, progress)
    shards: dict[str, _Comparison] = {}
    for name in PROCESSORS:
        comparison = _Comparison(name, settings, source, live, scratch, place)
        try:
            comparison.check()
        except Unable as error:
            if name != "resolve":  # whose input may be dropped: everything else is rebuilt from what it wrote
                raise
            report.skipped.append(f"{name}: {error}")
            continue
        comparison.catch_up(progress)
        shards[name] = comparison
    _compare_shards(shards, live, scratch, place, report, progress)
    for comparison in shards.values():
        comparison.close()
    return report


class _Comparison:
    """One processor's rebuilt state, brought to wherever the live one stands."""

    def __init__(
        self, name: str, settings: Settings, source: Log, live: redis.Redis, scratch: redis.Redis, place: Layout
    ) -> None:
        self._source, self._live, self._place, self._scratch = source, live, place, scratch
        self._progress: Progress = _unseen
        self._engine = SilentEngine(name, settings, source, scratch, place, self._tick)
        self._name, self.inputs = name, self._engine.inputs
        self._found = fences(live, place, name, list(self.inputs))
        self._total = sum(fence.next_offset for fence in self._found.values())

    def check(self) -> None:
        """Raise Unable when the log does not hold what the live state was made of."""
        check_kept(self._source, sorted({topic for topic, _ in self.inputs.values()}))
        check_same(self._source, self._engine, self._found)

    def catch_up(self, progress: Progress) -> None:
        """Rebuild up to where the live state stood at the start."""
        self._progress = progress
        self._engine.run({self.inputs[shard]: fence.next_offset for shard, fence in self._found.items()})
        self._progress = _unseen
        progress(self._name, self._engine.applied, self._engine.applied)  # of the offsets some are the broker's own

    def compare(self, shard: str, keys: list[str], report: Report) -> None:
        """Compare keys of one shard at the position that they stand at now."""
        with reachable(), self._live.pipeline() as pipe:
            pipe.get(self._place.fence(shard, self._name))
            _read(pipe, keys)
            raw, *found = pipe.execute(raise_on_error=False)
        tp = self.inputs.get(shard)
        if raw is None or tp is None:
            for key in keys:
                report.add(kind_of(key), Difference(key, "$ (of a shard that nobody has)", MISSING, MISSING))
            return
        fence = msgspec.json.decode(raw, type=Fence)
        if fence.next_offset < self._engine.replay.position(tp):
            raise Unable(f"Redis went back in time while it was compared (shard {shard} of {self._name}); start again")
        self._engine.run({tp: fence.next_offset})
        with reachable(), self._scratch.pipeline() as pipe:
            _read(pipe, keys)
            rebuilt = pipe.execute(raise_on_error=False)
        for key, one, other in zip(keys, map(_bytes, rebuilt), map(_bytes, found), strict=True):
            kind = kind_of(key)
            pair = (_ownerless(one), _ownerless(other)) if kind == "fence" else (one, other)
            report.add(kind, self._other_than_text(key) if pair == (None, None) else difference(key, *pair))

    def _other_than_text(self, key: str) -> Difference | None:
        """What is of another type was not read: say so rather than call it the same."""
        with reachable():
            found: Any = self._live.type(key)
        return None if found == b"none" else Difference(key, f"$ (a {found.decode()}: not compared)", MISSING, MISSING)

    def close(self) -> None:
        self._engine.close()

    def _tick(self, applied: int) -> None:
        self._progress(self._name, min(applied, self._total), self._total)


def _unseen(phase: str, done: int, total: int) -> None:
    """No progress is shown for the few records that arrive while comparing."""


def _read(pipe: Any, keys: list[str]) -> None:
    """Ask for the keys' values: documents and counters are strings, timelines lists, the index of deadlines a sorted
    set."""
    for key in keys:
        kind = kind_of(key)
        if kind == "wake":
            pipe.zrange(key, 0, -1, withscores=True)
        elif kind == TIMELINE:
            pipe.lrange(key, 0, -1)
        else:
            pipe.get(key)


def _bytes(value: Any) -> bytes | None:
    """A value as the bytes to compare; a list or sorted set as JSON, and none when it is empty or of another type."""
    if isinstance(value, redis.ResponseError):
        if "WRONGTYPE" not in str(value):
            raise value
        return None
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return b"[%b]" % BETWEEN.join(value)
    if isinstance(value, list):
        return msgspec.json.encode({member.decode(): int(at) for member, at in value}) if value else None
    found: bytes | None = value
    return found


def _ownerless(raw: bytes | None) -> bytes | None:
    """A fence without its owner's epoch, which counts take-overs and no records."""
    if raw is None:
        return None
    return msgspec.json.encode(msgspec.structs.replace(msgspec.json.decode(raw, type=Fence), epoch=0))


def kind_of(key: str) -> str:
    """`ctx`, `tl`, `sig`, `stats`, `fence`: what a shard's key holds."""
    return key.partition("}:")[2].partition(":")[0]


def place_of(key: str) -> tuple[str, str]:
    """Processor and shard of a shard's key."""
    head, _, rest = key.partition("}:")
    kind, _, name = rest.partition(":")
    return _OWNERS.get(kind, name), head.partition("{")[2]


def scan(client: redis.Redis, pattern: str) -> Iterator[str]:
    """The keys that match. One that is written meanwhile may or may not be among them; one may come twice."""
    with reachable():
        for key in client.scan_iter(pattern, count=_SCAN):
            yield key.decode()


def _compare_shards(shards: dict[str, _Comparison], live: redis.Redis, scratch: redis.Redis, place: Layout,
                    report: Report, progress: Progress) -> None:  # fmt: skip
    """Compare what the live state has, then what only the rebuilt one has."""
    pattern = f"segue:{place.epoch}:{{*"
    with reachable():
        whole: Any = live.dbsize()
    for keys in (scan(live, pattern), _absent(scan(scratch, pattern), live)):
        for processor, shard, chunk in _by_shard(keys):
            if processor in shards:
                shards[processor].compare(shard, chunk, report)
            progress("comparing", min(report.total, whole), whole)
    progress("comparing", whole, whole)


def _by_shard(keys: Iterator[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Keys of shards (not of the identity index) in chunks of one processor and shard."""
    waiting: dict[tuple[str, str], dict[str, None]] = {}
    for key in keys:
        owner = place_of(key)
        if owner[1].startswith("id"):
            continue
        chunk = waiting.setdefault(owner, {})
        chunk[key] = None
        if len(chunk) >= _CHUNK:
            yield *owner, list(waiting.pop(owner))
    for owner, chunk in waiting.items():
        yield *owner, list(chunk)


def _absent(keys: Iterator[str], live: redis.Redis) -> Iterator[str]:
    """Those keys that the live Redis does not have."""
    for chunk in _chunks(keys, _SCAN):
        with reachable(), live.pipeline(transaction=False) as pipe:
            for key in chunk:
                pipe.exists(key)
            there = pipe.execute()
        yield from (key for key, found in zip(chunk, there, strict=True) if not found)


def _compare_identity(
    source: Log, live: redis.Redis, scratch: redis.Redis, place: Layout, report: Report, progress: Progress
) -> None:
    """The identity index against the links in the log.

    A claim goes before its commit (docs/adr/0005). So live entries are listed before the log is read: one
    that the log then lacks is a claim that is not committed. And what the log has, the index must have.
    """
    pattern = f"segue:{place.epoch}:{{id*"
    claimed = set(scan(live, pattern))
    progress("identity", 0, len(claimed))
    IdentityIndex(scratch, place).refill(committed(lambda: source.read(IDENTITY)))
    for keys in _chunks(scan(scratch, pattern), _SCAN):
        for key, one, other in zip(keys, values(scratch, keys), values(live, keys), strict=True):
            claimed.discard(key)
            report.add("identity", difference(key, one, other))
        progress("identity", report.compared["identity"], report.compared["identity"] + len(claimed))
    progress("identity", report.compared["identity"], report.compared["identity"])
    report.unconfirmed = len(claimed)


def values(client: redis.Redis, keys: list[str]) -> list[bytes | None]:
    """What the keys hold; a hash as JSON, sorted by its fields."""
    with reachable():
        found: Any = client.mget(keys)
        hashes = [key for key, raw in zip(keys, found, strict=True) if raw is None]
        if hashes:
            with client.pipeline(transaction=False) as pipe:
                for key in hashes:
                    pipe.hgetall(key)
                fields = dict(zip(hashes, pipe.execute(), strict=True))
            found = [raw if raw is not None else _as_json(fields[key]) for key, raw in zip(keys, found, strict=True)]
    return list(found)


def _as_json(fields: dict[bytes, bytes]) -> bytes | None:
    named = {name.decode(): value.decode() for name, value in fields.items()}
    return orjson.dumps(named, option=orjson.OPT_SORT_KEYS) if named else None


def _chunks(keys: Iterator[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for key in keys:
        chunk.append(key)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
