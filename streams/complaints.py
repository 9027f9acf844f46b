"""complaints: a burst of complaints at one touchpoint, over all customers, to `segue.signals`. In Faust.

Reads `segue.journey-steps`, keyed by customer; re-keys the complaints by touchpoint, so that one worker counts
a touchpoint however many there are; counts them with `segue.agents.burst`. At least once all the way: a step
or a complaint that comes again has an event id that was counted, and a signal that is sent again has the id
it had.

Two agents, since counting needs another key than the steps have:

    segue.journey-steps ─► [collect] ─► segue.complaints.by-touchpoint ─► [count] ─► segue.signals
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

import faust
from msgspec import Struct

from segue.agents import burst
from segue.agents.records import StructCodec, journey_steps, send, signals
from segue.agents.worker import app, run
from segue.core import ids
from segue.core.interaction import StepView
from segue.core.rules import Condition, RuleBook, Signal
from segue.runtime import rule_book
from segue.settings import Settings, load

NAME = "segue.complaints"
RULE, VERSION = "complaint-burst", 1
POLICY = burst.Policy(count=5, within_ms=10 * 60_000, period_ms=30 * 60_000)
COMPLAINT = "complaint.made"
POOR_ANSWER = "poor-survey-answer"
"""The rule whose limits say from which score on an answer is a complaint."""


class Complaint(Struct, frozen=True):
    """One complaint, on its way to whoever counts its touchpoint."""

    place: str
    event_id: str
    at_ms: int


def poor_limits(book: RuleBook) -> tuple[Condition, ...]:
    """The conditions under which a survey answer is poor; none when the rule file has no such rule."""
    return tuple(condition for rule in book.rules if rule.id == POOR_ANSWER for condition in rule.any)


def complaint_of(step: StepView, limits: tuple[Condition, ...]) -> Complaint | None:
    """The complaint that a step is, if it is one."""
    poor = any(fact.fact == limit.fact and limit.holds(fact) for fact in step.facts for limit in limits)
    if not poor and step.entry.type != COMPLAINT:
        return None
    entry = step.entry
    # Nothing happens after it was received: a clock that runs ahead must not hide those that run right.
    at = min(entry.event_time_ms, entry.received_at_ms)
    return Complaint(f"{entry.channel}/{entry.touchpoint or '-'}", entry.id, at)


def signal_of(place: str, found: burst.Burst) -> Signal:
    """The signal of a burst, with an id made of its place and period."""
    first, last = found.events[0].at_ms, found.events[-1].at_ms
    count, minutes = len(found.events), max(1, -(-(last - first) // 60_000))
    return Signal(
        signal_id=ids.derive(ids.SIGNAL, f"{RULE}/{VERSION}/{place}/{found.period_ms}"),
        rule=RULE,
        rule_version=VERSION,
        severity="high",
        department="pr",
        subject=f"touchpoint:{place}",
        reason={
            "en": f"{count} complaints within {minutes} min at {place}.",
            "zh": f"{place} 在 {minutes} 分钟内收到 {count} 次投诉。",
        },
        evidence=tuple(event.event_id for event in found.events),
        first_seen_ms=first,
        last_seen_ms=last,
    )


def build(settings: Settings, policy: burst.Policy = POLICY) -> faust.App:
    """The Faust app with both agents."""
    agents = app(NAME, settings)
    limits = poor_limits(rule_book(settings.rules))
    by_touchpoint = agents.topic(
        f"{NAME}.by-touchpoint", key_serializer="raw", value_serializer=StructCodec(Complaint), internal=True
    )
    states = agents.Table("states", key_type=bytes, value_type=bytes)
    found = signals(agents)

    @agents.agent(journey_steps(agents), name="collect")  # type: ignore[untyped-decorator]
    async def collect(steps: AsyncIterable[StepView]) -> None:
        async for step in steps:
            complaint = complaint_of(step, limits)
            if complaint is not None:
                await send(by_touchpoint, complaint.place, complaint)

    @agents.agent(by_touchpoint, name="count")  # type: ignore[untyped-decorator]
    async def count(complaints: AsyncIterable[Complaint]) -> None:
        async for complaint in complaints:
            key = complaint.place.encode()
            raw: Any = states.get(key)
            state = burst.BurstState() if raw is None else burst.decode(raw)
            # The signal first: a state that says it was told while it was not would lose it for good.
            for each in burst.observe(state, complaint.at_ms, complaint.event_id, policy):
                await send(found, f"touchpoint:{complaint.place}", signal_of(complaint.place, each))
            states[key] = burst.encode(state)

    return agents


def main(settings: Settings | None = None) -> None:
    """Run until Ctrl-C or SIGTERM."""
    found = settings or load()
    run(build(found), found)


if __name__ == "__main__":
    main()
