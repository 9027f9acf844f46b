"""`segue stats`: what has been counted since the beginning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import httpx
import orjson
import typer
from rich.console import Console
from rich.table import Table

from segue.errors import SettingsError, StoreUnavailable
from segue.settings import load

TIMEOUT_S = 10.0


def stats_command(
    as_json: Annotated[bool, typer.Option("--json", help="everything, exactly as the API says it")] = False,
) -> None:
    """Show events by channel and type, customers, sessions, handoffs, signals, open items, refusals."""
    stats = fetch(load().api)
    if as_json:
        typer.echo(orjson.dumps(stats, option=orjson.OPT_INDENT_2).decode())
        return
    console = Console()
    for table in tables(stats):
        console.print(table)
        console.print()


def tables(stats: dict[str, Any]) -> list[Table]:
    """The counters as tables for a person; what has no rows is left out."""
    every = (
        _overview(stats),
        _events(stats),
        _items(stats),
        _counted("Handoffs", "kind", stats["handoffs"]["by_kind"]),
        _counted("Signals", "rule", stats["signals"]["by_rule"]),
        _counted("Rejected", "reason", stats["rejected"]["by_reason"]),
    )
    return [table for table in every if table.row_count]


def fetch(api: str) -> dict[str, Any]:
    """The counters by HTTP. Raises SettingsError when no API answers there, StoreUnavailable when it cannot say."""
    try:
        answer = httpx.get(f"{api}/v1/stats", timeout=TIMEOUT_S)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise SettingsError(f"SEGUE_API_URL: no API answers at {api} ({error}); `segue up` starts one") from error
    if answer.status_code != 200:
        raise StoreUnavailable(f"{api} answers {answer.status_code}: {_detail(answer)}")
    found: dict[str, Any] = answer.json()
    return found


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("detail", answer.reason_phrase))
    except (ValueError, AttributeError):
        return answer.reason_phrase


def _overview(stats: dict[str, Any]) -> Table:
    items = stats["items"].values()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in (
        ("events", stats["events"]["total"]),
        ("customers", stats["customers"]),
        ("sessions", stats["sessions"]),
        ("handoffs", stats["handoffs"]["total"]),
        ("open items", sum(item["open"] for item in items)),
        ("signals", stats["signals"]["total"]),
        ("rejected", stats["rejected"]["total"]),
        ("duplicates", stats["duplicates"]),
        ("late", stats["late"]),
    ):
        table.add_row(name, f"{count:,}")
    return table


def _events(stats: dict[str, Any]) -> Table:
    """One row per type, one column per channel, the busiest first."""
    events = stats["events"]
    channels = _busiest(events["by_channel"])
    table = Table("event type", title="Events", title_justify="left")
    for name in (*channels, "all"):
        table.add_column(name, justify="right")
    rows = _busiest(events["by_type"])
    for kind in rows:
        counts = [events["by_channel_and_type"][channel].get(kind, 0) for channel in channels]
        last = kind == rows[-1]
        table.add_row(kind, *(_count(n) for n in counts), _count(events["by_type"][kind]), end_section=last)
    if rows:
        table.add_row("all", *(_count(events["by_channel"][c]) for c in channels), _count(events["total"]))
    return table


def _items(stats: dict[str, Any]) -> Table:
    table = Table("item", title="Items", title_justify="left")
    statuses = sorted({status for item in stats["items"].values() for status in item["by_status"]})
    for name in ("opened", *(f"now {status}" for status in statuses)):
        table.add_column(name, justify="right")
    for kind, item in stats["items"].items():
        table.add_row(kind, _count(item["opened"]), *(_count(item["by_status"].get(status, 0)) for status in statuses))
    return table


def _counted(title: str, head: str, counts: Mapping[str, int]) -> Table:
    table = Table(head, title=title, title_justify="left")
    table.add_column("count", justify="right")
    for name in _busiest(counts):
        table.add_row(name, _count(counts[name]))
    return table


def _busiest(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def _count(count: int) -> str:
    return f"{count:,}" if count else "-"
