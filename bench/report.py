"""What was measured: a line as soon as it is known, a table per section, all of it as JSON at the end."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        """`stolen` is the share of all cores that the hypervisor gave to others since the row before."""
        stolen, every = _ticks()
        if every - self._before[1] > 100:  # rows that are added together were measured together
            row = row | {"stolen %": 100 * (stolen - self._before[0]) / (every - self._before[1])}
            self._before = stolen, every
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


def _ticks() -> tuple[int, int]:
    """Ticks of all cores since the start: those stolen (`man 5 proc`), and all. Zeros where the system does not say."""
    try:
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return ticks[7], sum(ticks)


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
