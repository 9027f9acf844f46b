"""What is seen while the demo plays: a feed of what happens, and on a terminal a footer that counts.

The feed scrolls like any output, so nothing of it is lost; the footer stays below it. Where there is no
terminal the same lines come out plain, and progress is a line now and then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from segue.demo.counts import Counts
from segue.demo.wrap import wrapped

SEVERITIES = {"low": "blue", "medium": "yellow", "high": "red", "critical": "bold red"}
_WIDTHS = (4, 11, 18)
"""Of the feed's columns: story time, channel, customer; what happened takes the rest."""
_CHANNEL_CELL = 19
_LINE_EVERY_S = 2.0


class Screen:
    """The feed and the footer. A context manager; the footer is gone when it is left."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._progress: dict[str, tuple[int, int, str]] = {}
        self._counts = Counts()
        self._refused = 0
        self._line_at = 0.0
        self._fed = False

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(Text(), refresh=True)
            self._live.stop()

    # --- the feed

    def enters(self, who: str, about: str) -> None:
        """A customer of the story appears for the first time."""
        self._line("", Text("● enters", "bold"), who, Text(about, "italic"))

    def happened(self, at: timedelta, channel: str, who: str, actor: str | None, words: str) -> None:
        """One event of the story. `actor` is who acted, when not the customer."""
        said = Text.assemble(
            ("" if actor is None else f"{actor}: ", "dim"), (words, "dim" if actor == "system" else "")
        )
        self._line(clock(at), Text(channel, "cyan"), who, said)

    def handoff(self, who: str, before: str, after: str) -> None:
        self._line("", Text("↪ handoff", "green"), who, Text(f"{before} → {after}", "green"))

    def signal(self, who: str, rule: str, severity: str, reason: str) -> None:
        style = SEVERITIES.get(severity, "")
        self._line("", Text("▲ signal", style), who, Text.assemble((f"{rule} ({severity}) ", style), reason))

    def refused(self, at: timedelta, where: str, what: str, reason: str) -> None:
        """Bad input and what came of it."""
        self._refused += 1
        self._line(clock(at), Text("✗ refused", "magenta"), where, Text.assemble(f"{what}: ", (reason, "magenta")))

    def _line(self, at: str, kind: Text, who: str, what: Text) -> None:
        if self._quiet:
            return
        self._fed = True
        line = Table.grid(padding=(0, 1), expand=True)
        for width, style in zip(_WIDTHS, ("dim", "", ""), strict=True):
            line.add_column(width=width, style=style, no_wrap=True)
        line.add_column(ratio=1, overflow="fold")
        left = self._console.width - sum(_WIDTHS) - len(_WIDTHS)
        line.add_row(at, kind, who, wrapped(what, left))
        self._console.print(line)

    # --- the footer

    def progress(self, name: str, done: int, total: int, more: str = "") -> None:
        """How far a part of the demo is."""
        self._progress[name] = (done, total, more)
        if self._live is not None:
            self._refresh()
        elif not self._fed and (done == total or time.monotonic() > self._line_at):
            self._line_at = time.monotonic() + _LINE_EVERY_S
            self._console.print(f"{name}: {done:,} of {total:,} events")

    def counted(self, counts: Counts) -> None:
        """New counts from the API."""
        self._counts = counts
        if self._live is not None:
            self._refresh()

    def _refresh(self) -> None:
        assert self._live is not None
        if time.monotonic() > self._line_at:  # drawing costs more than counting
            self._line_at = time.monotonic() + 0.1
            self._live.update(self._footer(), refresh=True)

    def _footer(self) -> RenderableType:
        bars = Table.grid(padding=(0, 2))
        for name, (done, total, more) in self._progress.items():
            bars.add_row(name, ProgressBar(total, done, width=24), f"{done:,} of {total:,}", Text(more, "dim"))
        counts = self._counts
        totals = {
            "customers": counts.customers,
            "sessions": counts.sessions or 0,
            "handoffs": sum(counts.handoffs.values()),
            "signals": sum(counts.signals.values()),
            "refused": self._refused,
        }
        return Group(
            Rule(style="dim"),
            bars,
            self._channels(counts.events),
            Text("   ").join(Text.assemble((f"{n:,}", "bold"), f" {name}") for name, n in totals.items()),
            Text("Ctrl-C stops everything.", "dim"),
        )

    def _channels(self, events: Mapping[str, int]) -> Table:
        """Events per channel, side by side, the busiest first."""
        across = max(1, self._console.width // _CHANNEL_CELL)
        grid = Table.grid(padding=(0, 1))
        for _ in range(across):
            grid.add_column(width=_CHANNEL_CELL - 2)
        cells = [
            Text.assemble((f"{count:>5,}", "bold cyan"), f" {channel}")
            for channel, count in sorted(events.items(), key=lambda item: (-item[1], item[0]))
        ]
        for at in range(0, len(cells), across):
            grid.add_row(*cells[at : at + across])
        return grid


def clock(at: timedelta) -> str:
    """Story time as h:mm."""
    minutes = int(at.total_seconds()) // 60
    return f"{minutes // 60}:{minutes % 60:02d}"
