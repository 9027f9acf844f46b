"""The end of the demo: every count beside what the input implies, the latency, and one customer's context."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from segue import metrics
from segue.demo.counts import Row, agrees
from segue.demo.screen import SEVERITIES
from segue.demo.wrap import wrapped

KINDS = {
    "channel": "between channels",
    "actor": "between bot and person",
    "group": "between groups",
}
LATEST = 6
"""Entries of the timeline shown."""
_HEAD = 8
_GOOD, _BAD = Text("✓", "green"), Text("✗", "bold red")


def print_counts(console: Console, parts: dict[str, list[Row]], compared: bool) -> bool:
    """Print the counts of each part of the demo. Returns whether all are what the input implies.

    Without `compared` the stack had events before, so what the input implies is left out.
    """
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column(min_width=24)
    for name in parts:
        if compared:
            table.add_column(f"{name}:\nimplied", justify="right")
        table.add_column(f"{name}:\ncounted" if not compared else "\ncounted", justify="right")
        if compared:
            table.add_column(width=1)
    _fill(table, parts, compared)
    console.print(Text("What was counted" + (", and what the input implies" if compared else ""), "bold"))
    console.print()
    console.print(table)
    console.print()
    wrong = [(part, row) for part, rows in parts.items() for row in rows if not agrees(row)] if compared else []
    if compared:
        _verdict(console, parts, wrong)
    return not wrong


def _fill(table: Table, parts: dict[str, list[Row]], compared: bool) -> None:
    found = {part: {row[:2]: row for row in rows} for part, rows in parts.items()}
    names = dict.fromkeys(name for rows in found.values() for name in rows)
    sections = list(dict.fromkeys(section for section, _ in names))
    ordered = sorted(names, key=lambda name: sections.index(name[0]))
    for section, group in groupby(ordered, key=lambda name: name[0]):
        table.add_row(Text(section, "bold cyan"))
        for name in sorted(group, key=lambda name: name[1] == "all"):
            cells: list[Text | str] = [f"  {KINDS.get(name[1], name[1]) if 'handoff' in section else name[1]}"]
            for part in parts:
                cells += _cells(found[part].get(name), compared)
            table.add_row(*cells)


def _cells(row: Row | None, compared: bool) -> list[Text | str]:
    if row is None:
        return ["", "", ""] if compared else [""]
    _, _, implied, counted = row
    if not compared:
        return [f"{counted:,}"]
    if implied is None:
        return [Text("-", "dim"), Text(f"{counted:,}", "dim"), ""]
    good = agrees(row)
    return [f"{implied:,}", Text(f"{counted:,}", "" if good else "bold red"), _GOOD if good else _BAD]


def _verdict(console: Console, parts: dict[str, list[Row]], wrong: list[tuple[str, Row]]) -> None:
    checked = sum(row[2] is not None for rows in parts.values() for row in rows)
    if not wrong:
        console.print(Text(f"All {checked} counts are what the input implies.", "green"))
        return
    console.print(Text(f"{len(wrong)} of {checked} counts are not what the input implies:", "bold red"))
    for part, (section, name, implied, counted) in wrong:
        console.print(Text(f"  {part}, {section}, {name}: implied {implied}, counted {counted}", "red"))


def print_latency(console: Console, buckets: list[int], readable_s: float) -> None:
    """Print how soon events were readable, and when the first one was."""
    told = [f"{q:,.0f} ms" if q is not None else "-" for q in metrics.quantiles(buckets)] if buckets else ["-"] * 3
    console.print(
        Text.assemble(
            "Event to readable: ",
            *(
                part
                for name, q in zip(("p50", "p95", "p99"), told, strict=True)
                for part in (f"{name} ", (q, "bold"), "   ")
            ),
            f"({sum(buckets):,} events)",
        )
    )
    console.print(f"First context readable {readable_s:.1f} s after the start.")


def print_context(console: Console, title: str, answer: dict[str, Any]) -> None:
    """Print one customer's context as whoever serves the customer next would want to read it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=_HEAD, style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    width = console.width - _HEAD - 6  # the panel's borders and paddings
    for head, said in _lines(answer):
        grid.add_row(head, wrapped(said if isinstance(said, Text) else Text(said), width))
    console.print(Panel(grid, title=f"The context of one customer: {title}", title_align="left", border_style="dim"))


def _lines(answer: dict[str, Any]) -> Iterator[tuple[str, Text | str]]:
    context = answer["context"]
    yield "known by", ", ".join(f"{each['type']} {each['value']}" for each in context["identifiers"])
    yield "is at", _place(context["current"])
    channels = ", ".join(f"{name} {count}" for name, count in context["channels"].items())
    yield "came by", f"{channels}; {len(context['sessions'])} sessions"
    for ref, item in context.get("items", {}).items():
        yield "matter", _item(ref, item)
    moves = [f"{each['before']} → {each['after']}" for each in context.get("handoffs", ())]
    if moves:
        yield "moved", ", ".join(moves)
    for signal in answer["signals"]:
        style = SEVERITIES.get(signal["severity"], "")
        yield "signal", Text.assemble((f"{signal['rule']} ({signal['severity']}) ", style), signal["reason"]["en"])
    for entry in context["timeline"][-LATEST:]:
        yield _time(entry["event_time_ms"]), _entry(entry)


def _place(place: dict[str, Any]) -> str:
    where = f"{place['channel']}, {place['touchpoint']}" if place.get("touchpoint") else place["channel"]
    return f"{where} since {_time(place['since_ms'])}"


def _item(ref: str, item: dict[str, Any]) -> str:
    said = [f"{ref}, {item['title']}" if item.get("title") else ref, item["status"]]
    if item.get("attempts", 0) > 1:
        said.append(f"{item['attempts']} contacts")
    if item.get("due_at_ms"):
        said.append(f"due {_time(item['due_at_ms'])}")
    if item.get("sla_missed"):
        said.append("deadline missed")
    return ", ".join(said)


def _entry(entry: dict[str, Any]) -> Text:
    actor = entry.get("actor", {})
    who = actor.get("group") or actor.get("kind")
    said = entry.get("text") or entry["type"].replace(".", " ").replace("_", " ")
    line = Text.assemble((entry["channel"], "cyan"), " ")
    if who:
        line.append(f"{who}: ", "dim")
    if entry.get("survey"):
        line.append(f"{entry['survey']['metric'].upper()} {entry['survey']['score']:g}: ")
    return line.append(said)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%H:%M")
