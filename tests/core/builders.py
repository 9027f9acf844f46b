"""Short ways to say what happened to a customer."""

from __future__ import annotations

from typing import Any

from segue.core import timers
from segue.core.apply import Applied, Duplicate, apply, new_context
from segue.core.context import Context, Policy
from segue.core.event import Identifier
from segue.core.interaction import Actor, Answer, Entry, Fact, Interaction, ItemChange
from segue.core.timers import Fired

T0 = 1_760_000_000_000
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
AGENT, BOT, SYSTEM = Actor("agent", "a-1"), Actor("bot"), Actor("system")


def entry(event_id: str, at: int, channel: str = "web", event_type: str = "page.viewed", **more: Any) -> Entry:
    """An entry `at` ms after T0, received as it happened."""
    return Entry(id=event_id, type=event_type, channel=channel, event_time_ms=T0 + at, received_at_ms=T0 + at, **more)


def case(ref: str = "7", status: str | None = "open", **more: Any) -> ItemChange:
    return ItemChange("case", ref, status, **more)  # type: ignore[arg-type]


def answer(metric: str, score: float) -> Answer:
    return Answer(metric, score)  # type: ignore[arg-type]


class Customer:
    """One customer's context with the policy it is kept by; events get ids `e1`, `e2`, ... unless named."""

    def __init__(self, key: str = "customer-1", **policy: Any) -> None:
        self.key, self.policy = key, Policy(**policy)
        self.context: Context | None = None
        self._count = 0

    def does(
        self,
        at: int,
        channel: str = "web",
        *,
        event_id: str | None = None,
        identifiers: tuple[Identifier, ...] = (),
        event_type: str = "page.viewed",
        contested: tuple[str, ...] = (),
        **more: Any,
    ) -> Applied | Duplicate:
        """Apply one event `at` ms after T0."""
        self._count += 1
        made = entry(event_id or f"e{self._count}", at, channel, event_type, **more)
        return self.apply(Interaction(self.key, made, identifiers, contested))

    def apply(self, interaction: Interaction) -> Applied | Duplicate:
        if self.context is None:
            self.context = new_context(self.key, interaction.entry)
        return apply(self.context, interaction, self.policy)

    def wall(self, at: int) -> list[Fired]:
        """A timer record when the wall clock shows `at` ms after T0."""
        wall = T0 + at
        return list(timers.fire(self.now, timers.now_of(self.now, wall, self.policy), wall, self.policy))

    @property
    def now(self) -> Context:
        """The context as it stands."""
        assert self.context is not None
        return self.context

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """Sessions as (start, end, events), times in ms after T0."""
        return [(s.started_at_ms - T0, s.last_event_at_ms - T0, s.events) for s in self.now.sessions]


def kinds(outcome: Applied | Duplicate | Fired) -> list[str]:
    """The kinds of the facts of an outcome."""
    assert not isinstance(outcome, Duplicate)
    return [fact.fact for fact in outcome.facts]


def only(outcome: Applied | Duplicate, kind: str) -> Fact:
    """The one fact of a kind."""
    assert isinstance(outcome, Applied)
    (found,) = [fact for fact in outcome.facts if fact.fact == kind]
    return found
