"""What time alone brings about: fired by the next event or by a timer record, once, in order, or not at all."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from segue.core import timers
from segue.core.apply import Applied, Duplicate
from segue.core.context import Policy, encoder
from segue.core.interaction import Entry, Interaction
from segue.core.sessions import closes_at
from segue.core.timers import AWAITED, Fired
from tests.core.builders import AGENT, DAY, HOUR, MINUTE, SECOND, T0, Customer, case, entry, kinds

GAP, GRACE = Policy().session_gap_ms, Policy().grace_ms
CLOSED = GAP + GRACE + MINUTE
"""When a session of one event is closed for sure: deadlines of sessions are whole minutes."""


def fired(outcome: Applied | Duplicate) -> list[Fired]:
    assert isinstance(outcome, Applied)
    return list(outcome.due)


def lines(customer: Customer) -> list[tuple[str, int]]:
    found = [msgspec.json.decode(raw, type=Entry) for raw in customer.now.timeline]
    return [(line.type, line.event_time_ms - T0) for line in found]


def untouched(customer: Customer) -> bytes:
    return encoder.encode(customer.now)


# --- sessions


def test_a_session_closes_when_all_that_could_join_it_would_be_late() -> None:
    customer = Customer()
    customer.does(0)
    assert customer.wall(GAP + GRACE) == []
    (close,) = customer.wall(CLOSED)
    assert kinds(close) == ["session.closed"]
    assert close.facts[0].after == customer.now.sessions[0].session_id
    assert customer.now.sessions[0].closed
    assert customer.now.deadlines == {}


def test_a_deadline_of_a_session_is_beyond_its_grace_and_less_than_a_minute_beyond() -> None:
    customer = Customer()
    for at in (0, 1, 59_999, MINUTE, 7 * MINUTE + 123):
        customer.does(at)
        session = customer.now.sessions[0]
        assert 0 < closes_at(session, customer.policy) - session.until_ms - GRACE <= MINUTE


def test_the_next_event_closes_the_session_before_it_and_then_opens_its_own() -> None:
    customer = Customer()
    customer.does(0)
    outcome = customer.does(DAY)
    assert [kinds(each) for each in fired(outcome)] == [["session.closed"]]
    assert kinds(outcome) == ["session.opened"]
    assert [session.closed for session in customer.now.sessions] == [True, False]


def test_an_event_after_the_close_by_the_clock_is_late_and_the_session_stays_as_it_was() -> None:
    customer = Customer()
    customer.does(0)
    customer.wall(CLOSED)
    before = msgspec.json.encode(customer.now.sessions)
    outcome = customer.does(GAP)  # within the grace of the newest event, but time has passed it by
    assert isinstance(outcome, Applied)
    assert outcome.late
    assert msgspec.json.encode(customer.now.sessions) == before


def test_a_session_that_a_call_holds_closes_after_the_call() -> None:
    customer = Customer(hold_max_ms=2 * HOUR)
    customer.does(0, event_type="call.started")
    assert customer.wall(CLOSED) == []
    customer.does(HOUR, event_type="call.ended")
    assert customer.wall(HOUR + GAP + GRACE) == []
    assert [kinds(each) for each in customer.wall(HOUR + CLOSED)] == [["session.closed"]]


def test_a_session_that_is_forgotten_before_its_time_is_closed_then() -> None:
    customer = Customer(keep_sessions=2, session_gap_ms=1000)
    closed = [kinds(customer.does(visit * 2000)).count("session.closed") for visit in range(4)]
    assert closed == [0, 0, 1, 1]


# --- what is begun and not ended


@pytest.mark.parametrize("name", AWAITED)
def test_what_was_begun_and_not_ended_is_abandoned_when_its_time_is_over(name: str) -> None:
    awaited, customer = AWAITED[name], Customer(session_gap_ms=DAY)
    customer.does(0, "web", event_type=awaited.starts[0], touchpoint="here")
    assert customer.wall(awaited.after_ms - 1) == []
    (found,) = customer.wall(awaited.after_ms)
    fact = found.facts[0]
    assert (fact.fact, fact.after, fact.evidence) == (awaited.fact, "here", ("e1",))
    line = msgspec.json.decode(found.raw, type=Entry)
    assert (line.type, line.channel, line.event_time_ms) == (awaited.fact, "web", T0 + awaited.after_ms)
    assert lines(customer)[-1] == (awaited.fact, awaited.after_ms)
    assert customer.wall(2 * awaited.after_ms) == []


@pytest.mark.parametrize(("name", "end"), [(name, end) for name, awaited in AWAITED.items() for end in awaited.ends])
def test_a_timer_set_and_cancelled_leaves_no_trace(name: str, end: str) -> None:
    awaited, twin, customer = AWAITED[name], Customer(session_gap_ms=DAY), Customer(session_gap_ms=DAY)
    customer.does(0, event_type=awaited.starts[0])
    customer.does(MINUTE, event_type=end)
    twin.does(0)
    twin.does(MINUTE)
    later = [each for each in customer.now.deadlines if each not in ("session", "checkout")]  # a checkout is begun
    assert later == []
    assert customer.now.deadlines["session"] == twin.now.deadlines["session"]
    assert [each for each in customer.wall(HOUR * 2) if each.facts[0].fact == awaited.fact] == []


def test_going_on_renews_the_wait() -> None:
    customer = Customer(session_gap_ms=DAY)
    customer.does(0, event_type="cart.item_added")
    customer.does(50 * MINUTE, event_type="cart.item_added")
    assert customer.wall(HOUR) == []
    assert len(customer.wall(50 * MINUTE + HOUR)) == 1


def test_an_end_that_arrived_before_its_beginning_counts() -> None:
    customer = Customer(session_gap_ms=DAY)
    customer.does(5 * MINUTE, event_type="order.placed")
    customer.does(0, event_type="checkout.started")
    assert customer.wall(DAY) == []


def test_the_end_of_an_earlier_cart_that_arrives_later_ends_nothing() -> None:
    customer = Customer(session_gap_ms=DAY)
    customer.does(5 * MINUTE, event_type="cart.item_added")
    customer.does(0, event_type="order.placed")
    assert len(customer.wall(5 * MINUTE + HOUR)) == 1


def test_a_channel_that_says_itself_that_a_cart_was_abandoned_gives_the_same_fact_once() -> None:
    customer = Customer(session_gap_ms=DAY)
    customer.does(0, event_type="cart.item_added")
    assert "cart.abandoned" in kinds(customer.does(MINUTE, event_type="cart.abandoned"))
    assert customer.wall(2 * HOUR) == []


def test_the_time_until_it_counts_as_abandoned_can_be_set() -> None:
    customer = Customer(session_gap_ms=DAY, abandoned_after_ms={"cart": SECOND})
    customer.does(0, event_type="cart.item_added")
    assert len(customer.wall(SECOND)) == 1


# --- items


def test_an_item_that_is_open_at_its_time_missed_it_once() -> None:
    customer = Customer()
    customer.does(0, item=case(due_at_ms=T0 + MINUTE, group="billing"))
    (found,) = customer.wall(MINUTE)
    assert (found.facts[0].fact, found.facts[0].item, found.facts[0].after) == ("item.sla_missed", "case:7", "billing")
    assert customer.now.items["case:7"].sla_missed
    said = customer.does(2 * MINUTE, item=case(sla_missed=True), actor=AGENT)
    assert "item.sla_missed" not in kinds(said)


def test_an_item_resolved_exactly_at_its_time_is_in_time() -> None:
    customer = Customer()
    customer.does(0, item=case(due_at_ms=T0 + MINUTE))
    assert fired(customer.does(MINUTE, item=case(status="resolved"))) == []
    assert [each for each in customer.wall(DAY) if kinds(each) != ["session.closed"]] == []


def test_an_item_resolved_after_its_time_had_missed_it_before() -> None:
    """Nobody was there to tell the time; the next event does."""
    customer = Customer()
    customer.does(0, item=case(due_at_ms=T0 + MINUTE))
    outcome = customer.does(2 * MINUTE, item=case(status="resolved"))
    assert [kinds(each) for each in fired(outcome)] == [["item.sla_missed"]]
    assert msgspec.json.decode(fired(outcome)[0].raw, type=Entry).event_time_ms == T0 + MINUTE
    assert [time for _, time in lines(customer)] == [0, MINUTE, 2 * MINUTE]


def test_a_deadline_that_is_moved_is_met_or_missed_at_its_new_time() -> None:
    customer = Customer()
    customer.does(0, item=case(due_at_ms=T0 + MINUTE))
    customer.does(SECOND, item=case(due_at_ms=T0 + 2 * MINUTE))
    assert customer.wall(MINUTE) == []
    assert len(customer.wall(2 * MINUTE)) == 1


def test_a_reopened_item_is_waited_for_again() -> None:
    customer = Customer()
    customer.does(0, item=case(due_at_ms=T0 + HOUR))
    customer.does(1, item=case(status="resolved"))
    assert set(customer.now.deadlines) == {"session"}
    customer.does(2, item=case(status="open"))
    assert set(customer.now.deadlines) == {"session", "case:7"}


def test_a_promised_call_back_that_did_not_come_is_missed() -> None:
    customer = Customer()
    promise: Any = {"kind": "callback", "id": "1", "status": "open", "due_at_ms": T0 + MINUTE}
    customer.does(0, "voice", item=msgspec.convert(promise, type=type(case())))
    (found,) = customer.wall(MINUTE)
    assert kinds(found) == ["callback.missed"]


# --- order, repetition, and what the clock shows


def test_what_is_due_fires_in_order_each_at_its_own_time_with_its_own_revision() -> None:
    customer = Customer()
    customer.does(0, event_type="cart.item_added", item=case(due_at_ms=T0 + 5 * MINUTE))
    outcome = customer.does(DAY)
    found = [(kinds(each)[0], msgspec.json.decode(each.raw, type=Entry).event_time_ms - T0) for each in fired(outcome)]
    whole = -T0 % MINUTE  # the first whole minute after T0
    assert found == [
        ("item.sla_missed", 5 * MINUTE),
        ("session.closed", GAP + GRACE + whole),
        ("cart.abandoned", HOUR),
    ]
    assert [each.revision for each in fired(outcome)] == [2, 3, 4]
    assert isinstance(outcome, Applied)
    assert outcome.revision == customer.now.revision == 5


def test_a_timer_record_that_comes_twice_or_too_early_changes_nothing() -> None:
    customer = Customer()
    customer.does(0, event_type="cart.item_added")
    before = untouched(customer)
    assert customer.wall(GAP) == []
    assert untouched(customer) == before
    assert len(customer.wall(2 * HOUR)) == 2
    before = untouched(customer)
    assert customer.wall(2 * HOUR) == []
    assert untouched(customer) == before


def test_a_late_or_repeated_event_fires_nothing() -> None:
    customer = Customer()
    customer.does(DAY, item=case(due_at_ms=T0 + MINUTE))  # due before it was known
    assert fired(customer.does(0, event_id="late")) == []
    before = untouched(customer)
    assert isinstance(customer.does(DAY, event_id="late"), Duplicate)
    assert untouched(customer) == before


def imported(customer: Customer, at: int, received: int, **more: Any) -> Applied | Duplicate:
    """An event of the past that is received now."""
    made = entry(f"i{at}", at, **more)
    made.received_at_ms = T0 + received
    return customer.apply(Interaction(customer.key, made, ()))


def test_an_import_of_the_past_fires_nothing_early_though_the_clock_is_far_beyond() -> None:
    """Ten years in a second: between two events of a visit no time passes but the clock's."""
    customer = Customer()
    imported(customer, 0, 3650 * DAY, item=case(due_at_ms=T0 + HOUR))
    assert customer.wall(3650 * DAY + GAP) == []
    outcome = imported(customer, MINUTE, 3650 * DAY + 1)
    assert fired(outcome) == []
    assert customer.spans == [(0, MINUTE, 2)]
    wake = timers.wake_at(customer.now, customer.policy) - T0
    assert 3650 * DAY + GAP + GRACE < wake <= 3650 * DAY + CLOSED + MINUTE + 1
    assert customer.wall(3650 * DAY + GAP + GRACE) == []
    assert [kinds(each) for each in customer.wall(wake)] == [["session.closed"]]


def test_a_delay_within_the_grace_does_not_put_off_what_is_due() -> None:
    customer = Customer()
    imported(customer, 0, GRACE, item=case(due_at_ms=T0 + HOUR))
    customer.wall(CLOSED)
    assert timers.wake_at(customer.now, customer.policy) == T0 + HOUR
    assert len(customer.wall(HOUR)) == 1


def test_the_index_holds_the_earliest_deadline_and_nothing_when_there_is_none() -> None:
    customer = Customer()
    customer.does(0, event_type="form.started")
    assert timers.wake_at(customer.now, customer.policy) == T0 + 30 * MINUTE
    customer.does(1, event_type="form.submitted")
    assert timers.wake_at(customer.now, customer.policy) > T0 + GAP + GRACE
    customer.wall(DAY)
    assert timers.wake_at(customer.now, customer.policy) == 0
