"""`make bench`: how fast, how soon, how large, and what the guarantee costs. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.bare_hops import bare_hops
from bench.footprint import memory, restore
from bench.latency import latency
from bench.merges import merges
from bench.peers.run import peers, peers_latency
from bench.report import Report, console
from bench.speed import full, guarantee, throughput
from bench.timers import timers

ON_KAFKA = "has figures on Kafka only"


def sections(given: argparse.Namespace) -> dict[str, list[Callable[[Report], None]]]:
    """What to run, by the name that `--only` takes."""
    logs = ("kafka", "embedded") if given.stack == "both" else (given.stack,)
    hot, many = given.customers, given.full_customers
    found: dict[str, list[Callable[[Report], None]]] = {
        "throughput": [partial(throughput, kind=kind, count=given.events, customers=hot) for kind in logs],
        "latency": [
            partial(latency, kind=kind, rates=given.rates, seconds=given.seconds, partitions=partitions)
            for kind in logs
            for partitions in given.partitions
        ],
        "timers": [partial(timers, kind=kind, rates=given.rates, seconds=given.seconds) for kind in logs],
    }
    if "kafka" in logs:
        found["latency"] += [
            partial(bare_hops, rates=given.rates, seconds=given.seconds, partitions=partitions)
            for partitions in given.partitions
        ]
        found |= {
            "full": [partial(full, count=given.events, customers=many, hot=hot)],
            "guarantee": [partial(guarantee, count=given.events, customers=hot, repeat=given.repeat)],
            "restore": [partial(restore, count=given.events, customers=hot)],
            "peers": [
                partial(peers, count=given.events // 2, customers=hot),
                partial(peers_latency, rate=given.peers_rate, seconds=given.seconds, customers=hot),
            ],
            "merges": [merges],
            "memory": [partial(memory, customers=given.memory_customers)],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = ("throughput", "full", "guarantee", "restore", "peers", "memory", "latency", "timers", "merges")
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="sections; default: all")
    parser.add_argument("--stack", choices=("kafka", "embedded", "both"), default="both")
    parser.add_argument("--events", type=int, default=200_000, help="of each run")
    parser.add_argument("--customers", type=int, default=5000, help="who come again and again")
    parser.add_argument("--full-customers", type=int, default=100_000, help="with full contexts (full)")
    parser.add_argument("--memory-customers", type=int, default=1_000_000, help="seen (memory)")
    parser.add_argument("--repeat", type=int, default=3, help="of each variant (guarantee)")
    parser.add_argument(
        "--rates", type=int, nargs="*", default=[1000, 2000, 5000], help="events a second (latency, timers)"
    )
    parser.add_argument("--partitions", type=int, nargs="*", default=[6, 1], help="SEGUE_PARTITIONS (latency)")
    parser.add_argument("--peers-rate", type=int, default=3000, help="events per second of the peers' latency")
    parser.add_argument("--seconds", type=int, default=20, help="of each paced run (latency, timers)")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures are written")
    given = parser.parse_args()
    report, chosen = Report(), sections(given)
    for name in given.only:
        if name not in chosen:
            report.note(name, f"skipped: it {ON_KAFKA}")
        for section in chosen.get(name, []):
            section(report)
            report.write(given.json)
    console.rule("all tables")
    for title in report.sections:
        report.show(title)


if __name__ == "__main__":
    main()
