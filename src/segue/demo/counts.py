"""What is counted of a run, both by what the input implies and by what Segue says: one shape for the two."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counts:
    """Counts over some events. None: not known, so not compared.

    `handoffs` by kind (channel, actor, group), `signals` by rule, `refused` (at the HTTP door) and
    `dead_letters` by reason. In the three by kind, rule and reason of what an input implies, a missing
    name means none, unless `partly` says that only the names given are implied.
    """

    events: Counter[str] = field(default_factory=Counter)
    customers: int = 0
    sessions: int | None = None
    cases: int | None = None
    handoffs: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    late: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    partly: bool = False
