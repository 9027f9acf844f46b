"""Who sits at a device that several people use, at which time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from segue.core.seats import MOST, Seats, sitting, together

ANNA, BEN, CLEO = "anna", "ben", "cleo"


def test_before_anybody_else_took_it_the_seat_is_the_owners() -> None:
    assert sitting({}, 5) is None
    assert sitting({BEN: (10, "e1")}, 9) is None


def test_the_seat_is_taken_from_the_very_moment_of_the_event_that_took_it() -> None:
    assert sitting({BEN: (10, "e1")}, 10) == BEN


def test_whoever_took_it_last_before_a_time_sat_there_at_that_time() -> None:
    seats: Seats = {BEN: (10, "e1"), CLEO: (20, "e2"), ANNA: (30, "e3")}
    assert [sitting(seats, at) for at in (9, 19, 29, 30, 99)] == [None, BEN, CLEO, ANNA, ANNA]


def test_of_each_person_the_latest_taking_is_kept_and_an_earlier_one_changes_nothing() -> None:
    assert together({BEN: (10, "e1")}, {BEN: (12, "e2")}) == {BEN: (12, "e2")}
    assert together({BEN: (10, "e1")}, {BEN: (8, "e0")}) == {BEN: (10, "e1")}


def test_a_kiosk_remembers_the_latest() -> None:
    seats: Seats = {}
    for at in range(MOST + 5):
        seats = together(seats, {f"c{at:02}": (at, f"e{at}")})
    assert list(seats) == [f"c{at:02}" for at in range(5, MOST + 5)]


takings = st.lists(
    st.tuples(st.integers(0, 30).map("c{:02}".format), st.integers(1, 60), st.sampled_from(["e1", "e2"])), max_size=40
)


@given(takings, st.randoms())
def test_in_whatever_order_and_however_often_it_is_said_the_seats_are_the_same(
    said: list[tuple[str, int, str]], random: object
) -> None:
    one: Seats = {}
    for key, at, event_id in said:
        one = together(one, {key: (at, event_id)})
    other: Seats = {}
    again = [*said, *said]
    random.shuffle(again)  # type: ignore[attr-defined]
    for key, at, event_id in again:
        other = together(other, {key: (at, event_id)})
    assert list(one.items()) == list(other.items())
