"""Detected handoffs: when a move is one, and what the context shows of where the customer is."""

from __future__ import annotations

import pytest

from segue.core.apply import Applied
from segue.core.context import Policy
from tests.core.builders import AGENT, BOT, MINUTE, SYSTEM, T0, Customer, case, kinds, only

GAP, GRACE = Policy().session_gap_ms, Policy().grace_ms


def test_another_channel_within_the_session_is_a_handoff() -> None:
    customer = Customer()
    customer.does(0, "app")
    handoff = only(customer.does(GAP, "voice"), "handoff.channel")
    assert (handoff.before, handoff.after) == ("app", "voice")


def test_another_channel_in_the_next_session_is_no_handoff() -> None:
    customer = Customer()
    customer.does(0, "app")
    assert "handoff.channel" not in kinds(customer.does(GAP + 1, "voice"))
    assert customer.now.handoffs == []


@pytest.mark.parametrize("status", ["open", "waiting"])
def test_another_channel_in_the_next_session_is_a_handoff_while_an_item_is_unresolved(status: str) -> None:
    customer = Customer()
    customer.does(0, "app", item=case("7", status))
    assert "handoff.channel" in kinds(customer.does(2 * GAP, "voice"))


@pytest.mark.parametrize("status", ["resolved", "closed"])
def test_a_resolved_item_makes_no_handoff(status: str) -> None:
    customer = Customer()
    customer.does(0, "app", item=case("7", status))
    assert "handoff.channel" not in kinds(customer.does(2 * GAP, "voice"))


def test_the_same_channel_again_is_no_handoff() -> None:
    customer = Customer()
    customer.does(0, "app")
    assert "handoff.channel" not in kinds(customer.does(1, "app"))


def test_a_system_event_moves_nobody() -> None:
    customer = Customer()
    customer.does(0, "app")
    assert "handoff.channel" not in kinds(customer.does(1, "store", actor=SYSTEM))
    assert customer.now.current is not None
    assert customer.now.current.channel == "app"


def test_a_system_event_alone_puts_the_customer_nowhere() -> None:
    customer = Customer()
    customer.does(0, "store", actor=SYSTEM)
    assert customer.now.current is None
    assert "handoff.channel" not in kinds(customer.does(1, "app"))


def test_an_event_that_arrives_out_of_order_moves_nobody() -> None:
    customer = Customer()
    customer.does(0, "app")
    customer.does(2 * MINUTE, "voice")
    assert "handoff.channel" not in kinds(customer.does(MINUTE, "store"))
    assert customer.now.current is not None
    assert customer.now.current.channel == "voice"


def test_a_conversation_that_passes_from_bot_to_agent_is_a_handoff_and_the_customers_words_are_not() -> None:
    customer = Customer()
    customer.does(0, "chat", actor=BOT)
    assert "handoff.actor" not in kinds(customer.does(1, "chat"))
    handoff = only(customer.does(2, "chat", actor=AGENT), "handoff.actor")
    assert (handoff.before, handoff.after) == ("bot", "agent")


def test_whoever_serves_first_takes_over_from_nobody() -> None:
    customer = Customer()
    customer.does(0, "chat")
    assert "handoff.actor" not in kinds(customer.does(1, "chat", actor=AGENT))
    assert customer.now.current is not None
    assert customer.now.current.served_by == "agent"


def test_an_agent_who_takes_over_from_a_bot_on_another_channel_is_a_move_of_both_kinds() -> None:
    customer = Customer()
    customer.does(0, "chat", actor=BOT)
    moves = [kind for kind in kinds(customer.does(1, "voice", actor=AGENT)) if kind.startswith("handoff.")]
    assert moves == ["handoff.channel", "handoff.actor"]


def test_an_agents_work_while_the_customer_is_not_there_moves_nobody_and_is_no_visit() -> None:
    customer = Customer()
    customer.does(0, "voice", item=case("7"))
    found = kinds(customer.does(5 * GAP, "email", actor=AGENT, item=case("7", group="b")))
    assert "handoff.channel" not in found
    assert "session.opened" not in found
    assert customer.now.current is not None
    assert customer.now.current.channel == "voice"


def test_answering_a_survey_is_no_move() -> None:
    customer = Customer()
    customer.does(0, "voice")
    assert not [kind for kind in kinds(customer.does(1, "survey")) if kind.startswith("handoff.")]


def test_where_the_customer_is_follows_touchpoint_and_device() -> None:
    customer = Customer()
    customer.does(0, "app", touchpoint="cart", device="phone-1")
    customer.does(1, "app", touchpoint="checkout")
    customer.does(2, "app", touchpoint="checkout")
    here = customer.now.current
    assert here is not None
    assert (here.touchpoint, here.since_ms, here.device) == ("checkout", T0 + 1, "phone-1")


def test_a_step_says_where_the_customer_was_before() -> None:
    customer = Customer()
    customer.does(0, "app", touchpoint="checkout")
    outcome = customer.does(1, "voice")
    assert isinstance(outcome, Applied)
    assert outcome.previous is not None
    assert (outcome.previous.channel, outcome.previous.touchpoint) == ("app", "checkout")


def test_handoffs_are_written_down_with_ids_that_a_replay_gives_again() -> None:
    first, second = Customer(), Customer()
    for customer in (first, second):
        customer.does(0, "chat", actor=BOT, item=case("7", group="a"))
        customer.does(1, "chat", actor=AGENT, item=case("7", group="b"))
        customer.does(2, "voice")
    assert [(h.kind, h.before, h.after, h.item) for h in first.now.handoffs] == [
        ("actor", "bot", "agent", None),
        ("group", "a", "b", "case:7"),
        ("channel", "chat", "voice", None),
    ]
    assert len({h.handoff_id for h in first.now.handoffs}) == 3
    assert first.now.handoffs == second.now.handoffs


def test_only_the_latest_handoffs_are_kept() -> None:
    customer = Customer(keep_handoffs=4)
    for at in range(10):
        customer.does(at, "app" if at % 2 else "voice")
    assert [h.at_ms - T0 for h in customer.now.handoffs] == [6, 7, 8, 9]
