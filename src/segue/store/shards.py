"""A processor's state in Redis, one shard per partition: documents, timelines, counters, fence, written together.

The fence says who wrote last (owner epoch), of which topic (its id) and up to which offset. It is the
last part of each write and what each write is conditional on: WATCH fence, MULTI, writes, EXEC. So a
paused owner that wakes up late cannot write (the next owner raised the epoch), and a Redis that lost its
last second is noticed (the fence is not what this owner wrote last) instead of being written on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import msgspec
import orjson
import redis
from msgspec import Struct, field

from segue.core.lines import Change
from segue.errors import StoreUnavailable, WentBack
from segue.metrics import FORGOTTEN_MS, decode
from segue.store.connect import evicts, history, reachable
from segue.store.keys import METRICS, Layout
from segue.store.resp import command, drop, mset, replies, rpush, sent

_MSET = 50
"""Keys per MSET: keeps one command's buffer at a few hundred kilobytes."""
_MGET = 100
"""Keys per MGET: what was read is decoded and let go before more is read."""
_TRIES = 5

Name = tuple[str, str]
"""The shard and the name of a document."""


class Fence(Struct, frozen=True):
    """Who wrote a shard last, and how far it is."""

    topic_id: str
    epoch: int
    next_offset: int
    stream_time_ms: int = 0


class Encoded(Struct):
    """Documents by name, and what has changed of the timelines beside them, in order."""

    documents: dict[str, bytes] = field(default_factory=dict)
    lines: list[tuple[str, Change]] = field(default_factory=list)


class Write(Struct):
    """What one batch changed in one shard."""

    shard: str
    expected: bytes
    fence: bytes
    documents: dict[str, bytes]
    stats: bytes
    """The counters, as `encode_stats` makes them."""
    changed: dict[str, int]
    """Revisions by customer key, for those who watch."""
    wake: dict[str, int] = field(default_factory=dict)
    """Customers whose earliest deadline changed: when it is reached (ms), 0 when there is none any more."""
    lines: list[tuple[str, Change]] = field(default_factory=list)
    """Changes of timelines, with the names of their documents, in order."""


class ShardStore:
    """Reads and writes the shards of one processor. `kind` names its documents (`ctx`, `sig`)."""

    def __init__(self, client: redis.Redis, layout: Layout, processor: str, kind: str) -> None:
        self._redis, self.layout, self.processor, self.kind = client, layout, processor, kind
        self._history: str | None = None
        self._coming: dict[str, Write] = {}
        """The writes that are expected or under way, by shard."""
        self._under_way: _UnderWay | None = None
        self._refused: list[str] = []
        self._ahead: dict[Name, bytes | None] = {}
        """Documents that were read before they are asked for."""
        self.before_reading: Callable[[], None] = lambda: None
        """Called before something is read that an expected write will change: it must be under way by then."""

    def take_over(self, shard: str, topic_id: str) -> tuple[Fence | None, bytes, Counter[str]]:
        """Raise the owner epoch: from here on no earlier owner can write.

        Returns the fence as found (None for a shard never written), the bytes of the new one, the counters.
        """
        if self._history is None:
            self._look()
        key = self.layout.fence(shard, self.processor)
        with reachable():
            for _ in range(_TRIES):
                with self._redis.pipeline() as pipe:
                    try:
                        pipe.watch(key)  # type: ignore[no-untyped-call]
                        raw: Any = pipe.get(key)
                        stats: Any = pipe.get(self.layout.stats(shard, self.processor))
                        found = None if raw is None else msgspec.json.decode(raw, type=Fence)
                        fence = self._next(found, topic_id)
                        pipe.multi()
                        pipe.set(key, fence)
                        pipe.sadd(self.layout.shards(self.processor), shard)
                        pipe.execute()
                    except redis.WatchError:
                        continue
                    return found, fence, Counter(orjson.loads(stats) if stats else {})
        raise StoreUnavailable(f"the fence of shard {shard} changes all the time; is another Segue on this Redis?")

    def begin_anew(self) -> None:
        """All shards are about to be taken over again: whichever Redis answers now, they go on from that. Of a write
        under way nobody will know whether it is done."""
        self._history = None
        self._let_go(sound=False)
        self._ahead = {}
        self._coming = {}
        self._refused = []

    def _next(self, found: Fence | None, topic_id: str) -> bytes:
        if found is None:
            return encode_fence(Fence(topic_id, 1, 0))
        return encode_fence(Fence(found.topic_id, found.epoch + 1, found.next_offset, found.stream_time_ms))

    def load(self, wanted: Sequence[Name], fences: Mapping[str, bytes]) -> Iterator[bytes | None]:
        """Read documents by (shard, customer key), some at a time. `fences` are those that this owner left, by shard.

        Each read brings the fences along. Raises WentBack when one is not as left, nor as the write that is to come
        expects it: the documents beside it may be older than what was committed, and nothing may be derived from
        them. Waits for that write where it changes what is wanted, and only there.
        """
        self._wait_for_changes(wanted)
        ahead = {each: self._ahead.pop(each) for each in wanted if each in self._ahead} if self._ahead else {}
        others = self._load([each for each in wanted if each not in ahead], fences)
        for each in wanted:
            yield ahead[each] if each in ahead else next(others)

    def _load(self, wanted: Sequence[Name], fences: Mapping[str, bytes]) -> Iterator[bytes | None]:
        for at in range(0, len(wanted), _MGET):
            yield from self._read(wanted[at : at + _MGET], fences)

    def read_ahead(self, wanted: Iterable[Name], fences: Mapping[str, bytes]) -> None:
        """Read documents that `load` will be called for in portions, in one go: while the write that is to come goes
        on, Redis answers nobody. What it changes is left to `load`. Raises WentBack."""
        free = [each for each in wanted if not self._changes(each)]
        self._ahead = dict(zip(free, self._read(free, fences), strict=True)) if free else {}

    def forget_ahead(self) -> None:
        """Let go of what was read ahead and not asked for: later on it may be old."""
        self._ahead = {}

    def _read(self, wanted: Sequence[Name], fences: Mapping[str, bytes]) -> list[bytes | None]:
        layout, shards = self.layout, list({shard for shard, _ in wanted})
        keys = [layout.document(shard, self.kind, key) for shard, key in wanted]
        beside = [layout.fence(shard, self.processor) for shard in shards]
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for at in range(0, len(keys), _MGET):
                pipe.mget([*keys[at : at + _MGET], *beside])  # one command: of one moment
            found = pipe.execute()
        loaded: list[bytes | None] = []
        for some in found:
            self._as_left(shards, some[-len(shards) :], fences)
            loaded += some[: -len(shards)]
        return loaded

    def _as_left(self, shards: list[str], found: list[bytes | None], fences: Mapping[str, bytes]) -> None:
        for shard, fence in zip(shards, found, strict=True):
            if fence != fences[shard] and (shard not in self._coming or fence != self._coming[shard].expected):
                raise WentBack(f"the fence of shard {shard} is not what was written last")

    def _changes(self, each: Name) -> bool:
        """Whether the write that is to come changes a document."""
        shard, name = each
        return shard in self._coming and name in self._coming[shard].documents

    def _wait_for_changes(self, wanted: Iterable[Name]) -> None:
        if self._coming and any(map(self._changes, wanted)):
            self.before_reading()
            self._refused += self._answered()

    def entries(self, wanted: Sequence[Name], fences: Mapping[str, bytes]) -> Iterator[list[bytes]]:
        """Read timelines by (shard, name of the document), some at a time; as `load` otherwise."""
        self._wait_for_changes(wanted)
        for at in range(0, len(wanted), _MGET):
            yield from self._entries(wanted[at : at + _MGET], fences)

    def _entries(self, wanted: Sequence[Name], fences: Mapping[str, bytes]) -> list[list[bytes]]:
        shards = list({shard for shard, _ in wanted})
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for shard, name in wanted:
                pipe.lrange(self.layout.timeline(shard, name), 0, -1)
            pipe.mget([self.layout.fence(shard, self.processor) for shard in shards])  # last: it vouches for the others
            *found, told = pipe.execute()
        self._as_left(shards, told, fences)
        return found

    def expect(self, writes: list[Write]) -> None:
        """Say what will be written next. Until that is answered, what it does not change is read as it stands."""
        self._coming = {write.shard: write for write in writes}

    def begin(self, writes: list[Write]) -> None:
        """Send a write of the shards whose fence is as expected, all in one MULTI; `finish` tells what becomes of it.

        One write is under way at a time. Raises StoreUnavailable with the outcome unknown; the caller restores all of
        the shards. A connection of the pool is used directly: a third of the time of redis-py's pipeline, which asks
        three times where this asks twice.
        """
        assert self._under_way is None
        self.expect(writes)
        with reachable(), self._closing():
            self._under_way = _UnderWay(self._redis.connection_pool.get_connection(), writes)
            self._send(self._under_way)

    def finish(self) -> list[str]:
        """Wait for the write under way, if there is one. Returns the shards that were refused: their owner must
        restore. Raises as `begin` does."""
        refused, self._refused = self._refused, []
        return refused + self._answered()

    def _answered(self) -> list[str]:
        if self._under_way is None:
            return []
        with reachable(), self._closing():
            under_way, done = self._under_way, None
            for tries in range(_TRIES):
                if tries:  # a fence was written in between
                    self._send(under_way)
                done = replies(under_way.connection, under_way.commands)[-1]
                if done is not None:
                    break
            for reply in done or ():
                if isinstance(reply, Exception):
                    raise reply
        self._let_go(sound=True)
        self._coming = {}
        return [write.shard for write in under_way.writes] if done is None else under_way.refused

    def _send(self, under_way: _UnderWay) -> None:
        keys = [self.layout.fence(write.shard, self.processor) for write in under_way.writes]
        asked = sent(under_way.connection, (command("WATCH", *keys), command("MGET", *keys)))
        found = replies(under_way.connection, asked)[1]
        good = [w for w, fence in zip(under_way.writes, found, strict=True) if fence == w.expected]
        kept = {write.shard for write in good}
        under_way.refused = [write.shard for write in under_way.writes if write.shard not in kept]
        under_way.commands = sent(under_way.connection, self._transaction(good))

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._let_go(sound=False)
            raise

    def _let_go(self, sound: bool) -> None:
        """Give the connection of the write under way back. If not `sound`, replies may come that nobody reads."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            if not sound:
                under_way.connection.disconnect()
            self._redis.connection_pool.release(under_way.connection)

    def _transaction(self, writes: list[Write]) -> Iterator[bytes]:
        yield command("MULTI")
        for write in writes:
            yield from self._commands(write)
        yield command("EXEC")

    def _commands(self, write: Write) -> Iterator[bytes]:
        layout, shard = self.layout, write.shard
        prefix = layout.document(shard, self.kind, "").encode()
        documents = iter(write.documents.items())
        while some := [(prefix + key.encode(), raw) for key, raw in islice(documents, _MSET)]:
            yield mset(some)
        yield from self._lines(write)
        yield from self._wakes(write)
        fence = layout.fence(shard, self.processor)
        yield command("MSET", layout.stats(shard, self.processor), write.stats, fence, write.fence)
        if write.changed:
            yield command("PUBLISH", layout.changes(shard), orjson.dumps(list(write.changed.items())))

    def _lines(self, write: Write) -> Iterator[bytes]:
        prefix = self.layout.timeline(write.shard, "").encode()
        for name, change in write.lines:
            key, append = prefix + name.encode(), change.append
            if change.anew:
                yield command("DEL", key)
            if change.cut:
                yield command("LTRIM", key, 0, -change.cut - 1)
            if append:
                yield rpush(key, append)
            if change.drop:
                yield drop(key, change.drop)

    def _wakes(self, write: Write) -> Iterator[bytes]:
        key = self.layout.wake(write.shard, self.processor)
        ends = [customer for customer, at in write.wake.items() if not at]
        if ends:
            yield command("ZREM", key, *ends)
        if len(ends) < len(write.wake):
            yield command("ZADD", key, *(part for customer, at in write.wake.items() if at for part in (at, customer)))

    def awake(self, shards: list[str], until_ms: int, most: int) -> dict[str, list[str]]:
        """The customers whose earliest deadline is reached by `until_ms`, the earliest first, by shard."""
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for shard in shards:
                pipe.zrangebyscore(self.layout.wake(shard, self.processor), "-inf", until_ms, 0, most)
            found = pipe.execute()
        return {shard: [key.decode() for key in keys] for shard, keys in zip(shards, found, strict=True) if keys}

    def complete_until(self, processor: str) -> int:
        """Until when (ms) another processor has applied everything it received; 0 while a shard of it is silent."""
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.layout.progress(processor))
            pipe.smembers(self.layout.shards(processor))
            told, shards = pipe.execute()
        return min((int(told.get(shard, 0)) for shard in shards), default=0)

    def forget_the_gone(self, now_ms: int) -> None:
        """Drop the metrics of processes that have long ended; each start under a new name leaves some."""
        with reachable():
            told: Any = self._redis.hgetall(METRICS)
            gone = [name for name, raw in told.items() if now_ms - decode(raw).at_ms > FORGOTTEN_MS]
            if gone:
                self._redis.hdel(METRICS, *gone)

    def report(self, caught_up: dict[str, int], metrics: bytes, instance: str) -> None:
        """Say until when (ms) each shard has applied everything, and publish this process's metrics.

        Raises WentBack when Redis restarted, failed over or was emptied, in silence, since the last report: a shard
        without traffic would not find out, and call itself complete.
        """
        self._look()
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            if caught_up:
                pipe.hset(self.layout.progress(self.processor), mapping=caught_up)  # type: ignore[arg-type]
            pipe.hset(METRICS, f"{self.processor}:{instance}", metrics)
            pipe.execute()

    def _look(self) -> None:
        """Ask Redis who it is and whether it keeps what it is given."""
        fault = evicts(self._redis)
        if fault is not None:
            raise StoreUnavailable(fault)
        found = history(self._redis)
        before, self._history = self._history, found
        if before not in (None, found):
            raise WentBack("Redis restarted, failed over or was emptied")


class _UnderWay(Struct):
    """A write that was sent, and is not answered yet."""

    connection: Any
    writes: list[Write]
    refused: list[str] = field(default_factory=list)
    """The shards whose fence was not as expected."""
    commands: int = 0


def encode_fence(fence: Fence) -> bytes:
    return msgspec.json.encode(fence)


def encode_stats(stats: Mapping[str, int]) -> bytes:
    return orjson.dumps(stats, option=orjson.OPT_SORT_KEYS)
