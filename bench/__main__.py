"""`make bench`: each processor against the bare consume-and-decode loop, and event-to-readable latency."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import redis
from rich.console import Console
from rich.table import Table

from bench.load import events
from bench.stack import fresh, worker
from segue import metrics, runtime
from segue.settings import Settings
from segue.store.keys import METRICS
from tests.support.processes import environment

console = Console(width=100)

WARM_UP_S = 45
"""A broker's JIT compiler needs it on two cores that are all in use; before, latencies are many times higher."""


def throughput(stack: str, count: int, customers: int) -> None:
    """Fill the event topics, then let each processor work through its input, between two bare loops."""
    table = Table("processor", "bare loop ev/s", "processor ev/s", "ratio", "CPU µs/event", title=f"{stack} log")
    for column in table.columns[1:]:
        column.justify = "right"
    with fresh(stack, batch_records=5000) as settings:
        console.print(f"[dim]{stack}: writing {count:,} events of {customers:,} customers ...[/]")
        log, source = runtime.open_log(settings), events(count, customers, "bench")
        while chunk := list(islice(source, 5000)):
            log.append(chunk)
        for name in runtime.PROCESSORS:
            before = worker(settings, f"bare:{name}", count)
            found = worker(settings, name, count)
            after = worker(settings, f"bare:{name}", count)
            bare = statistics.mean((before["per_s"], after["per_s"]))
            ratio = found["per_s"] / bare
            table.add_row(name, f"{bare:,.0f}", f"{found['per_s']:,.0f}", f"{ratio:.3f}", f"{found['cpu_us']:.1f}")
            console.print(f"[dim]{stack}: {name} {found['per_s']:,.0f} ev/s, {ratio:.3f} of the bare loop[/]")
    console.print(table)


@contextmanager
def processors(settings: Settings) -> Iterator[None]:
    """All processors as processes of their own."""
    children = [
        subprocess.Popen([sys.executable, "-m", "segue", "run", name], env=environment(settings))
        for name in runtime.PROCESSORS
    ]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(20)


def latency(stack: str, rates: Sequence[int], seconds: int) -> None:
    """Pace events through the whole pipeline and read the latency that the processors measured."""
    table = Table("paced ev/s", "sent", "p50 ms", "p95 ms", "p99 ms", "signals p95 ms", title=f"{stack}: to readable")
    for column in table.columns:
        column.justify = "right"
    with fresh(stack) as settings, processors(settings):
        console.print(f"[dim]{stack}: warming up for {WARM_UP_S} s[/]")
        first = pace(settings, 1000, WARM_UP_S, 0)
        for rate in rates:
            before = _buckets(settings)
            sent = pace(settings, rate, seconds, first)
            first += sent
            time.sleep(2)
            after = _buckets(settings)
            cells = [f"{rate:,}", f"{sent:,}"]
            for name, wanted in (("context", (0.5, 0.95, 0.99)), ("signals", (0.95,))):
                spent = [b - a for a, b in zip(before[name], after[name], strict=True)]
                cells += ["-" if q is None else f"{q:.1f}" for q in metrics.quantiles(spent, wanted)]
            table.add_row(*cells)
            console.print(f"[dim]{stack}: {rate}/s: p50, p95, p99 = {', '.join(cells[2:5])} ms[/]")
    console.print(table)


def pace(settings: Settings, rate: int, seconds: int, first: int) -> int:
    """Append at a steady rate, every 10 ms what is due; returns how many."""
    log = runtime.open_log(settings)
    total = rate * seconds
    source = events(total, 5000, "paced", first)
    sent, began = 0, time.perf_counter()
    while sent < total:
        due = min(total, int((time.perf_counter() - began) * rate) + 1)
        if due > sent:
            log.append(list(islice(source, due - sent)))
            sent = due
        time.sleep(0.01)
    log.close()
    return sent


def _buckets(settings: Settings) -> dict[str, list[int]]:
    """Latency bucket counts by processor."""
    client = redis.Redis.from_url(settings.redis or "")
    found = [metrics.decode(raw) for raw in client.hvals(METRICS)]  # type: ignore[union-attr, arg-type]
    empty = [0] * (len(metrics.BOUNDS_MS) + 1)
    return {name: metrics.merged([s for s in found if s.processor == name]) or empty for name in runtime.PROCESSORS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--stack", choices=("kafka", "embedded", "both"), default="both")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--customers", type=int, default=5000)
    parser.add_argument("--rates", type=int, nargs="*", default=[1000])
    parser.add_argument("--seconds", type=int, default=20, help="of each paced run")
    parser.add_argument("--only", choices=("throughput", "latency"))
    given = parser.parse_args()
    for stack in ("kafka", "embedded") if given.stack == "both" else (given.stack,):
        if given.only != "latency":
            throughput(stack, given.events, given.customers)
        if given.only != "throughput":
            latency(stack, given.rates, given.seconds)


if __name__ == "__main__":
    main()
