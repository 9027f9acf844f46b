"""Applying one interaction: duplicates, lateness, the timeline, and what holds for any history."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core.apply import DUPLICATE, Applied, Duplicate
from segue.core.context import Context, Policy, decoder, encoder
from segue.core.event import Identifier
from segue.core.ids import SEEN_WIDTH
from segue.core.interaction import Actor, Entry, Interaction, ItemChange
from tests.core.builders import BOT, DAY, HOUR, MINUTE, T0, Customer, answer, case, entry, kinds, only

GRACE = Policy().grace_ms
PHONE, COOKIE = Identifier("phone", "+8613800000000"), Identifier("cookie_id", "c-1")


def timeline(context: Context) -> list[Entry]:
    return [msgspec.json.decode(raw, type=Entry) for raw in context.timeline]


def test_the_first_interaction_creates_the_customer() -> None:
    customer = Customer()
    assert kinds(customer.does(0))[0] == "customer.created"
    assert (customer.now.revision, customer.now.created_at_ms) == (1, T0)
    assert "customer.created" not in kinds(customer.does(1))


def test_an_event_id_seen_before_is_a_duplicate_and_changes_nothing() -> None:
    customer = Customer()
    customer.does(0, event_id="e1", item=case())
    before = encoder.encode(customer.now)
    assert customer.does(5 * MINUTE, "voice", event_id="e1") is DUPLICATE
    assert encoder.encode(customer.now) == before


def test_a_duplicate_is_known_as_long_as_its_id_is_among_the_latest_kept() -> None:
    customer = Customer(keep_ids=3)
    for event_id in ("e1", "e2", "e3"):
        customer.does(0, event_id=event_id)
    assert isinstance(customer.does(0, event_id="e1"), Duplicate)
    customer.does(0, event_id="e4")
    assert isinstance(customer.does(0, event_id="e1"), Applied)


def test_lateness_is_measured_against_the_highest_event_time_seen_and_not_the_last() -> None:
    customer = Customer()
    customer.does(GRACE + 1)
    customer.does(GRACE)
    outcome = customer.does(0)
    assert isinstance(outcome, Applied)
    assert outcome.late
    assert customer.now.stream_time_ms == T0 + GRACE + 1


def test_a_late_event_is_kept_on_the_timeline_in_its_place_and_marked() -> None:
    customer = Customer()
    customer.does(0, event_id="first")
    customer.does(2 * GRACE, event_id="third")
    customer.does(1, event_id="second")
    assert [(e.id, e.late) for e in timeline(customer.now)] == [("first", False), ("second", True), ("third", False)]


def test_a_late_event_moves_nobody_yet_counts_its_item_and_its_answer() -> None:
    customer = Customer()
    customer.does(2 * GRACE, "app")
    outcome = customer.does(0, "voice", item=case(), survey=answer("nps", 3))
    assert {"item.opened", "survey.answered"} <= set(kinds(outcome))
    assert customer.now.current is not None
    assert customer.now.current.channel == "app"


def test_the_timeline_is_in_event_time_order_and_equal_times_in_order_of_arrival() -> None:
    customer = Customer()
    for event_id, at in [("b", 2), ("d", 3), ("a", 1), ("c", 2)]:
        customer.does(at, event_id=event_id)
    assert [e.id for e in timeline(customer.now)] == ["a", "b", "c", "d"]


def test_the_timeline_keeps_the_latest_entries_by_event_time() -> None:
    customer = Customer(keep_timeline=3)
    for event_id, at in [("1", 1), ("5", 5), ("3", 3), ("4", 4), ("2", 2)]:
        customer.does(at, event_id=event_id)
    assert [e.id for e in timeline(customer.now)] == ["3", "4", "5"]


def test_interactions_are_counted_per_channel() -> None:
    customer = Customer()
    for at, channel in enumerate(["web", "voice", "web"]):
        customer.does(at, channel)
    assert customer.now.channels == {"web": 2, "voice": 1}


def test_an_answer_and_a_wait_are_facts_with_their_values() -> None:
    customer = Customer()
    outcome = customer.does(0, touchpoint="hotline", survey=answer("ces", 4.5), wait_ms=300_000)
    answered, waited = only(outcome, "survey.answered"), only(outcome, "wait")
    assert (answered.after, answered.value) == ("ces", 4.5)
    assert (waited.after, waited.value) == ("hotline", 300_000)


# --- identifiers


def test_an_identifier_is_known_once_and_since_its_first_event() -> None:
    customer = Customer()
    customer.does(0, identifiers=(PHONE,))
    customer.does(1, identifiers=(PHONE, COOKIE))
    assert [(i.type, i.since_ms - T0) for i in customer.now.identifiers] == [("phone", 0), ("cookie_id", 1)]


def test_a_claimed_identifier_becomes_verified_and_stays_so() -> None:
    customer = Customer()
    for at, level in enumerate(("claimed", "verified", "inferred")):
        customer.does(at, identifiers=(Identifier("phone", "+8613800000000", level),))  # type: ignore[arg-type]
    assert [i.level for i in customer.now.identifiers] == ["verified"]


def test_beyond_the_limit_the_weakest_identifier_known_longest_is_forgotten() -> None:
    customer = Customer(keep_identifiers=3)
    customer.does(0, identifiers=(PHONE,))
    for at in range(1, 5):
        customer.does(at, identifiers=(Identifier("case_id", str(at)),))
    assert [i.value for i in customer.now.identifiers] == ["+8613800000000", "3", "4"]


# --- properties

CHANNELS = st.sampled_from(["web", "app", "chat", "voice", "store"])
CHANGES = st.builds(
    ItemChange,
    kind=st.sampled_from(["case", "order"]),
    id=st.integers(0, 400).map(str),
    status=st.sampled_from([None, "open", "waiting", "resolved", "closed"]),
    group=st.sampled_from([None, "账单", "second line"]),
    reopen_count=st.sampled_from([None, 0, 1, 3]),
    sla_missed=st.sampled_from([None, True]),
)
EVENTS = st.builds(
    lambda at, channel, **more: entry(f"e{at}", at, channel, **more),
    at=st.one_of(st.integers(0, 3 * HOUR), st.integers(0, 90 * DAY)),
    channel=CHANNELS,
    touchpoint=st.sampled_from([None, "结算页", "hotline"]),
    actor=st.sampled_from([None, BOT, Actor("agent", "a-1"), Actor("system")]),
    item=st.one_of(st.none(), CHANGES),
    text=st.sampled_from([None, "我要退款", "where is my order?"]),
    wait_ms=st.sampled_from([None, 0, 400_000]),
)
HISTORIES = st.lists(
    st.builds(
        Interaction,
        customer_key=st.just("customer-1"),
        entry=EVENTS,
        identifiers=st.lists(st.builds(Identifier, st.sampled_from(["phone", "case_id"]), st.integers(0, 99).map(str)),
                             max_size=2).map(tuple),
        contested=st.sampled_from([(), ("case_id",)]),
    ),
    max_size=40,
)  # fmt: skip


def fresh(interaction: Interaction) -> Interaction:
    """The interaction as another process reads it: applying writes into it."""
    return msgspec.json.decode(msgspec.json.encode(interaction), type=Interaction)


def applied(history: list[Interaction]) -> tuple[Customer, list[Applied | Duplicate]]:
    customer = Customer()
    return customer, [customer.apply(fresh(interaction)) for interaction in history]


@settings(deadline=None)
@given(HISTORIES)
def test_the_same_history_gives_the_same_document_byte_for_byte_and_the_same_facts(history: list[Interaction]) -> None:
    first, second = applied(history), applied(history)
    assert first[1] == second[1]
    if history:
        assert encoder.encode(first[0].now) == encoder.encode(second[0].now)


@settings(deadline=None)
@given(HISTORIES, st.integers(0, 40))
def test_a_document_written_and_read_in_between_goes_on_as_if_nothing_happened(
    history: list[Interaction], at: int
) -> None:
    expected, outcomes = applied(history)
    restarted, found = applied(history[:at])
    if restarted.context is not None:
        restarted.context = decoder.decode(encoder.encode(restarted.context))
    found += [restarted.apply(fresh(interaction)) for interaction in history[at:]]
    assert found == outcomes
    if history:
        assert encoder.encode(restarted.now) == encoder.encode(expected.now)


@settings(deadline=None)
@given(HISTORIES, st.data())
def test_repeating_any_event_anywhere_behind_itself_changes_nothing(
    history: list[Interaction], data: st.DataObject
) -> None:
    repeated = list(history)
    for _ in range(min(len(history), 5)):
        first = data.draw(st.integers(0, len(repeated) - 1))
        repeated.insert(data.draw(st.integers(first + 1, len(repeated))), repeated[first])
    once, outcomes = applied(history)
    twice, found = applied(repeated)
    assert [o for o in found if isinstance(o, Applied)] == [o for o in outcomes if isinstance(o, Applied)]
    if history:
        assert encoder.encode(twice.now) == encoder.encode(once.now)


@settings(deadline=None)
@given(HISTORIES)
def test_an_encoded_document_decodes_to_the_same(history: list[Interaction]) -> None:
    customer, _ = applied(history)
    if customer.context is not None:
        decoded = decoder.decode(encoder.encode(customer.now))
        assert decoded == customer.now
        assert encoder.encode(decoded) == encoder.encode(customer.now)


def test_a_document_stays_bounded_whatever_a_customer_does() -> None:
    """Every event with a session, a channel, an item, two identifiers and long texts of its own."""
    policy, customer = Policy(), Customer()
    sizes = []
    for number in range(2000):
        customer.does(
            number * HOUR,
            ("web", "voice", "chat")[number % 3],
            identifiers=(Identifier("case_id", str(number)), Identifier("email", f"{number}@example.com")),
            item=case(str(number), ("open", "resolved", "closed")[number % 3], title="标题" * 100),
            text="字" * 300,
        )
        sizes.append(len(encoder.encode(customer.now)))
    now = customer.now
    assert len(now.sessions) == policy.keep_sessions
    assert len(now.timeline) == policy.keep_timeline
    assert len(now.handoffs) == policy.keep_handoffs
    assert len(now.identifiers) == policy.keep_identifiers
    assert len(now.items) <= 4 * policy.keep_closed_items
    assert len(now.openings) <= policy.keep_openings
    assert len(now.seen) == SEEN_WIDTH * policy.keep_ids
    assert max(sizes[1000:]) < 1.01 * max(sizes[:1000])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_list_outgrows_its_limit_in_two_thousand_random_events(seed: int) -> None:
    chance = random.Random(seed)
    limits = {"sessions": 4, "timeline": 5, "handoffs": 3, "openings": 6, "identifiers": 7}
    customer = Customer(keep_closed_items=5, **{f"keep_{name}": limit for name, limit in limits.items()})
    for number in range(2000):
        customer.does(
            chance.randrange(90 * DAY),
            chance.choice(["web", "voice", "store"]),
            identifiers=(Identifier(chance.choice(["phone", "case_id"]), str(number)),),
            item=case(str(chance.randrange(500)), chance.choice([None, "open", "closed", "resolved"])),  # type: ignore[arg-type]
            actor=chance.choice([None, BOT, Actor("agent"), Actor("system")]),
        )
        assert all(len(getattr(customer.now, name)) <= limit for name, limit in limits.items())
        assert len(customer.now.items) <= 20
    assert len(encoder.encode(customer.now)) < 30_000
