"""Rows about what is sent: wrong clocks, retries, disorder, late and bad records, large ones, one busy customer."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from tests.chaos.harness import Run, row
from tests.chaos.load import HOT, Load
from tests.chaos.oracle import DAY, MINUTE

_AHEAD = {"web": 120 * MINUTE, "app": -120 * MINUTE, "chat": 3 * DAY}


def wrong_clocks(channel: str) -> int:
    """The web's clock is two hours ahead, the app's two behind, chat's three days ahead; voice is right."""
    return _AHEAD.get(channel, 0)


def kills(run: Run, full: int, quick: int) -> None:
    """So that what is sent meets restarts too."""
    for _ in run.times(full, quick):
        run.sleep(run.rng.uniform(1, 3))
        name = run.rng.choice(run.fleet.running)
        run.fleet.kill(name)
        run.up(name)
        run.count("kills")
    run.healed()


@row("F15", "senders' clocks wrong", load=Load(skew=wrong_clocks, age_ms=0))
def clock_skew(run: Run) -> None:
    run.start()
    kills(run, 15, 3)


@row("F16", "retries, one to five of each event", load=Load(retries=0.6, most_retries=5))
def retries(run: Run) -> None:
    run.start()
    kills(run, 15, 3)
    run.counts["retries"] = run.ledger.total - len(run.ledger.acks)


@row("F17", "disorder within 60 s, 1 % a day late", load=Load(disorder=0.5, late=0.01))
def disorder(run: Run) -> None:
    run.start()
    kills(run, 15, 3)


@row("F18", "poison, 1 % of all records", load=Load(bad=0.01))
def poison(run: Run) -> None:
    run.start()
    kills(run, 15, 3)
    run.counts["bad records"] = len(run.ledger.bad)


@row("F19", "records of up to 4 MB")
def oversized(run: Run) -> None:
    run.start()
    run.sleep(3)
    before = {name: rss_mb(run.fleet.pid(name)) for name in run.fleet.running}
    for n in run.times(60, 12):
        run.sender.large(((300, 1500, 3900)[n % 3]) * 1000)
        run.count("large records")
        run.sleep(0.3)
    run.healed()
    grown = max(rss_mb(run.fleet.pid(name)) - before[name] for name in run.fleet.running)
    run.counts["grown by MB"] = round(grown)
    run.expect(grown < 50, f"a process grew by {grown:.0f} MB")


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


@row("F20", "half of all events of one customer", load=Load(rate=1000))
def hot_key(run: Run) -> None:
    run.start()
    seconds = 8 if run.quick else 20
    run.calmly(seconds)
    calm = run.watch.quantile_ms(run.ledger, 0.99, run.calm) or 0.0
    run.traffic.load = replace(run.traffic.load, hot=0.5)
    run.sleep(1)
    began = time.monotonic()
    run.sleep(seconds)
    others = run.watch.quantile_ms(run.ledger, 0.99, [(began, time.monotonic() - 2)], leave_out=HOT) or 0.0
    run.healed()
    size = max(len(raw) for raw in run.store.raw().values())
    run.counts["calm p99 ms"], run.counts["others' p99 ms"] = round(calm), round(others)
    run.counts["largest context kB"] = round(size / 1000)
    # A reader looks every 50 ms: two looks are no difference.
    run.expect(others <= 2 * calm + 100, f"the others waited {others:.0f} ms, calm was {calm:.0f} ms")
    run.expect(size < 64_000, f"a context grew to {size} bytes")
