"""The form of `story.toml`; its head explains every field to the author."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

Note = Literal[
    "session", "late", "duplicate",
    "handoff:channel", "handoff:actor", "handoff:group",
    "signal:repeated-contact", "signal:channel-ping-pong", "signal:missed-sla-or-long-wait",
    "signal:case-reopened", "signal:poor-survey-answer",
]  # fmt: skip


class ScriptItem(Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    id: str
    status: str | None = None
    title: str | None = None
    group: str | None = None
    assignee: str | None = None
    due_at: str | None = None
    sla_missed: bool | None = None


class Line(Struct, frozen=True, forbid_unknown_fields=True, rename={"as_": "as"}):
    """One event."""

    at: str
    on: str
    type: str
    as_: str
    by: str | None = None
    where: str | None = None
    device: str | None = None
    item: ScriptItem | None = None
    wait_s: int | None = None
    survey: str | None = None
    say: str | None = None
    delivered: str | None = None
    sent_twice: bool = False
    implies: tuple[Note, ...] = ()


class Customer(Struct, frozen=True, forbid_unknown_fields=True):
    """One customer's storyline. `interesting`: the one whose context the demo shows at its end."""

    role: str
    title: str
    about: str
    numbers: tuple[str, ...]
    ids: dict[str, tuple[str, str, str]]
    steps: tuple[Line, ...]
    interesting: bool = False


class BadLine(Struct, frozen=True, forbid_unknown_fields=True):
    """One bad input."""

    at: str
    door: Literal["http", "log"]
    what: str
    reason: str
    channel: str | None = None
    change: dict[str, Any] = field(default_factory=dict)
    who: list[dict[str, str]] | None = None
    encoding: str | None = None
    cut: bool = False
    keyless: bool = False


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    hours: int
    customer: tuple[Customer, ...]
    bad: tuple[BadLine, ...]
