"""Open items: what is opened, reopened, repeated, passed on, and how often the customer had to come back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core.apply import Applied
from segue.core.context import Policy
from segue.core.event import Identifier
from segue.core.interaction import ItemChange
from tests.core.builders import AGENT, DAY, HOUR, MINUTE, T0, Customer, case, kinds, only

RECONTACT, GAP = Policy().recontact_ms, Policy().session_gap_ms


def test_the_first_sight_of_an_item_opens_it_in_the_state_it_is_in() -> None:
    customer = Customer()
    opened = only(customer.does(0, "voice", item=case("7", "waiting", group="billing")), "item.opened")
    assert (opened.item, opened.before, opened.after) == ("case:7", "voice", "waiting")
    item = customer.now.items["case:7"]
    assert (item.status, item.group, item.opened_at_ms, item.channel) == ("waiting", "billing", T0, "voice")


def test_an_item_whose_status_nobody_says_is_open() -> None:
    customer = Customer()
    assert only(customer.does(0, item=case("7", None)), "item.opened").after == "open"


def test_an_item_is_dated_by_the_desk_where_the_desk_says_when() -> None:
    customer = Customer()
    customer.does(HOUR, item=case("7", opened_at_ms=T0))
    assert customer.now.items["case:7"].opened_at_ms == T0


def test_the_first_item_says_by_which_identifier_the_customer_was_known() -> None:
    customer = Customer()
    outcome = customer.does(0, item=case(), identifiers=(Identifier("phone", "+8613800000000"),))
    assert only(outcome, "customer.first_item").after == "phone"
    assert "customer.first_item" not in kinds(customer.does(1, item=case("8")))


def test_what_an_event_leaves_out_stays_as_it_was() -> None:
    customer = Customer()
    customer.does(0, item=case("7", "open", group="billing"))
    customer.does(1, item=case("7", None, assignee="a-1", title="Refund", due_at_ms=T0 + DAY))
    customer.does(2, item=case("7", "waiting"))
    item = customer.now.items["case:7"]
    assert (item.group, item.assignee, item.title, item.due_at_ms) == ("billing", "a-1", "Refund", T0 + DAY)


def test_a_status_that_did_not_change_is_no_fact() -> None:
    customer = Customer()
    customer.does(0, item=case())
    assert "item.status" not in kinds(customer.does(1, item=case()))


def test_an_older_event_that_arrives_later_does_not_undo_a_newer_status() -> None:
    customer = Customer()
    customer.does(0, item=case())
    customer.does(2 * MINUTE, item=case("7", "resolved", group="second"))
    customer.does(MINUTE, item=case("7", "waiting", group="first"))
    item = customer.now.items["case:7"]
    assert (item.status, item.group, item.updated_at_ms) == ("resolved", "second", T0 + 2 * MINUTE)


def test_a_resolved_item_knows_when_and_forgets_it_when_it_opens_again() -> None:
    customer = Customer()
    customer.does(0, item=case())
    customer.does(HOUR, item=case("7", "resolved"))
    assert customer.now.items["case:7"].resolved_at_ms == T0 + HOUR
    customer.does(HOUR + 1, item=case("7", "closed"))
    assert customer.now.items["case:7"].resolved_at_ms == T0 + HOUR
    customer.does(2 * HOUR, item=case("7", "open"))
    assert customer.now.items["case:7"].resolved_at_ms is None


def test_a_closed_item_that_is_open_again_was_reopened() -> None:
    customer = Customer()
    customer.does(0, item=case())
    customer.does(1, item=case("7", "closed"))
    reopened = only(customer.does(2, item=case("7", "open")), "item.reopened")
    assert (reopened.before, reopened.value) == ("closed", 1)


def test_waiting_and_open_again_is_not_reopened() -> None:
    customer = Customer()
    customer.does(0, item=case())
    customer.does(1, item=case("7", "waiting"))
    assert "item.reopened" not in kinds(customer.does(2, item=case("7", "open")))


def test_a_growing_reopen_count_counts_once_and_the_status_with_it_not_again() -> None:
    customer = Customer()
    customer.does(0, item=case("7", "closed"))
    outcome = customer.does(1, item=case("7", "open", reopen_count=1))
    assert only(outcome, "item.reopened").value == 1
    assert "item.reopened" not in kinds(customer.does(2, item=case("7", "open", reopen_count=1)))
    assert only(customer.does(3, item=case("7", "open", reopen_count=3)), "item.reopened").value == 3


def test_a_running_total_never_falls() -> None:
    customer = Customer()
    customer.does(0, item=case("7", reopen_count=2, reassign_count=4))
    customer.does(1, item=case("7", reopen_count=1, reassign_count=3))
    item = customer.now.items["case:7"]
    assert (item.reopened, item.reassigned) == (2, 4)


def test_a_reassignment_says_from_how_many_to_how_many() -> None:
    customer = Customer()
    customer.does(0, item=case())
    reassigned = only(customer.does(1, item=case("7", reassign_count=2)), "item.reassigned")
    assert (reassigned.before, reassigned.value) == ("0", 2)


def test_another_group_is_a_handoff_and_the_first_group_is_none() -> None:
    customer = Customer()
    customer.does(0, item=case())
    assert "handoff.group" not in kinds(customer.does(1, item=case("7", group="first")))
    passed = only(customer.does(2, item=case("7", group="second")), "handoff.group")
    assert (passed.before, passed.after) == ("first", "second")


def test_a_missed_sla_is_told_once_with_the_group() -> None:
    customer = Customer()
    customer.does(0, item=case("7", group="billing"))
    assert only(customer.does(1, item=case("7", sla_missed=True)), "item.sla_missed").after == "billing"
    assert "item.sla_missed" not in kinds(customer.does(2, item=case("7", sla_missed=True)))
    customer.does(3, item=case("7", sla_missed=False))
    assert customer.now.items["case:7"].sla_missed


def test_a_missed_sla_is_told_even_by_an_event_that_arrives_out_of_order() -> None:
    customer = Customer()
    customer.does(0, item=case())
    customer.does(2, item=case("7", "resolved"))
    assert "item.sla_missed" in kinds(customer.does(1, item=case("7", sla_missed=True)))


# --- attempts


def test_a_new_session_about_an_unresolved_item_is_another_attempt_with_the_earlier_contact_as_evidence() -> None:
    customer = Customer()
    customer.does(0, item=case(), event_id="first")
    again = only(customer.does(GAP + 1, item=case(), event_id="second"), "item.contacted_again")
    assert (again.after, again.value, again.evidence) == ("web", 2, ("first",))


def test_another_channel_about_an_unresolved_item_is_another_attempt() -> None:
    customer = Customer()
    customer.does(0, "chat", item=case())
    assert only(customer.does(1, "voice", item=case()), "item.contacted_again").after == "voice"


def test_more_events_of_one_contact_are_one_attempt() -> None:
    customer = Customer()
    for at in range(3):
        customer.does(at, item=case())
    assert customer.now.items["case:7"].attempts == 1


def test_what_an_agent_or_a_system_does_is_no_attempt_of_the_customer() -> None:
    customer = Customer()
    customer.does(0, item=case())
    assert "item.contacted_again" not in kinds(customer.does(2 * GAP, "voice", item=case(), actor=AGENT))
    assert customer.now.items["case:7"].attempts == 1


def test_coming_back_about_a_resolved_item_is_no_attempt() -> None:
    customer = Customer()
    customer.does(0, item=case())
    customer.does(1, item=case("7", "resolved"))
    assert "item.contacted_again" not in kinds(customer.does(2 * GAP, item=case("7", None)))


def test_only_the_latest_five_contacts_are_named() -> None:
    customer = Customer()
    for visit in range(7):
        customer.does(visit * HOUR, item=case(), event_id=f"visit-{visit}")
    item = customer.now.items["case:7"]
    assert item.attempts == 7
    assert item.contacts == [f"visit-{visit}" for visit in range(2, 7)]


# --- repeated contact


def test_an_item_opened_exactly_seven_days_after_the_previous_one_is_a_repeated_contact() -> None:
    customer = Customer()
    customer.does(0, item=case("1"), event_id="first")
    repeated = only(customer.does(RECONTACT, item=case("2")), "contact.repeated")
    assert (repeated.item, repeated.before, repeated.after) == ("case:2", "case:1", "open")
    assert (repeated.value, repeated.evidence) == (RECONTACT, ("first",))


def test_an_item_opened_a_millisecond_after_the_seven_days_is_not() -> None:
    customer = Customer()
    customer.does(0, item=case("1"))
    assert "contact.repeated" not in kinds(customer.does(RECONTACT + 1, item=case("2")))


def test_repeated_contact_is_counted_by_opening_times_so_a_late_arrival_marks_its_successor() -> None:
    customer = Customer()
    customer.does(RECONTACT, item=case("2"))
    outcome = customer.does(RECONTACT + 1, item=case("1", "closed", opened_at_ms=T0))
    repeated = only(outcome, "contact.repeated")
    assert (repeated.item, repeated.before, repeated.after) == ("case:2", "case:1", "closed")


def test_an_item_that_another_customer_began_is_joined_and_counts_as_nobodys_repetition() -> None:
    customer = Customer()
    customer.does(0, item=case("1"))
    outcome = customer.does(1, item=case("2"), contested=("case_id",))
    assert "item.joined" in kinds(outcome)
    assert not {"item.opened", "contact.repeated"} & set(kinds(outcome))


@settings(deadline=None)
@given(st.permutations([0, RECONTACT + 1, 9 * DAY, 2 * RECONTACT, 2 * RECONTACT]))
def test_which_items_are_repetitions_does_not_depend_on_the_order_of_arrival(opened: list[int]) -> None:
    customer = Customer()
    repeated = []
    for number, at in enumerate(opened):
        outcome = customer.does(50 * DAY, item=ItemChange("case", str(number), "open", opened_at_ms=T0 + at))
        assert isinstance(outcome, Applied)
        marked = [fact.item for fact in outcome.facts if fact.fact == "contact.repeated"]
        repeated += [opened[int((item or "").removeprefix("case:"))] for item in marked]
    assert sorted(repeated) == [9 * DAY, 2 * RECONTACT, 2 * RECONTACT]


# --- bounds


def test_closed_items_beyond_the_limit_are_forgotten_longest_untouched_first() -> None:
    customer = Customer(keep_closed_items=3)
    customer.does(0, item=case("open one"))
    for number in range(6):
        customer.does(number + 1, item=case(str(number), "closed"))
    assert list(customer.now.items) == ["case:open one", "case:3", "case:4", "case:5"]


def test_far_beyond_the_limit_even_open_items_are_forgotten() -> None:
    customer = Customer(keep_closed_items=3)
    for number in range(40):
        customer.does(number, item=case(str(number)))
    assert list(customer.now.items) == [f"case:{number}" for number in range(28, 40)]
