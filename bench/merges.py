"""Merges: how soon readers see one, what folding costs, and what a storm of them does to everybody else."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import orjson
from confluent_kafka import Producer

from bench.folding import folding
from bench.latency import CUSTOMERS, Watcher, pace, processors
from bench.load import events
from bench.report import Report, Row
from bench.stack import started
from segue import runtime
from segue.core import identity
from segue.core.event import Identifier
from segue.core.identity import MAX_ABSORBED
from segue.log.kafka_transactions import produce
from segue.log.port import Output
from segue.settings import Settings
from segue.store.connect import layout
from segue.store.reader import Reader
from segue.topics import IDENTITY, event_topic

SEEN, OTHERS = "merges: visible to readers", "merges: event to readable of other customers"
RATE = 2000
"""Events a second of other customers."""
WARM_UP_S, CALM_S, SEEN_S, STORM_S = 30, 20, 30, 60
STORM = 1000
SEEN_PER_S = 8
EACH = 3
"""Events of each customer before the merge."""
LOOK_EVERY_S = 0.01
HEAD = 1000
"""Bytes of a document within which it says whom it stands for."""
PATIENCE_S = 30

Who = tuple[str, str]
"""An identifier: type and value."""
Pair = tuple[Who, Who]
PERSON: Who = ("user_id", "storm")


def merges(report: Report) -> None:
    """All of it, on Kafka, every processor a process."""
    folding(report)
    couples = [_pair(n) for n in range(SEEN_PER_S * SEEN_S + STORM)]
    into_one = [(PERSON, ("cookie_id", f"storm-{n}")) for n in range(STORM)]
    phases: list[Phase] = []
    with started("kafka") as stack, processors(stack.settings), Run(stack.settings) as run:
        run.first_seen([*couples, *into_one])
        for name, seconds, pairs in (
            ("calm", CALM_S, []),
            ("a few pairs", SEEN_S, couples[:-STORM]),
            ("storm into one", STORM_S, into_one),
            ("calm", CALM_S, []),
            ("storm of pairs", STORM_S, couples[-STORM:]),
            ("calm", CALM_S, []),
        ):
            phases.append(run.phase(name, seconds, pairs))
            _told(report, phases[-1])
        report.note(OTHERS, _came_of(stack.settings))
    calm = _quantiles([took for phase in phases if phase.name == "calm" for took in phase.took_ms])
    report.note(OTHERS, f"calm, all of it: p99 {calm['p99 ms']:.0f} ms; of that,")
    for phase in phases:
        if phase.name.startswith("storm"):
            report.note(OTHERS, f"{phase.name}: {_quantiles(phase.took_ms)['p99 ms'] / calm['p99 ms']:.2f} times")
    report.note(
        SEEN, "from the acknowledgement of the event that names both until both sides' readers get one customer"
    )
    report.show(SEEN)
    report.show(OTHERS)


def _told(report: Report, phase: Phase) -> None:
    row: Row = {"phase": phase.name, "merges/s": phase.linker.per_s}
    report.add(OTHERS, row | {"looked at": len(phase.took_ms)} | _quantiles(phase.took_ms))
    if phase.linker.took_ms:
        report.add(SEEN, row | phase.linker.found())


def _quantiles(took_ms: list[float]) -> dict[str, float]:
    if len(took_ms) < 100:
        raise RuntimeError(f"the machine does not keep up: {len(took_ms)} events were seen; try it alone")
    cut = statistics.quantiles(took_ms, n=100)
    return {"p50 ms": cut[49], "p95 ms": cut[94], "p99 ms": cut[98]}


def _pair(n: int) -> Pair:
    return ("user_id", f"pair-{n}"), ("cookie_id", f"pair-{n}")


def _came_of(settings: Settings) -> str:
    """What resolve made of the storm into one person, as it stands in the log."""
    log = runtime.open_log(settings)
    found: Counter[str] = Counter()
    for record in log.read(IDENTITY):
        said = orjson.loads(record.value() or b"{}")
        if said["kind"] in ("merge", "candidate") and said["event_id"].startswith("link-storm"):
            found[said["kind"] + (f" ({said['reason']})" if said.get("reason") else "")] += 1
    log.close()
    told = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
    return f"of {STORM:,} into one, where {MAX_ABSORBED} is the most: {told}"


class Run:
    """Others' events and, beside them, phases of merges."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._sent = settings, 0
        self._producer = Producer(
            {"bootstrap.servers": settings.kafka or "", "log_level": 2, "linger.ms": 2, "partitioner": "murmur2_random"}
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.flush(10)

    def first_seen(self, pairs: list[Pair]) -> None:
        """Everybody comes by: the other customers, who warm the servers up, and both sides of each pair."""
        everybody = list(dict.fromkeys(who for pair in pairs for who in pair))
        for turn in range(EACH):
            for who in everybody:
                produce(self._producer, _event(f"first-{turn}-{who[0]}-{who[1]}", who))
                self._producer.poll(0)
        self._producer.flush(60)
        self.phase("warming up", WARM_UP_S, [])

    def phase(self, name: str, seconds: int, pairs: list[Pair]) -> Phase:
        """Send the events that link `pairs`, at a steady pace, for so many seconds."""
        count, linker = RATE * seconds, Linker(self._settings, self._producer, pairs, seconds)
        with Watcher(self._settings, every_s=0.05) as watcher:
            made = list(events(count, CUSTOMERS, "paced", self._sent))  # beforehand, as in bench.latency
            source = watcher.marking(iter(made), self._sent)
            with linker:
                self._sent += pace(self._settings, source, RATE, seconds, name)
                linker.settle()
            watcher.settle()
        return Phase(name, watcher.took_ms, linker)


class Phase(NamedTuple):
    """What was measured in one phase. `took_ms`: from sending an event of another customer to its being readable."""

    name: str
    took_ms: list[float]
    linker: Linker


class Linker:
    """Links pairs at a steady pace, and looks by either identifier until both show one customer.

    A pair of the person of the storm is not looked at: most of these must not be merged.
    """

    def __init__(self, settings: Settings, producer: Producer, pairs: list[Pair], seconds: int) -> None:
        self._producer, self._seconds, self.pairs = producer, seconds, pairs
        self._redis = runtime.open_redis(settings)
        self._reader = Reader(self._redis)
        self._layout = layout(self._redis, settings.partitions)
        self.waiting: deque[tuple[Pair, float]] = deque()
        self.took_ms: list[float] = []
        self._sent = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="linker", daemon=True)

    def __enter__(self) -> Linker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def settle(self) -> None:
        """Return when every merge was seen, or waited for long enough."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and not (self._sent.is_set() and not self.waiting):
            time.sleep(0.05)

    @property
    def per_s(self) -> float:
        return len(self.pairs) / self._seconds

    def found(self) -> Row:
        found: Row = {"merges": len(self.took_ms), **_quantiles(self.took_ms)}
        return found | ({"never seen": len(self.waiting)} if self.waiting else {})

    def _work(self) -> None:
        began, left = time.perf_counter(), iter(self.pairs)
        given = 0
        while not self._stop.is_set():
            due = min(len(self.pairs), int((time.perf_counter() - began) * self.per_s) + 1)
            for pair in (next(left) for _ in range(due - given)):
                self._link(pair)
            given = due
            self._producer.poll(LOOK_EVERY_S)
            if given == len(self.pairs) and self._producer.flush(1) == 0:
                self._sent.set()
            self._look()

    def _link(self, pair: Pair) -> None:
        acknowledged: Callable[..., None] = lambda error, _: self._acknowledged(pair, error)  # noqa: E731
        output = _event(f"link-{pair[1][1]}", *pair)
        self._producer.produce(output.topic, output.value, output.key, on_delivery=acknowledged)

    def _acknowledged(self, pair: Pair, error: object) -> None:
        if error is not None:
            raise RuntimeError(f"a linking event was not taken: {error}")
        if pair[0] != PERSON:
            self.waiting.append((pair, time.perf_counter()))

    def _look(self) -> None:
        """First at all documents at once, because looking must not cost what is measured; then as a reader does."""
        waiting = list(self.waiting)
        found = self._redis.mget([self._document(who) for pair, _ in waiting for who in pair]) if waiting else []
        raws = iter(found)  # type: ignore[arg-type]
        for pair, since in waiting:
            heads = [(next(raws) or b"")[:HEAD] for _ in pair]
            if any(b'"absorbed":[{' in head for head in heads) and self._are_one(pair):
                self.took_ms.append((time.perf_counter() - since) * 1000)
                self.waiting.remove((pair, since))

    def _document(self, who: Who) -> str:
        key = identity.new_key(Identifier(*who))
        return self._layout.document(self._layout.context_shard(key), "ctx", key)

    def _are_one(self, pair: Pair) -> bool:
        return len({self._reader.view(self._reader.find(*who) or "").customer_key for who in pair}) == 1


def _event(name: str, *who: Who) -> Output:
    """A page view now; a person signs in, a cookie is claimed."""
    given = [
        {"type": kind, "value": value, "level": "verified" if kind == "user_id" else "claimed"} for kind, value in who
    ]
    event = {
        "specversion": "1.0", "id": name, "source": "/shop", "type": "page.viewed", "channel": "web",
        "time": datetime.now(UTC).isoformat(), "data": {"identifiers": given},
    }  # fmt: skip
    return Output(event_topic("web"), ":".join(who[0]).encode(), orjson.dumps(event))
