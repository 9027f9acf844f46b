"""What a row runs in: one real broker or several, a real Valkey, processors as processes, a sender, readers, a judge.

To add a row, write a function in a module of `tests/chaos/rows/` (and name the module there):

    @row("F7", "Redis killed", load=Load(rate=300))
    def redis_killed(run: Run) -> None:
        run.start()                        # processors and sender; before it, `run.use(redis=...)` puts a proxy between
        for _ in run.times(20):            # fewer with --quick
            run.valkey.kill()
            run.count("kills")
            run.sleep(1)
            run.valkey.start()
            run.healed()                   # measures the time until all that was acknowledged is readable

`Run` has the tools: `fleet` (start, kill, stop, pause, resume processes named `context.1`), `broker`, `valkey`, `rng`,
`says(words)` counts lines of the processes' logs, `later(close)` cleans up. What a row returns from is judged: the
harness ends the load, waits for the drain, reads topics and Redis, and compares (`oracle.judge`). `expect(...)` adds
a condition of the row's own.
"""

from __future__ import annotations

import random
import re
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import orjson
import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from segue import runtime
from segue.embedded.valkey import EmbeddedValkey
from segue.settings import Settings
from tests.chaos.load import Load, Sender, Traffic
from tests.chaos.oracle import (
    Ledger,
    Letter,
    Observed,
    Sighting,
    Step,
    Verdict,
    Watch,
    all_expected,
    judge,
)
from tests.support.contexts import raw_contexts
from tests.support.kafka_broker import SMALL_JVM, KafkaBroker, free_ports
from tests.support.kafka_cluster import REPLICAS, KafkaCluster, advertised, listener
from tests.support.processes import Processes, without_topics
from tests.support.stack import eventually

BASE = Load()
FLEET = ("resolve.1", "resolve.2", "context.1", "context.2", "signals.1", "signals.2")
STUCK_S = 60.0
"""What stands still for so long will not come. As long as something moves it is waited for: how fast is not judged."""
LONGEST_S = 300.0
_READER_HZ = 20
_WATCHED = 40
_LOGGER = "-Dorg.slf4j.simpleLogger."
_TELLS = (
    f"{_LOGGER}showDateTime=true",
    f"{_LOGGER}dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    f"{_LOGGER}log.kafka.coordinator.transaction=info",
    f"{_LOGGER}log.org.apache.kafka.coordinator.transaction=info",
)
"""Lets a broker say when, and tell of transaction markers that it skips: one package in Scala, one in Java."""
_CHANNELS = re.compile(rb'"channels":({[^}]*})')
_REVISION = re.compile(rb'"revision":(\d+)')


@dataclass
class Row:
    """One row of the matrix."""

    name: str
    title: str
    do: Callable[[Run], None]
    load: Load
    fleet: tuple[str, ...]
    settings: dict[str, Any]
    heals_within_s: float
    of_the_matrix: bool = True


ROWS: dict[str, Row] = {}


def row(
    name: str,
    title: str,
    *,
    load: Load = BASE,
    fleet: Sequence[str] = FLEET,
    heals_within_s: float = 10.0,
    of_the_matrix: bool = True,
    **settings: Any,
) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Enter a function into the matrix. `settings` are Segue's, for this row."""

    def enter(do: Callable[[Run], None]) -> Callable[[Run], None]:
        assert name not in ROWS, f"two rows named {name}"
        ROWS[name] = Row(name, title, do, load, tuple(fleet), settings, heals_within_s, of_the_matrix)
        return do

    return enter


class Skipped(Exception):
    """This machine cannot bring the fault about. Says why."""


@dataclass
class Result:
    """What a row came to."""

    row: Row
    verdict: Verdict
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    skipped: str = ""
    """Why this machine cannot bring the fault about."""

    @property
    def ok(self) -> bool:
        return self.verdict.ok

    def figures(self) -> dict[str, Any]:
        """Everything counted, for a file."""
        return {"row": self.row.name, "seconds": self.seconds, "faults": self.counts, "ok": self.ok} | asdict(
            self.verdict
        )

    def made(self) -> dict[str, int]:
        """What was done, counted, and what is remarkable and no violation."""
        v = self.verdict
        apart = {"retries outside the window": v.outside, "untold": v.untold}
        return dict(self.counts) | {name: count for name, count in apart.items() if count}

    def line(self) -> str:
        """One line for one row."""
        if self.skipped:
            return f"{self.row.name:4} {self.row.title:34} SKIPPED: {self.skipped}"
        v, counts = self.verdict, " ".join(f"{name} {count}" for name, count in self.made().items())
        heal = "-" if v.heal_s is None else f"{v.heal_s:.1f} s"
        p99 = "-" if v.p99_ms is None else f"{v.p99_ms:.0f} ms"
        return (
            f"{self.row.name:4} {self.row.title:34} events {v.events:6} lost {v.lost} over {v.over} order {v.order} "
            f"contexts {v.contexts} counters {v.counters} missing {v.missing} unexpected {v.unexpected} "
            f"repeated {v.repeated} regressions {v.regressions} heal {heal:7} p99 {p99:8} "
            f"{'ok ' if self.ok else 'RED'} {counts}"
        )


class World:
    """The services that all rows share, fresh for each: one broker or several, one Valkey on a port that stays.

    `proxied` has two ports for each broker: of its second listener, and the one that its clients are told to come by.
    """

    def __init__(
        self, directory: Path | None = None, broker: KafkaBroker | KafkaCluster | None = None, brokers: int = 1
    ) -> None:
        self._given = (directory, broker)
        self._stack = ExitStack()
        self.brokers = len(broker.nodes) if isinstance(broker, KafkaCluster) else brokers

    def __enter__(self) -> Self:
        directory, broker = self._given
        try:
            kept = directory
            if directory is None:
                directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="segue-chaos-")))
            self.directory = directory
            ports = free_ports(2 * self.brokers)
            self.proxied = list(zip(ports[::2], ports[1::2], strict=True))
            self.broker = own_broker(self.proxied, kept) if broker is None else broker
            if broker is None:
                self._stack.callback(self.broker.close)
                self.broker.start()
            self.valkey = EmbeddedValkey(directory / "valkey", port=free_ports(1)[0])
            self._stack.callback(self.valkey.stop)
            self.valkey.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()

    def run(
        self,
        row: Row,
        *,
        seed: int = 1,
        quick: bool = False,
        unsafe: str | None = None,
        replay: bool = False,
        timed: bool = False,
        **load: Any,
    ) -> Result:
        """Run one row from an empty broker and an empty Valkey. `load` overrides parts of the row's load.

        With `timed` the row is red when it heals too slowly: for a machine that has nothing else to do.
        """
        self.broker.start()
        self.valkey.start()
        without_topics(self.broker.bootstrap)
        with redis.Redis.from_url(self.valkey.url) as client:
            client.flushall()
        directory = self.directory / f"{row.name}-{time.time_ns()}"
        directory.mkdir()
        began = time.monotonic()
        with Run(self, row, directory, seed, quick, unsafe, load) as run:
            try:
                row.do(run)
                verdict = run.conclude(replay, timed)
            except Skipped as why:
                return Result(row, Verdict(), Counter(), time.monotonic() - began, str(why))
            except Exception as error:  # the row cannot go on; others can
                traceback.print_exc()
                verdict = Verdict(events=run.ledger.total, notes=[f"{type(error).__name__}: {error}"])
        return Result(row, verdict, run.counts, time.monotonic() - began)


def own_broker(proxied: Sequence[tuple[int, int]], directory: Path | None = None) -> KafkaBroker | KafkaCluster:
    """A broker for each pair of ports: of a second listener, and of the proxy that its clients are told to come by.

    Their data and logs stay in `directory`, if there is one.
    """
    if len(proxied) > 1:
        return KafkaCluster(len(proxied), directory=directory, jvm_flags=(*SMALL_JVM, *_TELLS), proxied=proxied)
    ((second, by),) = proxied
    (port,) = free_ports(1)
    return KafkaBroker(
        directory=None if directory is None else directory / "node-1",
        port=port,
        jvm_flags=(*SMALL_JVM, *_TELLS),
        properties=advertised(port, by),
        more_listeners=listener(second),
    )


class Run:
    """One run of one row: the tools of its function."""

    def __init__(
        self,
        world: World,
        row: Row,
        directory: Path,
        seed: int,
        quick: bool,
        unsafe: str | None,
        load: dict[str, Any],
    ) -> None:
        self.world, self.row, self.quick, self.seed = world, row, quick, seed
        self.broker, self.valkey = world.broker, world.valkey
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.ledger, self.watch = Ledger(), Watch()
        self.settings = Settings(
            **(
                {
                    "data_dir": directory,
                    "redis": world.valkey.url,
                    "kafka": world.broker.bootstrap,
                    "partitions": 6 if quick else 12,
                    "event_partitions": 2,
                    "replication": min(REPLICAS, world.brokers),
                    # Small: what a fault leaves behind is many turns, each with the write before it under way (ADR 17).
                    "batch_records": 200,
                    # And who comes by rarely is read from Redis again, under backlog before that write (ADR 19).
                    "cache_mb": 1,
                }
                | row.settings
            )
        )
        self._unsafe = {} if unsafe is None else {"SEGUE_TEST_UNSAFE": unsafe}
        parts = ({"rate": 100, "customers": min(1000, row.load.customers)} if quick else {}) | load
        self.traffic = Traffic(Load(**(row.load.__dict__ | parts)), seed)
        self.sender = Sender(world.broker.bootstrap, self.traffic, self.ledger)
        self.store = Store(redis.Redis.from_url(world.valkey.url, socket_timeout=5))
        self.fleet = Processes(self.settings)
        self._stack = ExitStack()
        self._notes: list[str] = []
        self._heals: list[float] = []
        self._readers: Readers | None = None
        self.judge: Callable[[Ledger, Observed], Verdict] = judge
        self.complete: Callable[[Ledger, Observed], bool] = complete
        """Whether every signal is there that must come."""
        self.replayable = True
        """Whether the log still holds all that the state was made of."""
        self.earlier: Counter[str] = Counter()
        """Interactions of topics that are no more."""
        self.calm: list[tuple[float, float]] = []
        """Spans of time (monotonic) whose latency counts; by default none."""

    def __enter__(self) -> Self:
        log = runtime.open_log(self.settings)
        log.create_topics(runtime.all_topics(self.settings))
        log.close()
        self._stack.enter_context(self.fleet)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._stack:
            if self._readers is not None:
                self._readers.close()

    # --- what rows use

    def use(self, **settings: Any) -> None:
        """Change the processors' settings, say `redis` to the address of a proxy; before `start`."""
        self.settings = self.settings.model_copy(update=settings)
        self.fleet.settings = self.settings

    def turns_as_shipped(self) -> None:
        """In full, read as many records a turn as a processor does by itself; before `start`.

        For rows that leave tens of thousands of events to be worked off: in the small turns of the others it is their
        number that heals slowly.
        """
        if not self.quick:
            self.use(batch_records=Settings.model_fields["batch_records"].default)

    def later(self, close: Callable[[], object]) -> None:
        """Call `close` when the row is over, however it ends."""
        self._stack.callback(close)

    def start(self, **more: str) -> None:
        """Start processors, sender and readers; returns when the first events are readable.

        `more` are further environment variables of the processors.
        """
        self.fleet.start(*self.row.fleet, more=self._unsafe | more)
        self.sender.start()
        eventually(self._going, 90, "the first contexts")
        self._wait_readable(self.ledger.snapshot(), time.monotonic())
        self._readers = Readers(self.store, self.watch)

    def _going(self) -> bool:
        self.sender.check()
        ended = self.fleet.ended()
        assert not ended, f"processes ended while starting, see their logs: {ended}"
        return self.store.documents_there() >= 20

    def up(self, name: str, **more: str) -> None:
        """Start one process again, as `start` did; without the fail point of `start` unless named again."""
        self.fleet.start(name, more=self._unsafe | more)

    def ready(self, name: str) -> None:
        """Wait until a process reports that it works, as whoever restarts a deployment does."""
        since = time.time()
        eventually(lambda: self.store.reported(name) > since, 60, f"{name} at work")

    def count(self, what: str, more: int = 1) -> None:
        """Count a fault for the row's line."""
        self.counts[what] += more

    def times(self, full: int, quick: int | None = None) -> Iterator[int]:
        """As many turns as this run can afford."""
        return iter(range((quick or max(1, full // 5)) if self.quick else full))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def calmly(self, seconds: float) -> None:
        """Go on without faults; the latency of this time is what `p99` says."""
        began = time.monotonic()
        time.sleep(seconds)
        self.calm.append((began, time.monotonic()))

    def says(self, words: str) -> int:
        """How many lines of all the processes' logs hold these words."""
        lines = (line for path in self.settings.data_dir.glob("*.log") for line in path.open(errors="replace"))
        return sum(1 for line in lines if words in line)

    def restart_those_that_ended(self, **more: str) -> list[str]:
        """Start again what ended by itself. An exit with an error of its own makes the row red."""
        ended = self.fleet.ended()
        for name, code in ended.items():
            self.expect(code < 0, f"{name} ended by itself with code {code}")
            self.up(name, **more)
        return list(ended)

    def skip(self, why: str) -> NoReturn:
        """Leave the row out, visibly."""
        raise Skipped(why)

    def worst_ms(self) -> float:
        """The longest that an event waited to be readable, of the customers watched."""
        return self.watch.quantile_ms(self.ledger, 1.0, [(0.0, float("inf"))]) or 0.0

    def expect(self, true: bool, otherwise: str) -> None:
        """A condition of the row's own; the row is red without it."""
        if not true:
            self._notes.append(otherwise)

    def link(self) -> None:
        """Wait until what is acknowledged now is readable; from then on those customers' addresses may stand alone."""
        want = self.ledger.snapshot()
        self._wait_readable(want, time.monotonic())
        self.traffic.linked = set(want)

    def healed(self) -> float:
        """The fault is over: wait until what is acknowledged now is readable; the longest such time is reported."""
        began, want = time.monotonic(), self.ledger.snapshot()
        self._wait_readable(want, began)
        self._heals.append(time.monotonic() - began)
        return self._heals[-1]

    def _wait_readable(self, want: dict[str, int], began: float) -> None:
        missing, moved = -1, began
        while True:
            before, missing = missing, self.store.missing(want)
            if not missing:
                return
            now = time.monotonic()
            moved = now if missing != before else moved
            if now - moved > STUCK_S or now - began > LONGEST_S:
                self._notes.append(f"after {now - began:.0f} s {missing} events are still missing")
                return
            time.sleep(0.05)

    # --- the end

    def conclude(self, replay: bool, timed: bool) -> Verdict:
        """End the load, wait for the drain, judge; and, if asked, empty Redis and see that a replay gives the same."""
        for name, code in self.fleet.ended().items():
            self.expect(False, f"{name} ended by itself with code {code}")
        self.sender.finish(Topics(self.broker.bootstrap).read)
        self._wait_readable(self.ledger.snapshot(), time.monotonic())
        seen = self._drained()
        if self._readers is not None:
            self._readers.close()
            self._readers = None
        verdict = self.judge(self.ledger, seen)
        verdict.raise_to("regressions", len(self.watch.regressions), "; ".join(self.watch.regressions[:3]))
        verdict.rewinds = len(self.watch.rewinds)
        verdict.p99_ms = self.watch.quantile_ms(self.ledger, 0.99, self.calm)
        if self._heals:
            verdict.heal_s = max(self._heals)
            self.expect(
                not timed or verdict.heal_s <= self.row.heals_within_s,
                f"healed in {verdict.heal_s:.1f} s, not within {self.row.heals_within_s:g} s",
            )
        if replay and self.replayable:
            self._replay(seen)
        verdict.notes += self._notes
        return verdict

    def _drained(self) -> Observed:
        """Read everything, once every signal that must come has come, or has had its time."""
        topics = Topics(self.broker.bootstrap)
        have, moved = -1, time.monotonic()
        while True:
            seen = self.observe(topics)
            seen.interactions += self.earlier
            before, have = have, len({signal["signal_id"] for signal in seen.signals})
            moved = time.monotonic() if have != before else moved
            if self.complete(self.ledger, seen) or time.monotonic() - moved > STUCK_S:
                return seen
            time.sleep(0.2)

    def observe(self, topics: Topics) -> Observed:
        """What the topics and Redis hold now."""
        steps, signals, documents = topics.steps(), topics.signals(), self.store.documents()
        return Observed(topics.interactions(), steps, signals, topics.letters(), documents, self.store.stats())

    def _replay(self, seen: Observed) -> None:
        """Invariant of all: an empty Redis, filled from the log, holds the same documents, and nothing is emitted."""
        for name in self.fleet.running:
            self.fleet.stop(name)
        before, stood = self.store.raw(), self.store.offsets()
        self.store.client.flushall()
        self.fleet.start(*self.row.fleet)
        try:
            eventually(lambda: self._reached(stood), LONGEST_S, "the replay's end")
        except TimeoutError as error:
            self._notes.append(str(error))
            return
        after = self.store.raw()
        if after != before:
            other = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
            self._notes.append(f"a replay gave {len(other)} other documents")
        again = Topics(self.broker.bootstrap)
        if (len(again.steps()), len(again.signals())) != (len(seen.steps), len(seen.signals)):
            self._notes.append("a replay emitted")

    def _reached(self, stood: dict[bytes, int]) -> bool:
        time.sleep(0.05)
        have = self.store.offsets()
        return all(have.get(shard, 0) >= offset for shard, offset in stood.items())


def complete(ledger: Ledger, seen: Observed) -> bool:
    """Whether there are as many signals as must come."""
    return len({signal["signal_id"] for signal in seen.signals}) >= expected_of(ledger, seen.steps)


def expected_of(ledger: Ledger, steps: list[Step]) -> int:
    """How many signals must come of these steps."""
    applied: dict[str, list[Any]] = {}
    known: set[str] = set()
    for step in steps:
        event = ledger.believed(step.event_id)
        if event is not None and event.id not in known:
            known.add(event.id)
            applied.setdefault(event.customer, []).append(event)
    return all_expected(applied).total()


class Topics:
    """Reads whole topics as any consumer would: committed records only."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap

    def read(self, topic: str) -> list[Message]:
        """Every record, in the order of each partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "chaos.judge",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "log_level": 0,
            }
        )
        try:
            left = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
            found = []
            while left:
                for message in consumer.consume(5000, 0.5):
                    error = message.error()
                    if error is None:
                        found.append(message)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        left.discard(message.partition())
            return found
        finally:
            consumer.close()

    def interactions(self) -> Counter[str]:
        found = (orjson.loads(message.value()) for message in self.read("segue.interactions"))
        # The others are timers and steps of merges, or go on to whoever stands for their customer now.
        return Counter(record["entry"]["id"] for record in found if "entry" in record and "via" not in record)

    def steps(self) -> list[Step]:
        found = (orjson.loads(message.value()) for message in self.read("segue.journey-steps"))
        return [
            Step(
                step["customer_key"],
                step["revision"],
                step["entry"]["id"],
                step["entry"].get("actor", {}).get("kind") == "system",  # the load has no other systems
                next((fact["before"] for fact in step.get("facts", ()) if fact["fact"] == "customer.merged"), ""),
            )
            for step in found
            if "signals" not in step  # those are for the signals processor alone
        ]

    def signals(self) -> list[dict[str, Any]]:
        return [orjson.loads(message.value()) for message in self.read("segue.signals")]

    def letters(self) -> list[Letter]:
        found = []
        for message in self.read("segue.dead-letters"):
            said = {name: value.decode() for name, value in message.headers() or () if name.startswith("segue.err.")}
            origin = (said["segue.err.topic"], int(said["segue.err.partition"]), int(said["segue.err.offset"]))
            found.append(Letter(origin, message.key(), message.value(), said["segue.err.code"]))
        return found


class Store:
    """Reads Redis past every proxy, as a reader of the contexts would find it; waits out a Redis that is away."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._customers: dict[bytes, str] = {}

    def keys(self) -> list[bytes]:
        found: Any = self.client.keys("segue:*:ctx:*")
        return sorted(found)

    def documents_there(self) -> int:
        try:
            return len(self.keys())
        except redis.RedisError:
            return 0

    def raw(self) -> dict[bytes, bytes]:
        return raw_contexts(self.client, self.keys())

    def documents(self) -> list[dict[str, Any]]:
        return [orjson.loads(raw) for raw in self.raw().values()]

    def stats(self) -> Counter[str]:
        total: Counter[str] = Counter()
        keys: Any = self.client.keys("segue:*:stats:context")
        for key in keys:
            raw: Any = self.client.get(key)
            total.update(orjson.loads(raw))
        return total

    def epochs(self, processor: str) -> dict[bytes, int]:
        """The owner epochs of a processor's shards."""
        return {key: fence["epoch"] for key, fence in self._fences(processor).items()}

    def offsets(self) -> dict[bytes, int]:
        """How far the shards of every processor are."""
        return {key: fence["next_offset"] for key, fence in self._fences("*").items()}

    def _fences(self, processor: str) -> dict[bytes, dict[str, Any]]:
        keys: Any = self.client.keys(f"segue:*:fence:{processor}")
        raws: Any = self.client.mget(keys) if keys else []
        return {key: orjson.loads(raw) for key, raw in zip(keys, raws, strict=True)}

    def reported(self, name: str) -> float:
        """When (s since 1970) a process reported last that it has partitions."""
        raw: Any = self.client.hget("segue:metrics", name.replace(".", ":"))
        found = orjson.loads(raw) if raw else {}
        return found["at_ms"] / 1000 if found.get("owned") else 0.0

    def missing(self, want: dict[str, int]) -> int:
        """How many events the customers have fewer than wanted."""
        try:
            keys = self.keys()
            heads = self._heads(keys)
        except redis.RedisError:
            return sum(want.values())
        have = dict(zip((self._customer(key) for key in keys), heads, strict=True))
        return sum(max(0, count - have.get(customer, 0)) for customer, count in want.items())

    def _heads(self, keys: list[bytes]) -> list[int]:
        found: Any = self.client.mget(keys) if keys else []
        return [0 if raw is None else events_of(raw) for raw in found]

    def _customer(self, key: bytes) -> str:
        if key not in self._customers:
            raw: Any = self.client.get(key)
            self._customers[key] = orjson.loads(raw)["identifiers"][0]["value"] if raw else ""
        return self._customers[key]

    def look(self, keys: list[bytes]) -> list[tuple[str, Sighting]]:
        """The revisions of some customers and the epochs of their owners, read together."""
        fences = [key.split(b":ctx:")[0] + b":fence:context" for key in keys]
        found: Any = self.client.mget([*keys, *fences])
        at, half = time.monotonic(), len(keys)
        sighted = []
        for key, raw, fence in zip(keys, found[:half], found[half:], strict=True):
            epoch = None if fence is None else orjson.loads(fence)["epoch"]
            sighted.append((self._customer(key), Sighting(at, epoch, 0 if raw is None else revision_of(raw))))
        return sighted


def events_of(raw: bytes) -> int:
    """The events in a document; a session names its channels too, but in a list."""
    found = _CHANNELS.search(raw)
    return 0 if found is None else sum(orjson.loads(found[1]).values())


def revision_of(raw: bytes) -> int:
    found = _REVISION.search(raw)
    return 0 if found is None else int(found[1])


class Readers(threading.Thread):
    """A reader for every customer watched, twenty times a second."""

    def __init__(self, store: Store, watch: Watch) -> None:
        super().__init__(name="readers", daemon=True)
        self._store, self._watch = store, watch
        self._over = threading.Event()
        every = store.keys()
        self._keys = every[:: max(1, len(every) // _WATCHED)]
        self.start()

    def run(self) -> None:
        while not self._over.wait(1 / _READER_HZ):
            try:
                for customer, sighting in self._store.look(self._keys):
                    self._watch.add(customer, sighting)
            except redis.RedisError:
                continue

    def close(self) -> None:
        self._over.set()
        self.join(10)
