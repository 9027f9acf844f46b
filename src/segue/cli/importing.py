"""`segue import`: rows of a CSV or JSONL file become events."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from segue.errors import Undelivered
from segue.importer import run
from segue.importer.loading import load as load_mapping
from segue.settings import Settings, load

LINE_EVERY_S = 5.0
"""How often a line is written where there is no terminal to draw a bar on."""


def import_command(
    file: Annotated[Path, typer.Argument(help="CSV or JSONL, plain or gzipped")],
    mapping: Annotated[str, typer.Option("--mapping", "-m", help="a mapping file, or a shipped one by name")],
    rate: Annotated[float | None, typer.Option(min=0.001, help="events per second; default: all at once")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many rows of the file")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="map and check every row, send nothing")] = False,
) -> None:
    """Send a file's rows as events, to Kafka where SEGUE_KAFKA names one, else to the API.

    Exit code 0; 1 when any row was refused or the destination did not acknowledge; 2 for a wrong mapping,
    file or setting. Importing a file again is safe: its events have the same ids.
    """
    settings, rules = load(), load_mapping(mapping)
    deliveries = run.Deliveries()
    with _destination(settings, deliveries, dry_run) as sink, _progress() as progress:
        summary = run.run_import(sink, deliveries, file, rules, pacer=run.Pacer(rate), limit=limit, progress=progress)
    _print(summary, dry_run)
    if summary.refused or summary.stopped is not None:
        raise typer.Exit(1)


@contextmanager
def _destination(settings: Settings, deliveries: run.Deliveries, dry_run: bool) -> Iterator[run.Sink]:
    if dry_run:
        yield run.DryRun(deliveries)
        return
    from segue.client import Client

    door = {"kafka": settings.kafka, "options": settings.kafka_options} if settings.kafka else {"url": settings.api}
    client = Client(**door, phone_region=settings.phone_region, on_delivery=deliveries.report)
    try:
        yield client
    finally:
        with suppress(Undelivered):  # the import has flushed and counted already
            client.close()


@contextmanager
def _progress() -> Iterator[run.Progress]:
    """A bar on a terminal, else a line every few seconds; on standard error either way."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        yield _Bar(progress)


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total)
        self._progress.update(self._tasks[phase], completed=done)


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_EVERY_S

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_EVERY_S
        of = "" if total is None else f" of {total}"
        print(f"{phase}: {done}{of} rows", file=sys.stderr, flush=True)


def _print(summary: run.Summary, dry_run: bool) -> None:
    console = Console()
    speed = summary.sent / summary.seconds if summary.seconds else 0.0
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("rows", f"{summary.rows:,}")
    table.add_row("would be sent" if dry_run else "sent", f"{summary.sent:,}")
    for why, count in sorted(summary.skipped.items()):
        table.add_row("left out", f"{count:,}: {escape(why)}")
    table.add_row("refused", f"{summary.refused_rows:,}")
    if summary.stopped is not None:
        table.add_row("not acknowledged", f"{summary.unacknowledged:,}")
    table.add_row("took", f"{summary.seconds:.1f} s ({speed:,.0f} events/s)")
    console.print(table)
    if summary.refused:
        console.print(_refused(summary))
    if summary.stopped is not None:
        console.print(f"stopped at {summary.stopped}", markup=False)
        console.print("Import again once the destination is back: events keep their ids, so none counts twice.")


def _refused(summary: run.Summary) -> Table:
    table = Table("refused because", "rows", "line", "field", "how to mend it")
    for reason, refusals in sorted(summary.refused.items()):
        for at, row in enumerate(refusals.examples):
            first = (reason, f"{refusals.count:,}") if at == 0 else ("", "")
            table.add_row(*first, str(row.line), escape(row.field), escape(row.detail))
    return table
