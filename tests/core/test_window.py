"""The window of recent event ids."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core import window
from segue.core.ids import SEEN_WIDTH, fingerprint

MARKS = st.text("abAB01-_", min_size=SEEN_WIDTH, max_size=SEEN_WIDTH)


def test_a_mark_that_was_remembered_is_contained() -> None:
    seen = window.remember("", fingerprint("e1"), 512)
    assert window.contains(seen, fingerprint("e1"))
    assert not window.contains(seen, fingerprint("e2"))


def test_the_oldest_mark_falls_out_when_one_too_many_comes_and_not_before() -> None:
    marks = [fingerprint(str(number)) for number in range(4)]
    seen = ""
    for mark in marks[:3]:
        seen = window.remember(seen, mark, 3)
    assert window.contains(seen, marks[0])
    seen = window.remember(seen, marks[3], 3)
    assert not window.contains(seen, marks[0])
    assert all(window.contains(seen, mark) for mark in marks[1:])
    assert len(seen) == 3 * SEEN_WIDTH


def test_a_mark_that_only_appears_across_the_border_of_two_is_not_contained() -> None:
    first, second = "a" * SEEN_WIDTH, "b" * SEEN_WIDTH
    across = "a" * (SEEN_WIDTH - 1) + "b"
    assert across in first + second
    assert not window.contains(first + second, across)


def test_a_mark_is_found_behind_a_place_where_it_appears_across_a_border() -> None:
    across = "ab" * 5 + "a"
    seen = "xab" + "ab" * 4 + across
    assert seen.find(across) % SEEN_WIDTH != 0
    assert window.contains(seen, across)


@settings(deadline=None)
@given(st.lists(MARKS, max_size=12), MARKS, st.integers(1, 8))
def test_it_is_a_set_of_the_last_marks(marks: list[str], asked: str, keep: int) -> None:
    seen = ""
    for mark in marks:
        seen = window.remember(seen, mark, keep)
    assert window.contains(seen, asked) == (asked in marks[-keep:])
    assert all(window.contains(seen, mark) for mark in marks[-keep:])
