"""Clocks that run ahead are corrected, delays are not: whatever else is wrong with a time has a stated outcome."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.core.apply import Applied
from segue.core.event import Event, decode
from segue.core.interaction import Entry, entry_of, to_ms
from segue.core.skew import TOLERANCE_MS, event_time
from tests.core.builders import DAY, HOUR, MINUTE, SECOND, T0, Customer, kinds

MOMENTS = st.integers(-DAY, DAY).map(lambda offset: T0 + offset)


def test_a_clock_two_hours_ahead_is_set_right_by_when_it_says_it_sent() -> None:
    happened, sent = T0 + 2 * HOUR, T0 + 2 * HOUR + 30 * SECOND
    assert event_time(happened, sent, T0 + 30 * SECOND) == T0


def test_an_event_that_waited_on_the_device_of_a_wrong_clock_keeps_its_distance_to_the_sending() -> None:
    assert event_time(T0 + 3 * DAY - HOUR, T0 + 3 * DAY, T0) == T0 - HOUR


def test_a_delay_in_transit_is_not_taken_for_a_clock_that_is_behind() -> None:
    assert event_time(T0, T0 + SECOND, T0 + 20 * MINUTE) == T0
    assert event_time(T0, T0 + SECOND, T0 + 3 * DAY) == T0


def test_a_clock_ahead_by_no_more_than_the_tolerance_is_believed() -> None:
    assert event_time(T0 + TOLERANCE_MS, T0 + TOLERANCE_MS, T0) == T0 + TOLERANCE_MS
    assert event_time(T0 + TOLERANCE_MS + 1, T0 + TOLERANCE_MS + 1, T0) == T0


def test_a_time_in_the_future_without_a_time_of_sending_is_when_it_was_received() -> None:
    assert event_time(T0 + TOLERANCE_MS, None, T0) == T0 + TOLERANCE_MS
    assert event_time(T0 + TOLERANCE_MS + 1, None, T0) == T0
    assert event_time(T0 + 7000 * DAY, None, T0) == T0


def test_an_event_that_happened_long_after_it_was_sent_is_when_it_was_received() -> None:
    assert event_time(T0 + HOUR, T0, T0) == T0


@given(MOMENTS, st.none() | MOMENTS, MOMENTS)
def test_no_event_happens_beyond_the_tolerance_after_its_receipt_and_none_is_moved_later(
    time: int, sent: int | None, received: int
) -> None:
    at = event_time(time, sent, received)
    assert at <= received + TOLERANCE_MS
    assert at <= time


@given(MOMENTS, st.integers(0, DAY), st.integers(0, DAY))
def test_a_right_clock_is_never_corrected_however_long_the_event_waits_and_travels(
    time: int, waited: int, travelled: int
) -> None:
    assert event_time(time, time + waited, time + waited + travelled) == time


def entry(time: str, received: int, **data: Any) -> Entry:
    raw = {
        "specversion": "1.0", "id": "e1", "source": "/shop", "type": "page.viewed", "time": time, "channel": "web",
        "data": {"identifiers": [{"type": "email", "value": "ana@example.com"}]} | data,
    }  # fmt: skip
    found = decode(json.dumps(raw).encode())
    assert isinstance(found, Event)
    return entry_of(found, received, found.data.properties)


def test_the_entry_says_by_how_much_its_time_was_moved() -> None:
    received = to_ms(datetime.fromisoformat("2026-03-01T10:00:00Z"))
    moved = entry("2026-03-01T11:59:00Z", received, sent_at="2026-03-01T12:00:00Z")
    assert (moved.event_time_ms, moved.skew_ms) == (received - MINUTE, -2 * HOUR)
    future = entry("2031-01-01T00:00:00Z", received)
    assert future.event_time_ms == received
    assert future.event_time_ms - future.skew_ms == to_ms(datetime.fromisoformat("2031-01-01T00:00:00Z"))
    right = entry("2026-03-01T09:59:00Z", received, sent_at="2026-03-01T09:59:10Z")
    assert (right.event_time_ms, right.skew_ms) == (received - MINUTE, 0)


def test_one_clock_in_the_future_makes_no_later_event_late() -> None:
    customer = Customer()
    for at, claimed in ((0, 0), (MINUTE, 400 * DAY), (2 * MINUTE, 2 * MINUTE)):
        outcome = customer.does(event_time(claimed + T0, None, at + T0) - T0)
        assert isinstance(outcome, Applied)
        assert not outcome.late
    assert customer.spans == [(0, 2 * MINUTE, 3)]


@pytest.mark.parametrize(
    ("time", "sent_at"),
    [
        ("0001-01-01T00:00:00+14:00", None),
        ("1969-12-31T23:59:59Z", None),
        ("1970-01-01T00:00:00Z", None),
        ("2026-03-01T10:00:00Z", "9999-12-31T23:59:59Z"),
        ("9999-12-31T23:59:59-14:00", None),
    ],
)
def test_a_time_when_nobody_could_send_is_when_it_was_received_and_says_so(time: str, sent_at: str | None) -> None:
    received = to_ms(datetime.fromisoformat("2026-03-01T10:00:00Z"))
    found = entry(time, received, **({} if sent_at is None else {"sent_at": sent_at}))
    assert found.event_time_ms == received
    assert found.skew_ms == received - to_ms(datetime.fromisoformat(time))


def test_a_clock_that_was_never_set_is_believed_as_the_past_is() -> None:
    assert event_time(1, None, T0) == 1


@pytest.mark.parametrize("year", ["0001", "1970", "1999"])
def test_an_event_of_the_far_past_is_kept_and_moves_nothing_of_the_present(year: str) -> None:
    customer = Customer()
    customer.does(0)
    old = to_ms(datetime.fromisoformat(f"{year}-01-01T00:00:00Z")) - T0
    outcome = customer.does(old)
    assert isinstance(outcome, Applied)
    assert (outcome.late, kinds(outcome)) == (True, [])
    assert customer.spans == [(0, 0, 1)]
    assert len(customer.now.timeline) == 2


def test_history_of_a_customer_who_is_new_makes_sessions_of_its_time() -> None:
    """An import: it is long past, and in order."""
    customer = Customer()
    first = to_ms(datetime.fromisoformat("2016-02-29T01:16:00Z")) - T0
    for at in (first, first + MINUTE, first + DAY):
        customer.does(at)
    assert customer.spans == [(first, first + MINUTE, 2), (first + DAY, first + DAY, 1)]
