"""The results as a table in a page: a line of a row is replaced when the row has run again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.chaos.harness import Result
from tests.chaos.oracle import Verdict

BEGIN, END = "<!-- results: python -m tests.chaos --markdown -->\n", "<!-- end of results -->\n"
_COLUMNS = ("row", "size, seed", "faults made", "events", *Verdict.ZERO, "healed in", "p99", "verdict")


def enter(page: Path, result: Result, size: str) -> None:
    """Put a result into the page's table. `size` is how it was made: `quick, 7` or `full, 7, 3 brokers`.

    A row has one line for each number of brokers.
    What a quick run says does not replace what a full one said, unless it is red.
    """
    before, _, rest = page.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {_key(cells): cells for cells in map(_cells, table.splitlines()[2:])}
    key = _key(line(result, size))
    found = lines.get(key)
    if found is None or not result.ok or size.startswith("full") or found[1].startswith("quick"):
        lines[key] = line(result, size)
    head = [_joined(_COLUMNS), "|" + "---|" * len(_COLUMNS)]
    text = "\n".join([*head, *(_joined(cells) for _, cells in sorted(lines.items(), key=_place))])
    page.write_text(f"{before}{BEGIN}{text}\n{END}{after}")


def line(result: Result, size: str) -> list[str]:
    """The cells of one row."""
    v = result.verdict
    made = ", ".join(f"{name} {count}" for name, count in result.made().items()) or "-"
    heal = "-" if v.heal_s is None else f"{v.heal_s:.1f} s"
    p99 = "-" if v.p99_ms is None else f"{v.p99_ms:.0f} ms"
    verdict = "skipped" if result.skipped else "ok" if result.ok else "RED: " + "; ".join(v.notes)
    counts = [v.events, *(getattr(v, name) for name in Verdict.ZERO)]
    return [result.row.name, size, made, *map(str, counts), heal, p99, verdict.replace("|", "/")]


def _key(cells: list[str]) -> tuple[str, str]:
    """The row and what its size says of brokers: nothing when there was one."""
    return cells[0], cells[1].partition(",")[2].partition(",")[2].strip()


def _place(named: tuple[tuple[str, str], list[str]]) -> tuple[str, int, str, str]:
    """F2 before F10, one broker before several."""
    name, brokers = named[0]
    digits = "".join(c for c in name if c.isdigit())
    return name[0], int(digits or 0), name, brokers


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _joined(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
