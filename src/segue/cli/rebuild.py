"""`segue rebuild`: the state made anew from the log, or compared with one that is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from redis import Redis

    from segue.log.port import Log
    from segue.rebuild.verify import Report
    from segue.settings import Settings

LINE_EVERY_S = 5.0
"""How often a line is written where there is no terminal to draw a bar on."""


def rebuild_command(
    verify: Annotated[bool, typer.Option("--verify", help="change nothing: rebuild beside and compare")] = False,
    show_values: Annotated[bool, typer.Option("--show-values", help="with --verify: personal data too")] = False,
    partitions: Annotated[int | None, typer.Option(min=1, max=1024, help="change their number to this")] = None,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="remove the state that a rebuild replaced")] = False,
) -> None:
    """Make the whole state anew from the log, and switch to it; or check it, or remove the old one.

    Runs beside the processors, with the settings (rules, gaps) that they have; they are held for some seconds at
    the switch. Exit code 0; with --verify 1 when the live state differs from what the log makes of it; 2 when
    nothing could be done, and why.
    """
    from segue import runtime
    from segue.settings import load

    if verify + drop_old + (partitions is not None) > 1:
        raise typer.BadParameter("--verify, --drop-old and --partitions exclude each other")
    settings = load()
    runtime.configure_logging("warning")
    source, live = runtime.open_log(settings), runtime.open_redis(settings)
    if verify:
        _verify(settings, source, live, show_values)
    elif drop_old:
        from segue.rebuild.switch import drop_old as drop

        typer.echo(f"{drop(live):,} keys of replaced epochs removed")
    else:
        _rebuild(settings, source, live, partitions)


def _verify(settings: Settings, source: Log, live: Redis, show_values: bool) -> None:
    from segue.rebuild import verify as verifying

    with verifying.scratch() as scratch, _progress() as progress:
        report = verifying.verify(settings, source, live, scratch, progress)
    _print(report, show_values)
    if report.first is not None:
        raise typer.Exit(1)


def _rebuild(settings: Settings, source: Log, live: Redis, partitions: int | None) -> None:
    from segue.rebuild.switch import rebuild

    with _progress() as progress:
        done = rebuild(settings, source, live, partitions, progress, progress.say)
    rate = done.records / max(done.took_s - done.held_s, 0.001)
    typer.echo(f"{done.records:,} records applied in {done.took_s:.1f} s ({rate:,.0f}/s); held for {done.held_s:.1f} s")
    if done.place.partitions != settings.partitions:
        typer.echo(f"set SEGUE_PARTITIONS={done.place.partitions}: a process that starts with another is refused")
    if done.place.interactions != done.before.interactions:
        typer.echo(f"topic {done.before.interactions} is read no more; delete it when you like")
    typer.echo("`segue rebuild --drop-old` removes the old state")


def _print(report: Report, show_values: bool) -> None:
    table = Table("compared", box=None, pad_edge=False)
    for name in ("keys", "differing"):
        table.add_column(name, justify="right")
    for kind in sorted(report.compared):
        table.add_row(kind, f"{report.compared[kind]:,}", f"{report.differing[kind]:,}")
    console = Console(soft_wrap=True)
    console.print(table)
    if report.unconfirmed:
        typer.echo(f"{report.unconfirmed:,} identifiers are claimed and not in the log (yet): events under way")
    for skipped in report.skipped:
        typer.echo(f"not compared: {skipped}")
    if report.first is None:
        typer.echo("the live state is what the log makes of it, byte for byte")
        return
    typer.echo(f"first difference: {report.first.told(show_values)}")
    if not show_values:
        typer.echo("(--show-values shows the values, which may be personal data)")


@contextmanager
def _progress() -> Iterator[_Bars | _Lines]:
    """Bars on a terminal, else a line every few seconds; on standard error either way."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


class _Rate:
    """How far each phase is, how fast it goes, and how long it has to go."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}

    def told(self, phase: str, done: int, total: int) -> str:
        began = self._began.setdefault(phase, time.monotonic())
        rate = done / max(time.monotonic() - began, 0.001)
        left = "" if done >= total or not rate else f", {(total - done) / rate:,.0f} s left"
        return f"{done:,} of {total:,} ({rate:,.0f}/s{left})"


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress, self._rate = progress, _Rate()
        self._tasks: dict[str, TaskID] = {}

    def say(self, words: str) -> None:
        self._progress.console.print(words, markup=False, highlight=False)

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total, told="")
        told = self._rate.told(phase, done, total)
        self._progress.update(self._tasks[phase], completed=done, total=total, told=told)


class _Lines:
    def __init__(self) -> None:
        self._rate, self._next = _Rate(), 0.0
        self._last = ("", 0, False)

    def say(self, words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    def __call__(self, phase: str, done: int, total: int) -> None:
        ended = done >= total
        if (phase, done, ended) == self._last or (
            not ended and phase == self._last[0] and time.monotonic() < self._next
        ):
            return
        print(f"{phase}: {self._rate.told(phase, done, total)}", file=sys.stderr, flush=True)
        self._last, self._next = (phase, done, ended), time.monotonic() + LINE_EVERY_S
