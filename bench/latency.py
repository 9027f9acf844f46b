"""Event to readable at a steady rate, as the processors measure it and as a reader from outside sees it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice

import redis
from confluent_kafka import Producer

from bench.load import customer_key, events
from bench.report import Report, Row, progress
from bench.stack import started
from segue import metrics, runtime
from segue.core.partition import partition_of
from segue.log.kafka_transactions import produce
from segue.log.port import Output
from segue.settings import Settings
from segue.store.connect import layout
from segue.store.keys import METRICS
from segue.topics import PRODUCER
from tests.support.processes import environment

WARM_UP_S = 45
"""A broker's JIT compiler needs it on two cores that are all in use; before, latencies are many times higher."""
CUSTOMERS = 5000
TICK_S = 0.01
LOOK_S = 0.01
"""Between two looks of the watcher; more often, and it slows down what it watches."""
LATEST = 5
"""So many entries of a timeline it looks at: a customer's share of a backlog of seconds."""
PATIENCE_S = 30


def latency(report: Report, kind: str, rates: Sequence[int], seconds: int, partitions: int) -> None:
    """Pace events through the whole pipeline and read the latency that the processors measured."""
    section = f"latency, {kind} log: event to readable, through resolve and context"
    with started(kind, partitions=partitions, event_partitions=min(partitions, 2)) as stack, processors(stack.settings):
        settings = stack.settings
        first = pace(settings, events(1000 * WARM_UP_S, CUSTOMERS, "paced"), 1000, WARM_UP_S, "warming up")
        for rate in rates:
            before = _buckets(settings)
            with Watcher(settings) as watcher:
                # Made beforehand: who invents events at this rate takes a tenth of the cores from who is measured.
                made = list(events(rate * seconds, CUSTOMERS, "paced", first))
                source = watcher.marking(iter(made), first)
                sent = pace(settings, source, rate, seconds, f"{rate:,} ev/s")
                first += sent
                time.sleep(2)
            after = _buckets(settings)
            row: Row = {"partitions": partitions, "paced ev/s": rate, "sent": sent}
            for name, wanted in (
                ("context", {"p50": 0.5, "p95": 0.95, "p99": 0.99}),
                ("signals", {"signals p95": 0.95}),
            ):
                spent = [b - a for a, b in zip(before[name], after[name], strict=True)]
                found = metrics.quantiles(spent, tuple(wanted.values()))
                row |= {f"{label} ms": q for label, q in zip(wanted, found, strict=True)}
            report.add(section, row | watcher.found())
    report.show(section)


def processors(settings: Settings) -> AbstractContextManager[None]:
    """All processors as processes of their own."""
    return running(settings, [("segue", "run", name) for name in runtime.PROCESSORS])


@contextmanager
def running(settings: Settings, modules: Sequence[Sequence[str]]) -> Iterator[None]:
    """Modules with their arguments, each as a process."""
    children = [subprocess.Popen([sys.executable, "-m", *module], env=environment(settings)) for module in modules]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(20)


def pace(settings: Settings, source: Iterator[Output], rate: int, seconds: int, label: str) -> int:
    """Send at a steady rate, every 10 ms what is due, without waiting for answers; returns how many."""
    send, finish = _sender(settings)
    total = rate * seconds
    sent, began = 0, time.perf_counter()
    with progress() as bars:
        task = bars.add_task(label, total=total)
        while sent < total:
            due = min(total, int((time.perf_counter() - began) * rate) + 1)
            if due > sent:
                send(islice(source, due - sent))
                sent = due
                bars.update(task, completed=sent)
            time.sleep(TICK_S)
    finish()
    return sent


def _sender(settings: Settings) -> tuple[Callable[[Iterator[Output]], None], Callable[[], object]]:
    """A function that sends, and one that waits until everything is acknowledged."""
    if settings.kafka is None:
        log = runtime.open_log(settings)
        return log.append, log.close
    producer = Producer({"bootstrap.servers": settings.kafka, "log_level": 2, "linger.ms": 2, **PRODUCER})

    def send(outputs: Iterator[Output]) -> None:
        for output in outputs:
            produce(producer, output)
        producer.poll(0)

    return send, producer.flush


class Watcher:
    """Reads the documents of marked events until each shows its event: what a reader sees, from send to readable.

    It has nothing from the processors, so it tells whether what they measure is true. An event every `every_s`.
    """

    def __init__(self, settings: Settings, every_s: float = 0.1) -> None:
        self._every_s = every_s
        self._client = runtime.open_redis(settings)
        self._layout = layout(self._client, settings.partitions)
        self._waiting: dict[bytes, tuple[str, float]] = {}
        self.took_ms: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def marking(self, source: Iterator[Output], first: int) -> Iterator[Output]:
        """Pass events on, and watch one now and then. `first` is the number of the first."""
        marked = 0.0
        for n, output in enumerate(source, first):
            if time.perf_counter() >= marked + self._every_s:
                marked = time.perf_counter()
                key = customer_key(n % CUSTOMERS)
                shard = str(partition_of(key.encode(), self._layout.partitions))
                self._waiting[f'"paced-{n:09d}"'.encode()] = self._layout.timeline(shard, key), marked
            yield output

    def _watch(self) -> None:
        while not self._stop.is_set():
            waiting = dict(self._waiting)
            if waiting:
                with self._client.pipeline(transaction=False) as pipe:
                    for key, _ in waiting.values():
                        pipe.lrange(key, -LATEST, -1)
                    found = pipe.execute()
                now = time.perf_counter()
                for (mark, (_, since)), entries in zip(waiting.items(), found, strict=True):
                    if any(mark in entry for entry in entries):
                        self.took_ms.append((now - since) * 1000)
                        del self._waiting[mark]
            time.sleep(LOOK_S)

    def settle(self) -> None:
        """Return when every marked event was seen, or waited for long enough."""
        until = time.monotonic() + PATIENCE_S
        while self._waiting and time.monotonic() < until:
            time.sleep(0.05)

    def found(self) -> Row:
        """Quantiles of what was seen; events that never showed are counted."""
        if len(self.took_ms) < 20:
            return {"seen from outside p50 ms": None}
        cut = statistics.quantiles(self.took_ms, n=100)
        seen: Row = {"seen from outside p50 ms": cut[49], "seen p95 ms": cut[94]}
        return seen | ({"never seen": len(self._waiting)} if self._waiting else {})


def _buckets(settings: Settings) -> dict[str, list[int]]:
    """Latency bucket counts by processor."""
    client = redis.Redis.from_url(settings.redis or "")
    found = [metrics.decode(raw) for raw in client.hvals(METRICS)]  # type: ignore[union-attr, arg-type]
    empty = [0] * (len(metrics.BOUNDS_MS) + 1)
    return {name: metrics.merged([s for s in found if s.processor == name]) or empty for name in runtime.PROCESSORS}
