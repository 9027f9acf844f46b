"""The read side: everything that the API and the command line show, from Redis and nothing but Redis.

A query is a generator (`Queries`): it yields Redis commands, gets their replies, and returns its answer.
So the queries are written once and run by whoever has a connection: `Reader` with the blocking client,
the API with asyncio's (`api.doors`). One yield is one round trip.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import redis
from msgspec import Raw, Struct

from segue import metrics
from segue.core.context import whole
from segue.core.event import Identifier, Rejected
from segue.core.lineage import Kin
from segue.core.lines import BETWEEN
from segue.errors import StoreUnavailable
from segue.metrics import Snapshot
from segue.normalise import normalise
from segue.store.connect import reachable
from segue.store.identity import KEY_WIDTH, bucket
from segue.store.keys import LAYOUT, METRICS, Layout
from segue.store.shards import Fence
from segue.store.stats import added, described

T = TypeVar("T")
Commands = Sequence[tuple[str, ...]]
Query = Generator[Commands, list[Any], T]

LAYOUT_S = 3.0
"""How long the layout is believed: a rebuild's switch to a new layout is seen after at most this time."""
PROGRESS_S = 0.1
"""How long the progress is believed. Processors report it five times a second; an older one only makes
`as_of` say less than is true."""
CUSTOMER_KEY = "customer_key"
PROCESSORS = ("resolve", "context", "signals")

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONGEST = 256
_FIELD = "identifier"
_DOCUMENTS = "return {redis.call('LRANGE', KEYS[1], 0, -1), unpack(redis.call('MGET', unpack(KEYS, 2)))}"
"""A list and some strings as they stand at one moment, in one command: a pipeline costs as much again (`api.doors`)."""
_HEAD = 128
"""Bytes of a document before which its merges begin: they follow the key and the revision."""


class Freshness(NamedTuple):
    """Until when all events are in the answer (ms since 1970), and how long ago that was.

    0 and None while some processor has not reported for all of its partitions yet.
    """

    as_of_ms: int
    lag_ms: int | None


class View(NamedTuple):
    """What is known of one customer. `context` is the document with its timeline, `signals` a JSON array."""

    context: bytes | None
    signals: bytes
    fresh: Freshness
    signals_fresh: Freshness
    epoch: int = 0
    """The epoch of the owner who wrote the context. Within an epoch the revision never falls; a Redis that
    lost writes shows with a higher one."""
    customer_key: str = ""
    """Whose they are: of an absorbed customer's, the survivor's."""
    merging: bool = False
    """The customer is absorbed, and the survivor's document is not ready: this is the absorbed's, as it stood."""


class _Merged(Struct):
    kin: Kin | None = None


_NO_KIN = Kin()
_merged = msgspec.json.Decoder(_Merged)


def _kin_of(context: bytes | None) -> Kin | None:
    """What a document says of merges: next to nothing for the many that have none, as it stands in front."""
    if context is None or context.find(b'"kin":', 0, _HEAD) < 0:
        return None
    return _merged.decode(context).kin


class _Active(Struct):
    active: Raw = Raw(b"[]")


_signals = msgspec.json.Decoder(_Active)
_fence = msgspec.json.Decoder(Fence).decode
_NO_FENCE = Fence("", 0, 0)


def identifier_of(kind: str, value: str, region: str | None) -> Identifier | Rejected:
    """Check an identifier that somebody asks for and bring it into the index's spelling.

    The answer names what is wrong and never repeats the value: it is personal.
    """
    if not _TYPE.fullmatch(kind) or not value.strip():  # without a colon, `kind` is a value
        return Rejected("malformed_identifier", _FIELD, "write type:value, e.g. email:ana@example.com or user_id:4711")
    if len(value) > _LONGEST:
        return Rejected("malformed_identifier", _FIELD, f"the value has more than {_LONGEST} characters")
    if kind == CUSTOMER_KEY:
        key = value.strip().lower()
        if not _UUID.fullmatch(key):
            return Rejected("malformed_identifier", _FIELD, "a customer_key is a UUID of 36 characters")
        return Identifier(kind, key)
    usable = normalise((Identifier(kind, value),), region)
    if usable:
        return usable[0]
    expected = {"email": "an e-mail address", "phone": "a phone number with its country code, e.g. +442079460000"}
    return Rejected("unusable_identifier", _FIELD, f"not {expected.get(kind, 'a value that names anybody')}")


class Queries:
    """All reads, as generators. Holds what little is cached: the layout and the processors' progress."""

    def __init__(self, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._clock = clock
        self._layout: Layout | None = None
        self._layout_until = 0.0
        self._reached: dict[str, Fence] = {}
        self._progress: dict[str, int] = {}
        self._progress_until = 0.0

    def now_ms(self) -> int:
        return self._clock()

    def layout(self) -> Query[Layout]:
        """How customers are spread. Raises StoreUnavailable when no processor has laid anything out yet."""
        if self._layout is None or time.monotonic() > self._layout_until:
            (raw,) = yield [("GET", LAYOUT)]
            if raw is None:
                raise StoreUnavailable("no Segue has run on this Redis yet (no segue:layout)")
            self._layout = msgspec.json.decode(raw, type=Layout)
            self._layout_until = time.monotonic() + LAYOUT_S
        return self._layout

    def ping(self) -> Query[None]:
        """Nothing but a round trip: other answers may come from the cache."""
        yield [("PING",)]

    def find(self, identifier: Identifier) -> Query[str | None]:
        """The customer key that a checked identifier belongs to, None when nobody has used it.

        Others may have used it too: whoever shows a context asks `store.users`.
        """
        if identifier.type == CUSTOMER_KEY:
            return identifier.value
        layout = yield from self.layout()
        ref = f"{identifier.type}:{identifier.value}"
        (entry,) = yield [("GET", layout.owner(bucket(ref, layout.partitions), ref))]
        return None if entry is None else entry[:KEY_WIDTH].decode()

    def view(self, customer_key: str) -> Query[View]:
        """A customer's context and signals, and how fresh they are; an absorbed customer's are the survivor's.

        Until the survivor's document stands for the absorbed too, theirs is shown as it stood: never half a merge.
        Raises StoreUnavailable while Redis shows less than it showed before, and no owner has said so yet.
        """
        view = yield from self._document(customer_key)
        kin = _kin_of(view.context)
        if kin is None or kin.into is None:
            return view
        line = [(view, kin)]
        while kin.into is not None:
            view = yield from self._document(kin.into.survivor)
            kin = _kin_of(view.context) or _NO_KIN
            line.append((view, kin))
        standing = (view for view, kin in reversed(line) if customer_key in kin.keys)
        return next(standing, line[0][0]._replace(merging=True))

    def _document(self, customer_key: str) -> Query[View]:
        layout = yield from self.layout()
        context_shard, signals_shard = layout.context_shard(customer_key), layout.signals_shard(customer_key)
        fences = [layout.fence(context_shard, "context"), layout.fence(signals_shard, "signals")]
        seen = [self._reached.get(fence, _NO_FENCE) for fence in fences]
        # The progress first: what it covers is then in the documents read after it.
        ask = self._ask_progress(layout)
        found = yield [
            *ask,
            (
                "EVAL",
                _DOCUMENTS,
                "5",
                layout.timeline(context_shard, customer_key),
                layout.document(context_shard, "ctx", customer_key),
                layout.document(signals_shard, "sig", customer_key),
                *fences,
            ),
        ]
        if ask:
            self._take_progress(layout, found)
        entries, stored, state, *standing = found[-1]
        context = None if stored is None else whole(stored, BETWEEN.join(entries))
        fence, _ = [self._not_less(*each) for each in zip(fences, standing, seen, strict=True)]
        signals = b"[]" if state is None else bytes(_signals.decode(state).active)
        fresh = self._fresh("resolve", "context"), self._fresh(*PROCESSORS)
        return View(context, signals, *fresh, fence.epoch, customer_key)

    def _not_less(self, key: str, raw: bytes | None, seen: Fence) -> Fence:
        """The fence, if it shows no less than was `seen` before it was asked for: many ask at once."""
        found = _NO_FENCE if raw is None else _fence(raw)
        if _less(found, seen):
            raise StoreUnavailable("Redis lost writes; the contexts are being restored from the log")
        if not _less(found, self._reached.get(key, _NO_FENCE)):
            self._reached[key] = found
        return found

    def freshness(self, *processors: str) -> Query[Freshness]:
        """Until when these processors (by default resolve and context) have applied everything."""
        layout = yield from self.layout()
        ask = self._ask_progress(layout)
        if ask:
            self._take_progress(layout, (yield ask))
        return self._fresh(*(processors or ("resolve", "context")))

    def snapshots(self) -> Query[list[Snapshot]]:
        """What every living process last said about itself."""
        (found,) = yield [("HGETALL", METRICS)]
        now = self._clock()
        every = [metrics.decode(raw) for _, raw in sorted(found.items())]
        return [snapshot for snapshot in every if now - snapshot.at_ms <= metrics.STALE_MS]

    def info(self) -> Query[dict[str, Any]]:
        """What Redis says of its memory, its disk and what it evicted."""
        sections = yield [("INFO", section) for section in ("memory", "stats", "persistence")]
        return {name: value for section in sections for name, value in section.items()}

    def stats(self) -> Query[dict[str, Any]]:
        """All counters, added up over the shards (`store.stats`)."""
        layout = yield from self.layout()
        members = yield [("SMEMBERS", layout.shards(processor)) for processor in PROCESSORS]
        totals = []
        for processor, shards in zip(PROCESSORS, members, strict=True):
            commands = [("GET", layout.stats(shard.decode(), processor)) for shard in sorted(shards)]
            totals.append(added((yield commands) if commands else ()))
        return described(*totals)

    def _ask_progress(self, layout: Layout) -> Commands:
        if time.monotonic() < self._progress_until:
            return []
        return [
            *(("HGETALL", layout.progress(processor)) for processor in PROCESSORS),
            ("SMEMBERS", layout.shards("resolve")),
        ]

    def _take_progress(self, layout: Layout, found: list[Any]) -> None:
        """Of each processor, the shard that is furthest behind. resolve has a shard per event partition."""
        shards = {
            "resolve": found[len(PROCESSORS)],
            "context": _numbered(layout.partitions),
            "signals": _numbered(layout.step_partitions),
        }
        for processor, reported in zip(PROCESSORS, found, strict=False):
            self._progress[processor] = _oldest(reported, shards[processor])
        self._progress_until = time.monotonic() + PROGRESS_S

    def _fresh(self, *processors: str) -> Freshness:
        as_of = min(self._progress.get(processor, 0) for processor in processors)
        return Freshness(as_of, max(0, self._clock() - as_of) if as_of else None)


def _less(found: Fence, seen: Fence) -> bool:
    """Whether a fence shows less than another did, with no new owner to answer for it."""
    same_topic = found is _NO_FENCE or found.topic_id == seen.topic_id
    return same_topic and found.next_offset < seen.next_offset and found.epoch <= seen.epoch


def _numbered(count: int) -> list[bytes]:
    return [str(shard).encode() for shard in range(count)]


def _oldest(reported: dict[bytes, bytes], shards: Iterable[bytes]) -> int:
    """The earliest of the shards' times; 0 when one of them has not reported yet, or there is none."""
    return min((int(reported.get(shard, 0)) for shard in shards), default=0)


class Reader:
    """The queries over a blocking client. `region` reads phone numbers written without a country code.

    Every method raises StoreUnavailable when Redis is away or holds no layout yet.
    """

    def __init__(self, client: redis.Redis, region: str | None = None) -> None:
        self._redis, self._region = client, region
        self._queries = Queries()

    @property
    def layout(self) -> Layout:
        return self._run(self._queries.layout())

    def find(self, kind: str, value: str) -> str | None:
        """The customer key of an identifier; None when nobody has used it, or nobody can."""
        identifier = identifier_of(kind, value, self._region)
        return None if isinstance(identifier, Rejected) else self._run(self._queries.find(identifier))

    def run(self, query: Callable[[Queries], Query[T]]) -> T:
        """The answer of a query of another module's."""
        return self._run(query(self._queries))

    def view(self, customer_key: str) -> View:
        """What is known of a customer, and how fresh it is."""
        return self._run(self._queries.view(customer_key))

    def context(self, customer_key: str) -> bytes | None:
        """The context document with its timeline, in JSON."""
        return self.view(customer_key).context

    def signals(self, customer_key: str) -> bytes:
        """The customer's latest signals, oldest first, as a JSON array."""
        return self.view(customer_key).signals

    def freshness(self, *processors: str) -> Freshness:
        return self._run(self._queries.freshness(*processors))

    def snapshots(self) -> list[Snapshot]:
        return self._run(self._queries.snapshots())

    def info(self) -> dict[str, Any]:
        return self._run(self._queries.info())

    def stats(self) -> dict[str, Any]:
        return self._run(self._queries.stats())

    def _run(self, query: Query[T]) -> T:
        try:
            commands = next(query)
            while True:
                with reachable():
                    replies = self._replies(commands)
                commands = query.send(replies)
        except StopIteration as done:
            answer: T = done.value
            return answer

    def _replies(self, commands: Commands) -> list[Any]:
        if len(commands) == 1:
            return [self._redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
        with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipe.execute()
