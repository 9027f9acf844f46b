"""Laws of time, for sequences that nobody thought of: order of arrival, duplicates, bridges.

The expected sessions are computed below from all events at once, in order of time, by none of the code under test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.core.apply import Applied, Duplicate
from segue.core.context import decoder, encoder
from segue.core.interaction import Actor, Interaction
from tests.core.builders import HOUR, MINUTE, T0, Customer, entry

GAP, GRACE, HOLD = 30 * MINUTE, 10 * MINUTE, 2 * HOUR
GAPS = {"email": 3 * HOUR, "app": 12 * MINUTE}
POLICY: dict[str, Any] = {
    "session_gap_ms": GAP,
    "channel_gaps_ms": GAPS,
    "session_max_ms": 1000 * HOUR,
    "hold_max_ms": HOLD,
    "keep_sessions": 1000,
}

STEPS = (
    1,
    MINUTE,
    5 * MINUTE,
    GRACE - 1,
    GRACE,
    GAPS["app"],
    GAPS["app"] + 1,
    GAP - 1,
    GAP,
    GAP + 1,
    2 * HOUR,
    4 * HOUR,
)
DELAYS = (0, 0, 0, MINUTE, GRACE // 2, GRACE)
WHAT = (
    ("customer", "web", "page.viewed"),
    ("customer", "app", "screen.viewed"),
    ("customer", "email", "message.received"),
    ("bot", "chat", "message.sent"),
    ("agent", "voice", "case.updated"),
    ("agent", "email", "message.sent"),
    ("system", "sms", "parcel.delayed"),
    ("customer", "voice", "call.started"),
    ("agent", "voice", "call.started"),
    ("agent", "voice", "call.ended"),
    ("system", "ivr", "call.ended"),
    ("customer", "chat", "conversation.started"),
    ("customer", "chat", "conversation.ended"),
)


class Happened(NamedTuple):
    """An event: when, what, and when it arrives."""

    at: int
    actor: str
    channel: str
    type: str
    arrives: int
    name: str


@st.composite
def happenings(draw: st.DrawFn) -> list[Happened]:
    """Events in order of time, each delayed by the grace at most. One integer stands for one event: quick to draw."""
    found, at = [], 0
    codes = st.integers(0, len(STEPS) * len(DELAYS) * len(WHAT) - 1)
    for number, code in enumerate(draw(st.lists(codes, min_size=1, max_size=12))):
        rest, what = divmod(code, len(WHAT))
        delay, step = divmod(rest, len(STEPS))
        at += STEPS[step]
        found.append(Happened(at, *WHAT[what], at + DELAYS[delay], f"e{number}"))
    return found


def arriving(happened: list[Happened]) -> list[Happened]:
    return sorted(happened, key=lambda event: (event.arrives, event.at))


def does(customer: Customer, event: Happened) -> Applied | Duplicate:
    actor: Any = Actor(event.actor)  # type: ignore[arg-type]
    made = entry(event.name, event.at, event.channel, event.type, actor=actor)
    made.received_at_ms = T0 + event.arrives
    return customer.apply(Interaction(customer.key, made, ()))


@dataclass
class Expected:
    """A session as it must be."""

    start: int
    end: int
    until: int
    reach: int
    events: int = 0
    channels: set[str] = field(default_factory=set)


def expected(happened: list[Happened]) -> list[Expected]:
    """One walk in order of time: an event within reach joins; a customer or bot beyond it opens the next session."""
    found: list[Expected] = []
    holds: dict[str, int] = {}
    for event in sorted(happened, key=lambda each: each.at):
        thing, _, verb = event.type.partition(".")
        session = found[-1] if found and event.at <= found[-1].until else None
        if session is None and event.actor in ("customer", "bot"):
            session = Expected(event.at, event.at, event.at, event.at)
            found.append(session)
            holds = {}
        if session is not None:
            session.events += 1
            session.channels.add(event.channel)
            if event.actor != "system" or thing in ("call", "conversation"):
                session.end = event.at
                session.reach = max(session.reach, event.at + GAPS.get(event.channel, GAP))
        if thing in ("call", "conversation"):
            if verb == "started" and session is not None:
                holds[thing] = event.at
            elif verb == "ended" and event.at <= holds.get(thing, -HOLD) + HOLD:
                del holds[thing]
        if found:
            found[-1].until = max(found[-1].reach, *(since + HOLD for since in holds.values()), 0)
    return found


def sessions_of(customer: Customer) -> list[Expected]:
    return [
        Expected(s.started_at_ms - T0, s.last_event_at_ms - T0, s.until_ms - T0, 0, s.events, set(s.channels))
        for s in customer.now.sessions
    ]


def lived(happened: list[Happened]) -> Customer:
    """With a timer record of the clock's before each event: one more would change nothing."""
    customer = Customer(**POLICY)
    for event in happened:
        if customer.context is not None:
            customer.wall(event.arrives)
        outcome = does(customer, event)
        assert isinstance(outcome, Applied)
        assert not outcome.late
    return customer


def laws(examples: int) -> Any:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@laws(3000)
@given(happenings())
def test_any_order_of_arrival_within_the_grace_gives_the_sessions_of_the_order_of_time(
    happened: list[Happened],
) -> None:
    found = sessions_of(lived(arriving(happened)))
    wanted = expected(happened)
    for session in wanted:
        session.reach = 0
    assert found == wanted


@laws(2000)
@given(happenings(), st.integers(1, 5))
def test_a_document_that_was_stored_and_loaded_in_between_ends_byte_for_byte_the_same(
    happened: list[Happened], batch: int
) -> None:
    live, replayed = Customer(**POLICY), Customer(**POLICY)
    for number, event in enumerate(arriving(happened)):
        does(live, event)
        if number % batch == 0 and replayed.context is not None:
            replayed.context = decoder.decode(encoder.encode(replayed.now))
        does(replayed, event)
        for customer in (live, replayed):
            customer.wall(event.arrives + GAP)
    assert encoder.encode(live.now) == encoder.encode(replayed.now)


@laws(2000)
@given(happenings(), st.randoms(use_true_random=False))
def test_a_duplicate_changes_nothing_whenever_it_comes(happened: list[Happened], chance: random.Random) -> None:
    customer, known = Customer(**POLICY), []
    for event in arriving(happened):
        does(customer, event)
        known.append(event)
        before = encoder.encode(customer.now)
        assert isinstance(does(customer, chance.choice(known)), Duplicate)
        assert encoder.encode(customer.now) == before


@laws(2000)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["web", "app", "email"])), max_size=10), st.randoms())
def test_bridging_is_associative_and_no_id_is_lost(visits: list[tuple[int, str]], chance: random.Random) -> None:
    """Visits in any order whatever: the same sessions come of it, and each id given is a session's or named by one."""
    shuffled = chance.sample(visits, len(visits))
    found = []
    for order in (visits, shuffled):
        customer = Customer(**POLICY | {"grace_ms": 1000 * HOUR})
        ids = []
        for number, (at, channel) in enumerate(order):
            outcome = customer.does(at * 12 * MINUTE, channel, event_id=f"{number}")
            assert isinstance(outcome, Applied)
            ids += [fact.after for fact in outcome.facts if fact.fact == "session.opened"]
        found.append(sessions_of(customer) if visits else [])
        if visits:
            assert sorted(ids) == sorted(i for s in customer.now.sessions for i in (s.session_id, *s.merged))
    assert found[0] == found[1]


@laws(2000)
@given(happenings(), st.lists(st.integers(0, 24), max_size=12))
def test_nothing_changes_a_closed_session_and_each_is_closed_once(happened: list[Happened], clock: list[int]) -> None:
    """Events in any order at all, many of them late, between timer records at any time."""
    customer, told = Customer(**POLICY), []
    kept: dict[str, bytes] = {}
    for number, event in enumerate(sorted(happened, key=lambda each: each.at * 7919 % 1_000_003)):
        outcome = does(customer, event)
        assert isinstance(outcome, Applied)
        changes = [outcome, *outcome.due]
        if number < len(clock):
            changes += customer.wall(clock[number] * HOUR)
        told += [fact.after for change in changes for fact in change.facts if fact.fact == "session.closed"]
        closed = {s.session_id: msgspec.json.encode(s) for s in customer.now.sessions if s.closed}
        assert {name: closed.get(name) for name in kept} == kept
        kept = closed
    assert sorted(told) == sorted(kept)
