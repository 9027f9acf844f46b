"""Throughput: processors against the bare loop, with small and with full contexts, with and without the guarantee."""

from __future__ import annotations

import statistics

from bench.load import events, interactions
from bench.prefill import fill
from bench.report import Report, Row, console
from bench.stack import Found, Stack, started
from segue import runtime

BATCH = 5000
GROUP = "segue.context"
GUARANTEES = ("", "transaction", "fence", "transaction,fence")


def throughput(report: Report, kind: str, count: int, customers: int) -> None:
    """Fill the event topics, then let each processor work through its input, between two bare loops."""
    section = f"throughput, {kind} log"
    with started(kind, batch_records=BATCH) as stack:
        stack.fill("writing events", events(count, customers, "bench"), count)
        for name in runtime.PROCESSORS:
            _between_bare_loops(report, section, stack, name, count)
    report.show(section)


def full(report: Report, count: int, customers: int, hot: int) -> None:
    """Each event touches another customer, whose context is full; and `hot` customers beside it, to compare."""
    section = "full contexts"
    with started("kafka", batch_records=BATCH) as stack:
        stack.fill("writing interactions", interactions(count, hot, "hot"), count)
        _between_bare_loops(report, section, stack, "context", count, label=f"{hot:,} hot, contexts growing")
    with started("kafka", batch_records=BATCH) as stack:
        console.print(f"[dim]writing {customers:,} full contexts to the store ...[/]")
        first, size = fill(stack.settings, customers)
        report.note(section, f"a full context is {size:,.0f} bytes")
        stack.fill("writing interactions", interactions(2 * customers, customers, "full", first), 2 * customers)
        # Who come by in turn always find their document gone from a cache that does not hold all.
        for label, cache, warm in (("as shipped", 200, 0.05), ("with a cache that holds all", 8000, 0.5)):
            stack.forget(GROUP)
            fill(stack.settings, customers)
            name = f"{customers:,} full, {label}"
            _between_bare_loops(report, section, stack, "context", 2 * customers, label=name, cache_mb=cache, warm=warm)
    report.show(section)


def _between_bare_loops(
    report: Report,
    section: str,
    stack: Stack,
    name: str,
    count: int,
    *,
    label: str = "",
    warm: float = 0.05,
    **more: object,
) -> None:
    settings = stack.settings.model_copy(update=more)
    before = stack.worker(f"bare:{name}", count)
    found = stack.worker(name, count, settings=settings, warm=warm)
    after = stack.worker(f"bare:{name}", count)
    bare = statistics.mean((before["per_s"], after["per_s"]))
    row: Row = {"processor": name} | ({"customers": label} if label else {})
    report.add(section, row | {"bare loop ev/s": bare} | _speed(found) | {"of the bare loop": found["per_s"] / bare})


def _speed(found: Found) -> Row:
    return {
        "ev/s": found["per_s"],
        "CPU µs/event": found["cpu_us"],
        "servers' µs/event": found.get("servers_us"),
        "RSS MB": found["rss_mb"],
    }


def guarantee(report: Report, count: int, customers: int, repeat: int) -> None:
    """*context* with and without transaction and fence, in turn, `repeat` times; medians."""
    section = "cost of the guarantee"
    found: dict[str, list[Found]] = {without: [] for without in GUARANTEES}
    with started("kafka", batch_records=BATCH) as stack:
        stack.fill("writing interactions", interactions(count, customers, "sure"), count)
        stack.worker("context", count)  # not counted: until then the broker compiles
        for n in range(repeat):
            for without in GUARANTEES if n % 2 == 0 else reversed(GUARANTEES):
                stack.forget(GROUP)
                found[without].append(stack.worker("context", count, without=without, warm=0.1))
    whole = _median(found[""])
    for without, runs in found.items():
        middle = _median(runs)
        row: Row = {"without": without or "(nothing: as shipped)"} | _speed(middle)
        row["this costs, time %"] = 100 * (middle["per_s"] / whole["per_s"] - 1)
        row["own CPU %"] = 100 * (whole["cpu_us"] / middle["cpu_us"] - 1)
        if "servers_us" in middle:
            row["all CPU %"] = 100 * (_all_us(whole) / _all_us(middle) - 1)
        report.add(section, row)
    report.show(section)


def _all_us(found: Found) -> float:
    return found["cpu_us"] + found["servers_us"]


def _median(runs: list[Found]) -> Found:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}
