"""The results as a table for docs/faults.md."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.harness import Result

_COLUMNS = ("row", "fault", "faults made", "events", *("lost", "over", "order", "contexts", "missing", "unexpected"))


def markdown(results: Sequence[Result], seed: int) -> str:
    """A table, one line a row."""
    head = [*_COLUMNS, "regressions", "healed in", "verdict"]
    lines = [f"Seed {seed}.", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        v = result.verdict
        made = ", ".join(f"{count} {name}" for name, count in result.counts.items()) or "-"
        heal = "-" if v.heal_s is None else f"{v.heal_s:.1f} s"
        counts = (v.events, v.lost, v.over, v.order, v.contexts + v.counters, v.missing, v.unexpected + v.repeated)
        cells = [result.row.name, result.row.title, made, *counts, v.regressions, heal, "ok" if result.ok else "RED"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"
