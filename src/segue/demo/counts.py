"""What is counted of a run: what its input implies, and what Segue says, in one shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Row = tuple[str, str, int | None, int]
"""Section, name, implied (None: the input does not plainly say), counted."""


@dataclass
class Counts:
    """Counts over some events.

    `handoffs` are by kind (channel, actor, group), `signals` by rule, `refused` (answered by the API) and
    `dead_letters` (records written straight to the log) by reason. Of what an input implies, None means
    that it does not plainly say; `partly`, that the handoffs and signals it names are not all of them.
    """

    events: Counter[str] = field(default_factory=Counter)
    customers: int = 0
    cases: int = 0
    sessions: int | None = None
    handoffs: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    late: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    partly: bool = False

    def __sub__(self, before: Counts) -> Counts:
        """What came since `before`. Only of counts that Segue said, where nothing is unknown."""
        return Counts(
            events=_less(self.events, before.events),
            customers=self.customers - before.customers,
            cases=self.cases - before.cases,
            sessions=(self.sessions or 0) - (before.sessions or 0),
            handoffs=_less(self.handoffs, before.handoffs),
            signals=_less(self.signals, before.signals),
            late=self.late - before.late,
            duplicates=self.duplicates - before.duplicates,
            refused=_less(self.refused, before.refused),
            dead_letters=_less(self.dead_letters, before.dead_letters),
        )


def from_stats(stats: Mapping[str, Any]) -> Counts:
    """The counts in an answer of `GET /v1/stats`. What the API refuses stands in no counter of the processors."""
    return Counts(
        events=Counter(stats["events"]["by_channel"]),
        customers=stats["customers"],
        cases=stats["items"].get("case", {}).get("opened", 0),
        sessions=stats["sessions"],
        handoffs=Counter(stats["handoffs"]["by_kind"]),
        signals=Counter(stats["signals"]["by_rule"]),
        late=stats["late"],
        duplicates=stats["duplicates"],
        dead_letters=Counter(stats["rejected"]["by_reason"]),
    )


def compared(implied: Counts, counted: Counts) -> list[Row]:
    """Every count beside what it should be."""
    some = implied.partly
    return [
        *_named("events by channel", implied.events, counted.events),
        ("events by channel", "all", sum(implied.events.values()), sum(counted.events.values())),
        ("found in them", "customers", implied.customers, counted.customers),
        ("found in them", "cases", implied.cases, counted.cases),
        ("found in them", "sessions", implied.sessions, counted.sessions or 0),
        ("found in them", "late events", implied.late, counted.late),
        ("found in them", "repeated events", implied.duplicates, counted.duplicates),
        *_named("handoffs by kind", implied.handoffs, counted.handoffs, some),
        *_named("signals by rule", implied.signals, counted.signals, some),
        *_named("refused by the API", implied.refused, counted.refused),
        *_named("dead letters", implied.dead_letters, counted.dead_letters),
    ]


def agrees(row: Row) -> bool:
    """Whether a count is what the input implies, as far as that says."""
    _, _, implied, counted = row
    return implied is None or implied == counted


def _named(section: str, implied: Counter[str], counted: Counter[str], some: bool = False) -> list[Row]:
    """One row per name that either side knows, the largest first."""
    size = implied | counted
    names = sorted((name for name in size if size[name]), key=lambda name: (-size[name], name))
    return [(section, name, None if some and name not in implied else implied[name], counted[name]) for name in names]


def _less(now: Counter[str], before: Counter[str]) -> Counter[str]:
    return Counter({name: count - before[name] for name, count in now.items() if count != before[name]})
