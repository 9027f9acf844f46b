"""Sessions by event time: where one ends and the next begins, whatever the order of arrival."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import session_windows
from segue.core.apply import Applied
from segue.core.context import Policy, Session, SourceSession
from segue.core.sessions import united
from tests.core.builders import AGENT, HOUR, MINUTE, SYSTEM, T0, Customer, kinds, only

GAP, GRACE, LONGEST = Policy().session_gap_ms, Policy().grace_ms, Policy().session_max_ms


def patient(**policy: Any) -> Customer:
    """A customer whose grace is long enough for anything to arrive out of order."""
    return Customer(grace_ms=30 * 24 * HOUR, **policy)


def test_the_first_event_opens_a_session_of_no_length() -> None:
    customer = Customer()
    assert "session.opened" in kinds(customer.does(0))
    assert customer.spans == [(0, 0, 1)]


def test_an_event_exactly_one_gap_later_joins() -> None:
    customer = Customer()
    customer.does(0)
    assert "session.opened" not in kinds(customer.does(GAP))
    assert customer.spans == [(0, GAP, 2)]


def test_an_event_one_millisecond_more_than_the_gap_later_opens_the_next_session() -> None:
    customer = Customer()
    customer.does(0)
    customer.does(GAP + 1)
    assert customer.spans == [(0, 0, 1), (GAP + 1, GAP + 1, 1)]


def test_the_gap_is_counted_from_the_last_event_on_any_channel() -> None:
    customer = Customer()
    customer.does(0, "web")
    customer.does(GAP, "voice")
    customer.does(2 * GAP, "store")
    customer.does(2 * GAP, "web")
    assert customer.spans == [(0, 2 * GAP, 4)]
    assert customer.now.sessions[0].channels == ["web", "voice", "store"]


def test_an_event_exactly_one_gap_before_the_start_extends_the_session_backwards() -> None:
    customer = patient()
    customer.does(GAP)
    customer.does(0)
    assert customer.spans == [(0, GAP, 2)]


def test_an_event_more_than_one_gap_before_the_start_is_a_session_of_its_own_in_front() -> None:
    customer = patient()
    customer.does(GAP + 1)
    customer.does(0)
    assert customer.spans == [(0, 0, 1), (GAP + 1, GAP + 1, 1)]


def test_an_event_between_two_sessions_bridges_them_and_the_earlier_id_survives() -> None:
    customer = patient()
    customer.does(0)
    customer.does(2 * GAP)
    first, second = (s.session_id for s in customer.now.sessions)
    merged = only(customer.does(GAP, "chat"), "session.merged")
    assert (merged.before, merged.after) == (second, first)
    (session,) = customer.now.sessions
    assert (session.session_id, session.merged, session.channels) == (first, [second], ["web", "chat"])
    assert customer.spans == [(0, 2 * GAP, 3)]


def test_what_a_session_absorbed_before_is_named_by_the_one_that_absorbs_it() -> None:
    customer = patient()
    for at in (0, 2 * GAP, 4 * GAP):
        customer.does(at)
    first, second, third = (s.session_id for s in customer.now.sessions)
    customer.does(3 * GAP)
    customer.does(GAP)
    (session,) = customer.now.sessions
    assert (session.session_id, session.merged) == (first, [second, third])


def test_a_session_may_last_exactly_the_maximum() -> None:
    customer = Customer(session_max_ms=GAP)
    customer.does(0)
    customer.does(GAP)
    assert customer.spans == [(0, GAP, 2)]


def test_an_event_that_would_make_a_session_longer_than_the_maximum_opens_the_next() -> None:
    customer = Customer(session_max_ms=GAP)
    customer.does(0)
    customer.does(10)
    customer.does(GAP + 1)
    assert customer.spans == [(0, 10, 2), (GAP + 1, GAP + 1, 1)]


def test_two_sessions_are_not_bridged_into_one_longer_than_the_maximum() -> None:
    customer = patient(session_max_ms=GAP + 10)
    customer.does(0)
    customer.does(2 * GAP)
    customer.does(GAP)
    assert customer.spans == [(0, GAP, 2), (2 * GAP, 2 * GAP, 1)]


def test_an_event_inside_a_session_stays_there_though_an_earlier_one_is_near() -> None:
    customer = patient(session_max_ms=GAP)
    for at in (0, 20, GAP + 10, GAP + 30):
        customer.does(at)
    customer.does(GAP + 20)  # within one gap of the first session, which could not grow so far
    assert customer.spans == [(0, 20, 2), (GAP + 10, GAP + 30, 3)]


def test_an_event_exactly_one_grace_behind_is_not_late() -> None:
    customer = Customer()
    customer.does(GRACE)
    outcome = customer.does(0)
    assert isinstance(outcome, Applied)
    assert not outcome.late
    assert customer.spans == [(0, GRACE, 2)]


def test_a_late_event_joins_the_session_that_covers_its_time_and_moves_nothing() -> None:
    customer = Customer()
    customer.does(0)
    customer.does(GRACE + 2)
    outcome = customer.does(1)
    assert isinstance(outcome, Applied)
    assert outcome.late
    assert customer.spans == [(0, GRACE + 2, 3)]


def test_a_late_event_that_no_session_covers_belongs_to_none() -> None:
    customer = Customer()
    customer.does(GRACE + 1)
    outcome = customer.does(0)
    assert isinstance(outcome, Applied)
    assert outcome.late
    assert outcome.facts == ()
    assert b"session_id" not in bytes(outcome.raw)
    assert customer.spans == [(GRACE + 1, GRACE + 1, 1)]


def test_the_entry_names_the_session_it_belongs_to() -> None:
    customer = Customer()
    outcome = customer.does(0)
    assert isinstance(outcome, Applied)
    assert customer.now.sessions[0].session_id.encode() in bytes(outcome.raw)


def test_only_the_latest_sessions_are_kept() -> None:
    customer = Customer(keep_sessions=3)
    for visit in range(5):
        customer.does(visit * HOUR)
    assert [start for start, _, _ in customer.spans] == [2 * HOUR, 3 * HOUR, 4 * HOUR]


def test_a_session_reaches_as_far_as_the_gap_of_a_channel_it_visited() -> None:
    customer = Customer(channel_gaps_ms={"email": 24 * HOUR})
    customer.does(0, "email")
    customer.does(HOUR, "web")  # the shorter gap of the later event takes nothing away
    assert "session.opened" not in kinds(customer.does(24 * HOUR, "web"))
    assert "session.opened" in kinds(customer.does(24 * HOUR + GAP + 1, "email"))


def test_the_gap_is_that_of_the_earlier_event_also_when_it_arrives_second() -> None:
    customer = patient(channel_gaps_ms={"email": 24 * HOUR})
    customer.does(20 * HOUR, "web")
    customer.does(0, "email")
    assert customer.spans == [(0, 20 * HOUR, 2)]
    customer = patient(channel_gaps_ms={"email": 24 * HOUR})
    customer.does(20 * HOUR, "email")
    customer.does(0, "web")
    assert customer.spans == [(0, 0, 1), (20 * HOUR, 20 * HOUR, 1)]


def test_an_open_call_holds_the_session_until_it_ends() -> None:
    customer = Customer()
    customer.does(0, "ivr", event_type="call.started")
    customer.does(2 * HOUR, "web")
    customer.does(2 * HOUR + MINUTE, "voice", event_type="call.ended", actor=AGENT)
    assert customer.spans == [(0, 2 * HOUR + MINUTE, 3)]
    assert "session.opened" in kinds(customer.does(2 * HOUR + MINUTE + GAP + 1, "web"))


def test_a_call_that_nobody_ended_holds_the_session_for_the_longest_hold_and_no_longer() -> None:
    customer = Customer(hold_max_ms=2 * HOUR)
    customer.does(0, "voice", event_type="call.started")
    assert "session.opened" not in kinds(customer.does(2 * HOUR, "web"))
    assert "session.opened" in kinds(customer.does(2 * HOUR + GAP + 1, "web"))


def test_the_end_of_another_call_that_was_before_ends_nothing() -> None:
    customer = Customer()
    customer.does(5 * MINUTE, "voice", event_type="call.started")
    customer.does(4 * MINUTE, "voice", event_type="call.ended")
    assert "session.opened" not in kinds(customer.does(2 * HOUR, "web"))


def test_a_call_whose_end_arrived_before_its_start_holds_nothing() -> None:
    customer = Customer()
    customer.does(5 * MINUTE, "voice", event_type="call.ended")
    customer.does(0, "voice", event_type="call.started")
    assert "session.opened" in kinds(customer.does(2 * HOUR, "web"))


def test_the_late_end_of_a_call_moves_no_boundary_but_it_holds_no_longer() -> None:
    customer = Customer()
    customer.does(0, "voice", event_type="call.started")
    customer.does(HOUR, "web")
    customer.does(20 * MINUTE, "voice", event_type="call.ended")
    assert customer.spans == [(0, HOUR, 3)]
    assert "session.opened" in kinds(customer.does(HOUR + GAP + 1, "web"))


def test_a_held_session_lasts_no_longer_than_the_longest_session() -> None:
    customer = Customer(session_max_ms=HOUR)
    customer.does(0, "voice", event_type="call.started")
    customer.does(HOUR, "voice")
    assert "session.opened" in kinds(customer.does(HOUR + 1, "voice"))


def test_an_agents_work_before_the_visit_is_no_part_of_it_in_either_order_of_arrival() -> None:
    for order in ((0, 5), (5, 0)):
        customer = Customer()
        for minute in order:
            customer.does(minute * MINUTE, actor=AGENT if minute == 0 else None)
        assert customer.spans == [(5 * MINUTE, 5 * MINUTE, 1)]


def test_an_agents_work_that_arrived_before_the_event_that_opens_the_visit_extends_it() -> None:
    customer = Customer()
    customer.does(5 * MINUTE, actor=AGENT)
    customer.does(6 * MINUTE, actor=SYSTEM)
    customer.does(0)
    assert customer.spans == [(0, 5 * MINUTE, 3)]
    assert customer.now.loose == []


# --- the tables of other engines


def test_sessions_are_those_of_the_engines_that_join_at_exactly_the_gap() -> None:
    """All that follows our rule holds; the rest is left out by design, each case for a reason."""
    tried = list(session_windows.cases())
    assert [case for case in tried if not case.holds] == []
    assert (len(tried), len(session_windows.left_out())) == (28, 7)
    assert {case.engine for case in tried} == {"apache-beam", "kafka-streams", "bytewax", "apache-flink"}
    assert [line.right for line in session_windows.lines(tried)] == 4 * [True]


def test_a_case_holds_only_if_all_that_is_said_of_every_session_is_so() -> None:
    case = next(case for case in session_windows.cases() if case.name == "bytewax-extend-merge")
    for wrong in ([], [*case.found, *case.found], [case.found[0] | {"last": 19}], [case.found[0] | {"merged": 0}]):
        broken = case._replace(found=wrong)
        assert not broken.holds
        assert [line.name for line in session_windows.lines([broken]) if not line.right][-1] == case.name


# --- properties


@st.composite
def shuffled_within_grace(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Event times in order, and the same in an order of arrival in which none is late."""
    steps = st.sampled_from([0, 1, MINUTE, 4 * MINUTE, 9 * MINUTE, GRACE, GAP - 1, GAP, GAP + 1, 2 * GAP])
    times, at = [], 0
    for step in draw(st.lists(steps, min_size=2, max_size=16)):
        at += step
        times.append(at)
    # Delaying each event by at most the grace keeps every one within the grace of the newest before it.
    delays = draw(st.lists(st.integers(0, GRACE), min_size=len(times), max_size=len(times)))
    arrival = sorted(zip(times, delays, strict=True), key=lambda pair: (pair[0] + pair[1], pair[0]))
    return times, [time for time, _ in arrival]


@settings(deadline=None)
@given(shuffled_within_grace())
def test_any_order_of_arrival_within_the_grace_gives_the_boundaries_of_the_right_order(
    case: tuple[list[int], list[int]],
) -> None:
    """Promised for sessions shorter than the maximum; at the maximum, who came first decides."""
    in_order, as_arrived = Customer(keep_sessions=100), Customer(keep_sessions=100)
    for at in case[0]:
        in_order.does(at)
    for at in case[1]:
        outcome = as_arrived.does(at)
        assert isinstance(outcome, Applied)
        assert not outcome.late
    assert as_arrived.spans == in_order.spans


# Coarse times, and a maximum of a few gaps: so that many events lie between sessions that must stay apart.
@settings(deadline=None)
@given(
    st.lists(st.integers(0, 24).map(lambda n: n * GAP // 3), max_size=12), st.integers(3, 9).map(lambda n: n * GAP // 3)
)
def test_sessions_stand_in_order_never_overlap_and_never_outgrow_the_maximum(times: list[int], longest: int) -> None:
    customer = patient(session_max_ms=longest, keep_sessions=1000)
    for at in times:
        customer.does(at)
        spans = customer.spans
        assert all(end - start <= longest for start, end, _ in spans)
        assert all(before[1] < after[0] for before, after in pairwise(spans))
    if times:
        assert sum(events for *_, events in customer.spans) == len(times)


# --- sessions that their source names


def names_of(session: Session) -> list[tuple[str, str]]:
    return sorted((source, named.id) for source, named in session.source_sessions.items())


def test_what_one_source_calls_one_session_is_one_however_long_the_gap() -> None:
    customer = Customer()
    customer.does(0, source="/web", source_session_id="s1")
    customer.does(5 * HOUR, source="/web", source_session_id="s1")
    assert customer.spans == [(0, 5 * HOUR, 2)]
    assert customer.now.sessions[0].source_sessions == {"/web": SourceSession("s1", T0)}


def test_a_new_id_of_the_same_source_opens_a_session_within_the_gap_and_the_old_one_may_go_on_beside_it() -> None:
    customer = Customer()
    for at, name in ((0, "s1"), (MINUTE, "s2"), (2 * MINUTE, "s1"), (3 * MINUTE, "s2")):
        customer.does(at, source="/web", source_session_id=name)
    assert customer.spans == [(0, 2 * MINUTE, 2), (MINUTE, 3 * MINUTE, 2)]


def test_the_same_id_of_two_sources_says_nothing_and_sessions_of_two_sources_are_one_where_they_touch() -> None:
    customer = Customer()
    customer.does(0, source="/web", source_session_id="7")
    customer.does(GAP, "app", source="/app", source_session_id="9")
    customer.does(3 * GAP, "app", source="/other", source_session_id="7")
    assert customer.spans == [(0, GAP, 2), (3 * GAP, 3 * GAP, 1)]
    assert names_of(customer.now.sessions[0]) == [("/app", "9"), ("/web", "7")]


@pytest.mark.parametrize("first", ["voice", "web"])
def test_another_channel_without_an_id_belongs_to_the_session_within_its_reach(first: str) -> None:
    customer = Customer()
    named = {"source": "/web", "source_session_id": "s1"}
    customer.does(0, first, **(named if first == "web" else {}))
    customer.does(GAP, "voice" if first == "web" else "web", **({} if first == "web" else named))
    customer.does(2 * GAP, "chat")
    assert customer.spans == [(0, 2 * GAP, 3)]


def test_an_earlier_event_of_a_sources_session_that_comes_out_of_order_joins_it_to_what_reaches_it() -> None:
    customer = Customer()
    customer.does(0, "voice")
    customer.does(GAP + MINUTE, source="/web", source_session_id="s1")
    assert len(customer.spans) == 2
    customer.does(GAP - MINUTE, source="/web", source_session_id="s1")
    assert customer.spans == [(0, GAP + MINUTE, 3)]


def test_two_customers_who_are_one_have_one_session_where_a_source_gave_both_one_id() -> None:
    mine, theirs = Customer("customer-1"), Customer("customer-2")
    mine.does(0, source="/web", source_session_id="s1")
    theirs.does(2 * HOUR, source="/web", source_session_id="s1")
    theirs.does(2 * HOUR + MINUTE, source="/web", source_session_id="s2")
    assert [fact.fact for fact in united(mine.now, theirs.now, mine.policy)] == ["session.merged"]
    assert mine.spans == [(0, 2 * HOUR, 2), (2 * HOUR + MINUTE, 2 * HOUR + MINUTE, 1)]


def test_a_session_that_ended_while_its_sources_session_around_it_went_on_is_part_of_that() -> None:
    customer = Customer()
    customer.does(0, source="/web", source_session_id="s1")
    customer.does(2 * HOUR, "voice")
    later = customer.does(4 * HOUR, source="/web", source_session_id="s1")
    assert kinds(later) == ["session.merged", "handoff.channel"]
    assert customer.spans == [(0, 4 * HOUR, 3)]


def test_what_a_source_adds_to_a_session_beyond_the_maximum_is_in_none_and_quarantines_it_once() -> None:
    customer = Customer()
    for at in (0, LONGEST, LONGEST + 1, LONGEST + 2):
        outcome = customer.does(at, source="/web", source_session_id="s1")
        assert isinstance(outcome, Applied)
        assert ("session.quarantined" in kinds(outcome)) == (at == LONGEST + 1)
        assert (b"session_id" in bytes(outcome.raw).replace(b"source_session_id", b"")) == (at <= LONGEST)
    assert customer.spans == [(0, LONGEST, 2)]
    assert customer.now.sessions[0].quarantined


def test_a_session_of_which_the_sources_is_only_the_end_is_followed_by_another_and_quarantined_by_nothing() -> None:
    customer = Customer(channel_gaps_ms={"email": 24 * HOUR})
    customer.does(0, "email")
    customer.does(LONGEST - MINUTE, source="/web", source_session_id="s1")
    for at in (LONGEST + MINUTE, LONGEST + HOUR):
        assert "session.quarantined" not in kinds(customer.does(at, source="/web", source_session_id="s1"))
    assert customer.spans == [(0, LONGEST - MINUTE, 2), (LONGEST + MINUTE, LONGEST + HOUR, 2)]


def test_a_sources_session_closes_when_it_can_go_on_no_longer_and_what_comes_then_is_late() -> None:
    customer = Customer()
    customer.does(0, source="/web", source_session_id="s1")
    customer.does(2 * HOUR, "voice")
    customer.does(4 * HOUR, "voice")
    assert [session.closed for session in customer.now.sessions] == [False, True, False]
    customer.does(LONGEST + 2 * GRACE, "voice")
    assert [session.closed for session in customer.now.sessions] == [True, True, True, False]
    outcome = customer.does(LONGEST + 3 * GRACE, source="/web", source_session_id="s1")
    assert isinstance(outcome, Applied)
    assert outcome.late
    assert customer.spans[0] == (0, 0, 1)


def test_what_a_system_did_before_its_sources_session_opened_counts_in_that_and_in_no_other() -> None:
    customer = Customer()
    customer.does(0, source="/web", source_session_id="s1")
    customer.does(MINUTE, actor=SYSTEM, source="/web", source_session_id="s2")
    customer.does(2 * MINUTE, source="/web", source_session_id="s2")
    assert customer.spans == [(0, 0, 1), (2 * MINUTE, 2 * MINUTE, 2)]


Named = tuple[int, str, str | None]
"""Time, source, and its session id."""

S1, S2, S3, A1, A2 = ("/web", "s1"), ("/web", "s2"), ("/web", "s3"), ("/app", "a1"), ("/app", "a2")
UNNAMED = ("/desk", None)


@st.composite
def named_within_grace(draw: st.DrawFn, *names: tuple[str, str | None]) -> tuple[list[Named], list[Named]]:
    """Events with or without a source's session id, in order and in an order of arrival in which none is late."""
    times, arrival = draw(shuffled_within_grace())
    in_order = [(at, *draw(st.sampled_from(names))) for at in times]
    rest, arrived = in_order.copy(), []
    for at in arrival:
        arrived.append(next(event for event in rest if event[0] == at))
        rest.remove(arrived[-1])
    return in_order, arrived


def customer_of(events: list[Named]) -> Customer:
    customer = Customer(keep_sessions=100)
    for at, source, name in events:
        outcome = customer.does(at, source=source, source_session_id=name)
        assert isinstance(outcome, Applied)
        assert not outcome.late
    return customer


def found(customer: Customer) -> list[tuple[list[tuple[str, str]], tuple[int, int, int]]]:
    """Names and spans of the sessions, in one order also where they begin at the same time."""
    names = [names_of(session) for session in customer.now.sessions]
    return sorted(zip(names, customer.spans, strict=True))


@settings(deadline=None, max_examples=300)
@given(st.one_of(named_within_grace(S1, S2, S3), named_within_grace(S1, UNNAMED), named_within_grace(S1, A1, UNNAMED)))
def test_any_order_of_arrival_within_the_grace_gives_the_sessions_that_sources_name(
    case: tuple[list[Named], list[Named]],
) -> None:
    assert found(customer_of(case[1])) == found(customer_of(case[0]))


@settings(deadline=None, max_examples=300)
@given(named_within_grace(S1, S2, A1, A2, UNNAMED))
def test_in_any_order_each_id_is_in_one_session_and_no_session_has_two_of_one_source(
    case: tuple[list[Named], list[Named]],
) -> None:
    given_ids = {(source, name) for _, source, name in case[0] if name is not None}
    for events in case:
        sessions = customer_of(events).now.sessions
        assert sorted(each for session in sessions for each in names_of(session)) == sorted(given_ids)
        assert sum(session.events for session in sessions) == len(events)


@settings(deadline=None, max_examples=300)
@given(named_within_grace(S1, S2, S3, UNNAMED))
def test_any_order_gives_as_many_sessions_where_one_source_keeps_them_apart(
    case: tuple[list[Named], list[Named]],
) -> None:
    """Which of two sessions that stay apart has what belongs to neither by name, who came first decides."""
    in_order, as_arrived = customer_of(case[0]), customer_of(case[1])
    assert len(as_arrived.now.sessions) == len(in_order.now.sessions)
