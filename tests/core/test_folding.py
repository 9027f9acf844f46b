"""Two contexts made one: what becomes of each field.

Where the rules promise it, folding two customers gives what one customer with all the events would have.
"""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core import window
from segue.core.context import Context, Handoff, decoder, encoder
from segue.core.event import Identifier
from segue.core.folding import RULES, fold
from segue.core.ids import fingerprint
from segue.core.interaction import Place
from tests.core.builders import DAY, HOUR, MINUTE, T0, Customer, case


def folded(mine: Customer, theirs: Customer) -> tuple[Context, list[str]]:
    """Both contexts folded, and the kinds of facts that came of it."""
    context = mine.now
    facts = fold(context, decoder.decode(encoder.encode(theirs.now)), mine.policy)
    return context, [fact.fact for fact in facts]


def lines(context: Context) -> list[str]:
    return [orjson.loads(bytes(raw))["id"] for raw in context.timeline]


def test_every_field_of_a_context_has_a_rule() -> None:
    assert set(RULES) == set(Context.__struct_fields__)


EVENTS = st.lists(
    st.tuples(
        st.booleans(), st.integers(0, 300), st.sampled_from(["web", "app", "chat"]), st.sampled_from("abc")
    ),
    min_size=1, max_size=40, unique_by=lambda event: event[1],
).map(lambda events: sorted(events, key=lambda event: event[1]))  # fmt: skip


@settings(deadline=None)
@given(EVENTS)
def test_folding_two_customers_gives_what_one_with_all_the_events_would_have(
    events: list[tuple[bool, int, str, str]],
) -> None:
    more: dict[str, Any] = {"keep_timeline": 1000, "keep_sessions": 1000, "session_max_ms": 30 * DAY}
    one, mine, theirs = Customer(**more), Customer(**more), Customer("customer-2", **more)
    for is_mine, minute, channel, value in events:
        given = {"event_id": f"e{minute}", "identifiers": (Identifier("cookie_id", value),)}
        for customer in (one, mine if is_mine else theirs):
            customer.does(minute * 5 * MINUTE, channel, **given)  # type: ignore[arg-type]
    if mine.context is None or theirs.context is None:
        return
    context, _ = folded(mine, theirs)
    for name in ("created_at_ms", "stream_time_ms", "received_at_ms", "channels", "identifiers"):
        assert getattr(context, name) == getattr(one.now, name), name
    assert lines(context) == lines(one.now)
    assert all(window.contains(context.seen, fingerprint(f"e{minute}")) for _, minute, _, _ in events)
    assert mine.spans == one.spans


def test_sessions_that_reach_each_other_are_one_and_the_earlier_id_survives() -> None:
    mine, theirs = Customer(), Customer("customer-2")
    mine.does(20 * MINUTE)
    theirs.does(0)
    theirs.does(3 * HOUR)
    earlier, later = theirs.now.sessions
    (absorbed,) = mine.now.sessions
    context, facts = folded(mine, theirs)
    assert [s.session_id for s in context.sessions] == [earlier.session_id, later.session_id]
    assert context.sessions[0].merged == [absorbed.session_id]
    assert facts == ["session.merged"]
    assert mine.spans == [(0, 20 * MINUTE, 2), (3 * HOUR, 3 * HOUR, 1)]


def test_a_case_of_both_is_as_whoever_heard_last_knows_it_and_its_attempts_add_up() -> None:
    mine, theirs = Customer(), Customer("customer-2")
    mine.does(0, item=case("7", "open"))
    theirs.does(HOUR, "voice", item=case("7", "waiting", reopen_count=2))
    theirs.does(2 * HOUR, "voice", item=case("8", "open"))
    context, _ = folded(mine, theirs)
    item = context.items["case:7"]
    assert (item.status, item.opened_at_ms, item.reopened, item.attempts) == ("waiting", T0, 2, 2)
    assert set(context.items) == {"case:7", "case:8"}


def test_a_second_case_within_a_week_turns_out_to_be_a_repeated_contact() -> None:
    mine, theirs = Customer(), Customer("customer-2")
    mine.does(0, item=case("7"))
    theirs.does(DAY, item=case("8"))
    context, facts = folded(mine, theirs)
    assert "contact.repeated" in facts
    assert [opening.repeated for opening in context.openings] == [False, True]


def test_the_customer_is_where_they_were_seen_last() -> None:
    mine, theirs = Customer(), Customer("customer-2")
    mine.does(0, "web")
    theirs.does(MINUTE, "chat")
    context, _ = folded(mine, theirs)
    assert context.current == Place("chat", T0 + MINUTE)


def test_an_identifier_keeps_its_earlier_time_and_its_higher_level() -> None:
    mine, theirs = Customer(), Customer("customer-2")
    mine.does(0, identifiers=(Identifier("phone", "+1"),))
    theirs.does(MINUTE, identifiers=(Identifier("phone", "+1", "verified"),))
    context, _ = folded(mine, theirs)
    assert [(i.value, i.level, i.since_ms) for i in context.identifiers] == [("+1", "verified", T0)]


def test_lists_stay_bounded_and_keep_the_latest() -> None:
    mine, theirs = Customer(keep_timeline=5, keep_handoffs=2), Customer("customer-2")
    for number in range(4):
        mine.does(number * MINUTE, event_id=f"m{number}")
        theirs.does(number * MINUTE + 1, event_id=f"t{number}")
    for customer in (mine, theirs):
        customer.now.handoffs = [Handoff(f"{customer.key}{n}", "channel", "web", "chat", n, "e") for n in range(2)]
    context, _ = folded(mine, theirs)
    assert lines(context) == ["t1", "m2", "t2", "m3", "t3"]
    assert [handoff.at_ms for handoff in context.handoffs] == [1, 1]


def test_of_two_full_windows_of_event_ids_both_keep_their_newest() -> None:
    ours = "".join(fingerprint(f"m{n}") for n in range(4))
    theirs = "".join(fingerprint(f"t{n}") for n in range(4))
    both = window.united(ours, theirs, 4)
    kept = [name for side in "mt" for n in range(4) if window.contains(both, fingerprint(name := f"{side}{n}"))]
    assert kept == ["m2", "m3", "t2", "t3"]
    assert window.united(ours, ours, 8) == ours
