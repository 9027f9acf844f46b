"""Before and after: `python -m bench.turns ../other-checkout` runs *context* of both by turns, on one broker.

What a machine does in one minute it does not do in the next. So both checkouts work through the same records, one after
the other, again and again, and what is told is the median of each and the ratio pair by pair; bare loops stand at both
ends. The other checkout needs no environment of its own: this one's is used, with the other's code first on its path.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bench.load import interactions
from bench.prefill import fill
from bench.report import Report, Row
from bench.speed import BATCH, GROUP
from bench.stack import Found, Stack, started, worker_command
from tests.support.processes import environment

HERE = Path(__file__).resolve().parent.parent


def turns(report: Report, other: Path, count: int, customers: int, repeat: int, full: bool) -> None:
    section = f"by turns: {'full contexts, all in the cache' if full else f'{customers:,} hot customers'}"
    found: dict[Path, list[Found]] = {other: [], HERE: []}
    more = {"cache_mb": 8000} if full else {}
    with started("kafka", batch_records=BATCH, **more) as stack:
        first = fill(stack.settings, customers)[0] if full else 0
        stack.fill("writing interactions", interactions(count, customers, "turns", first), count)
        bare = [stack.worker("bare:context", count)]
        _run(stack, HERE, count, 0.05)  # not counted: until then the broker compiles
        for n in range(repeat):
            for where in found if n % 2 == 0 else reversed(found):
                stack.forget(GROUP)
                if full:
                    fill(stack.settings, customers)
                found[where].append(_run(stack, where, count, customers / count if full else 0.1))
        bare.append(stack.worker("bare:context", count))
    loop = statistics.mean(run["per_s"] for run in bare)
    for where, runs in found.items():
        rates = sorted(run["per_s"] for run in runs)
        row: Row = {"code": "here" if where == HERE else "other", "bare loop ev/s": loop}
        row |= {"ev/s": statistics.median(rates), "least": rates[0], "most": rates[-1]}
        row |= {"CPU µs/event": statistics.median(run["cpu_us"] for run in runs)}
        row |= {"servers' µs/event": statistics.median(run["servers_us"] for run in runs)}
        report.add(section, row | {"of the bare loop": statistics.median(rates) / loop})
    ratios = [new["per_s"] / old["per_s"] for old, new in zip(found[other], found[HERE], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    report.note(section, f"here is {statistics.median(ratios):.2f} times as fast (pairs: {spread})")
    report.show(section)


def _run(stack: Stack, where: Path, count: int, warm: float) -> Found:
    command = worker_command("context", count, f"--warm={warm}")
    path = {"PYTHONPATH": f"{where / 'src'}:{where}", "PYTHONSAFEPATH": "1"}
    return stack.run(f"context, {where.name}", command, count, environment(stack.settings) | path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.turns", description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout of Segue, whose records are the same")
    parser.add_argument("--events", type=int, default=200_000, help="of each run")
    parser.add_argument("--customers", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each")
    parser.add_argument("--full", action="store_true", help="contexts that are full, each event another customer's")
    given = parser.parse_args()
    report = Report()
    turns(report, given.other.resolve(), given.events, given.customers, given.repeat, given.full)


if __name__ == "__main__":
    main()
