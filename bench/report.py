"""What was measured: a line as soon as it is known, a table per section, all of it as JSON at the end."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

console = Console(width=120)

Cell = str | float | None
"""Rates and times are numbers; None is what could not be measured."""
Row = dict[str, Cell]


class Report:
    """Collects the rows of all sections."""

    def __init__(self) -> None:
        self.machine: Row = {"cores": float(os.cpu_count() or 0), "python": platform.python_version()}
        self.sections: dict[str, list[Row]] = {}
        self.notes: dict[str, list[str]] = {}
        self._before = _ticks()

    def add(self, section: str, row: Row) -> None:
        """Of all cores since the row before: `stolen` is what the hypervisor gave to other machines, `others` what
        processes took that are not of this run."""
        now = _ticks()
        spent = now.every - self._before.every
        if spent > 100:  # rows that are added together were measured together
            row = row | {
                "stolen %": 100 * (now.stolen - self._before.stolen) / spent,
                "others %": max(0.0, 100 * (now.others - self._before.others) / spent),
            }
            self._before = now
        self.sections.setdefault(section, []).append(row)
        console.print(f"[dim]{section}: " + ", ".join(f"{name} {shown(cell)}" for name, cell in row.items()) + "[/]")

    def note(self, section: str, text: str) -> None:
        """Something that a reader of the table must know: above all, what was skipped and why."""
        self.notes.setdefault(section, []).append(text)
        console.print(f"[yellow]{section}: {text}[/]")

    def show(self, section: str) -> None:
        rows = self.sections.get(section, [])
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = Table(title=section)
        for name in names:
            numbers = any(isinstance(row.get(name), float | int) for row in rows)
            table.add_column(name, justify="right" if numbers else "left")
        for row in rows:
            table.add_row(*(shown(row.get(name)) for name in names))
        if rows:
            console.print(table)
        for text in self.notes.get(section, []):
            console.print(f"[yellow]{text}[/]")

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": self.machine, "sections": self.sections, "notes": self.notes}
        path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
        console.print(f"[dim]written: {path}[/]")


class _Ticks(NamedTuple):
    """Of all cores since the start of the machine; zeros where the system does not say (`man 5 proc`)."""

    every: int = 0
    stolen: int = 0
    others: int = 0


def _ticks() -> _Ticks:
    try:
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle, waiting, stolen = ticks[3], ticks[4], ticks[7]
        return _Ticks(sum(ticks), stolen, sum(ticks) - idle - waiting - stolen - _ours())
    except (OSError, ValueError):
        return _Ticks()


def _ours() -> int:
    """Ticks of this process and of all that it started, ended ones included."""
    spent: dict[int, int] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents[pid], spent[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    return sum(ticks for pid, ticks in spent.items() if _descends(pid, parents))


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid not in (0, os.getpid()):
        pid = parents.get(pid, 0)
    return bool(pid)


def shown(cell: Cell) -> str:
    """A number with as many digits as say something."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if abs(cell) >= 100 or cell == int(cell):
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.3f}"


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """A bar while something long runs; it goes away when done, and on a file nothing is drawn."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        yield bars
