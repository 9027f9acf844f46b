"""Do the counts come out right? Imports the reference files into a fresh stack and compares every count.

    python -m bench.figures --stack embedded|kafka

The files go in by the real door (HTTP for the embedded stack, Kafka for the other) and through all
processors; what `/v1/stats` says then stands beside the reference numbers (tests/data) and, for the
incident log, beside what `bench.oracle_incident_log` counts from the CSV with none of Segue's code.
Beside them stand the session windows of other engines (`bench.session_windows`), persons of whom the truth is known
(`bench.febrl`), and the raw events of a web tracker with what its own model makes of them (`bench.snowplow_web`).
Exit code 1 when any count differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from bench import febrl, oracle_incident_log, session_windows, snowplow_web
from bench.counts import Line, compare, of_incident_log, of_sf311, of_stats
from bench.stack import fresh
from segue.cli.stats import fetch
from segue.client import Client
from segue.importer import loading, run
from segue.settings import Settings
from segue.up import Stack
from tests.support.kafka_broker import free_ports
from tests.support.stack import EmbeddedStack

DATA = Path(__file__).parents[1] / "tests" / "data"
SF311 = DATA / "sf311" / "sf311_service_requests.csv.gz"
INCIDENT_LOG = "data/incident_log/incident_event_log.csv.gz"
REFERENCE = DATA / "reference_numbers.json"

TELL_EVERY_S = 5.0
PATIENCE_S = 60.0
"""How long the counts may stand still before they are taken to be stuck."""
REPORT_LAG = timedelta(seconds=1)
"""The processors say how far they are five times a second; a second is ample."""

console = Console(width=100)


# --- the stack


@contextmanager
def running(kind: str) -> Iterator[tuple[Settings, Stack]]:
    """A fresh stack with its processors and API as processes of their own."""
    for name in [name for name in os.environ if name.startswith("SEGUE_") and not name.startswith("SEGUE_TEST_")]:
        del os.environ[name]  # somebody's own deployment is not what is measured
    named = os.environ.get("SEGUE_TEST_KAFKA") if kind == "kafka" else None
    if named is not None and _topics(named):
        sys.exit(f"SEGUE_TEST_KAFKA: {named} has topics of Segue's; empty it, or unset this to start a broker")
    with fresh(kind, api_port=free_ports(1)[0]) as settings:
        try:
            with Stack(settings) as stack:
                stack.wait_ready(120)
                yield settings, stack
        finally:
            if named is not None:
                _delete_topics(named)


def _topics(bootstrap: str) -> list[str]:
    found = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).topics
    return [name for name in found if name.startswith("segue.")]


def _delete_topics(bootstrap: str) -> None:
    """Leave somebody else's broker as it was found. Returns when the broker names them no more."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for deleted in admin.delete_topics(_topics(bootstrap)).values():
        deleted.result(30)
    until = time.monotonic() + PATIENCE_S
    while _topics(bootstrap) and time.monotonic() < until:
        time.sleep(0.2)


def client_of(settings: Settings, deliveries: run.Deliveries) -> Client:
    if settings.kafka is not None:
        return Client(kafka=settings.kafka, options=settings.kafka_options, on_delivery=deliveries.report)
    return Client(url=settings.api, on_delivery=deliveries.report)


def teller() -> Callable[[str], None]:
    """Prints what it is told, every few seconds."""
    last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_EVERY_S:
            last = time.monotonic()
            console.print(f"[dim]  {text}[/]")

    return tell


def imported(settings: Settings, stack: Stack, path: Path, mapping: str) -> dict[str, int]:
    """Import a file, wait until everything is applied, and return what that added to the counts."""
    before = fetch(settings.api)
    console.print(f"[bold]{mapping}[/]: importing {path.name} ...")
    tell, deliveries, began = teller(), run.Deliveries(), time.monotonic()
    with client_of(settings, deliveries) as client:
        summary = run.run_import(
            client, deliveries, path, loading.load(mapping), progress=lambda phase, done, _: tell(f"{phase} {done:,}")
        )
    if summary.refused or summary.stopped:
        sys.exit(f"{mapping}: {summary.refused_rows} rows refused, stopped: {summary.stopped}")
    after = settled(settings, stack, entered(before) + summary.sent)
    took = time.monotonic() - began
    console.print(
        f"  {summary.sent:,} events sent in {summary.seconds:.1f} s, all applied after {took:.1f} s "
        f"({summary.sent / took:,.0f} events/s)"
    )
    start = of_stats(before)
    return {name: count - start.get(name, 0) for name, count in of_stats(after).items()}


def entered(stats: dict[str, Any]) -> int:
    """Events that resolve has taken in, good or bad."""
    return int(stats["accepted"] + stats["rejected"]["total"])


def settled(settings: Settings, stack: Stack, sent: int) -> dict[str, Any]:
    """The stats when everything sent is applied by every processor. Exits when they stand still."""
    tell, last, patience = teller(), (-1, -1), time.monotonic() + PATIENCE_S
    complete: datetime | None = None
    while True:
        stack.check()
        stats = fetch(settings.api)
        applied = stats["events"]["total"] + stats["duplicates"]
        now = entered(stats), applied
        if now == (sent, stats["accepted"]):
            complete = complete or datetime.now(UTC)
            # Every processor has read on since: the signals that these events lead to are counted, too.
            if datetime.fromisoformat(stats["as_of"]) > complete + REPORT_LAG:
                return stats
        if now != last:
            last, patience = now, time.monotonic() + PATIENCE_S
        elif time.monotonic() > patience:
            sys.exit(f"stuck: {sent:,} sent, {now[0]:,} resolved, {now[1]:,} applied")
        tell(f"applied {applied:,} of {sent:,}")
        time.sleep(0.1)


# --- the report


def report(title: str, lines: list[Line], *, oracle: bool) -> bool:
    """Print a table; whether all figures are right."""
    table = Table("figure", title=title, title_justify="left")
    for head in ("reference", *(("counted from the file",) if oracle else ()), "found"):
        table.add_column(head, justify="right")
    table.add_column("")
    for line in lines:
        expected = [line.reference, *((line.oracle,) if oracle else ())]
        style = None if line.right else "bold red"
        mark = "" if line.right else "<-- differs"
        shown = ("" if count is None else f"{count:,}" for count in expected)
        table.add_row(line.name, *shown, f"{line.found:,}", mark, style=style)
    console.print(table)
    wrong = sum(not line.right for line in lines)
    console.print(f"{len(lines)} figures, {wrong} differ" if wrong else f"{len(lines)} figures, all equal")
    return wrong == 0


def report_session_windows() -> bool:
    """Print which cases of other engines hold, and why the others are left out; whether all others hold."""
    right = report("session_windows (the core, no stack)", session_windows.lines(session_windows.cases()), oracle=False)
    for name, reason in session_windows.left_out().items():
        console.print(f"[dim]  left out: {name}: {reason}[/]")
    return right


def report_febrl() -> bool:
    """Send persons of whom the truth is known through an embedded stack of their own; whether nobody is put together
    with somebody else, and everybody with whom they share an exact key."""
    records = [person for name in febrl.SETS for person in febrl.people(name)]
    console.print(f"[bold]identity_febrl[/]: sending {len(records):,} records ...")
    with TemporaryDirectory() as directory, EmbeddedStack(Path(directory)) as stack:
        found = febrl.through(stack, records)
    expected = sum(count for count, _ in febrl.SETS.values()), sum(count for _, count in febrl.SETS.values())
    right = report("identity_febrl (embedded)", febrl.lines(records, found, expected), oracle=True)
    judged = febrl.pairs(records, found.customers)
    console.print(f"precision {judged.precision:.4f}, recall {judged.recall:.4f} by exact keys alone")
    return right


def report_snowplow_web() -> bool:
    """Send a web tracker's events through embedded stacks of their own: in order, restored into an emptied Redis, and
    out of order within the grace; whether each time it is what the tracker's own model finds."""
    truth, right = snowplow_web.expected(), []
    console.print(f"[bold]snowplow_web[/]: importing {snowplow_web.EVENTS.name} ...")
    with TemporaryDirectory() as directory:
        mixed = Path(directory) / "shuffled.csv"
        with snowplow_web.stack(Path(directory) / "one") as stack:
            left_out = snowplow_web.through(stack, snowplow_web.EVENTS)
            right.append(report("snowplow_web", snowplow_web.lines(truth, *snowplow_web.read(stack)), oracle=False))
            for why, count in left_out.items():
                console.print(f"[dim]  left out by the mapping: {count}: {why}[/]")
            snowplow_web.replayed(stack)
            again = snowplow_web.lines(truth, *snowplow_web.read(stack))
            right.append(report("snowplow_web, Redis emptied and restored", again, oracle=False))
        with snowplow_web.stack(Path(directory) / "two") as stack:
            snowplow_web.shuffled(mixed, stack.settings.policy.grace_ms)
            snowplow_web.through(stack, mixed, in_file_order=True)
            again = snowplow_web.lines(truth, *snowplow_web.read(stack))
            right.append(report("snowplow_web, out of order within the grace", again, oracle=False))
    return all(right)


def main() -> None:
    """Run both files through one fresh stack, and what needs none or another beside them."""
    parser = argparse.ArgumentParser(description="Import the reference files and compare every count.")
    parser.add_argument("--stack", choices=("embedded", "kafka"), default="embedded")
    kind = parser.parse_args().stack
    reference = orjson.loads(REFERENCE.read_bytes())
    with as_file(files("segue").joinpath(INCIDENT_LOG)) as log, running(kind) as (settings, stack):
        oracle = oracle_incident_log.count(oracle_incident_log.read(log))
        cases = imported(settings, stack, log, "incident_log")
        requests = imported(settings, stack, SF311, "sf311")
    right = [
        report_session_windows(),
        report(
            f"incident_log ({kind})",
            compare(of_incident_log(reference["incident_log"]), oracle, cases, but="touchpoint."),
            oracle=True,
        ),
        report(f"sf311 ({kind})", compare(of_sf311(reference["sf311"]), None, requests), oracle=False),
        report_febrl(),
        report_snowplow_web(),
    ]
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
