"""The limit on rejections, by hand-made sequences: what is within it, and which record is one too many."""

from __future__ import annotations

import pytest

from segue.rejections import WINDOW, Limit, Rejections

OFF = Limit(share=0, run=0)


def first_over(refused: set[int], total: int, limit: Limit, batch: int) -> int | None:
    """The number (from 0) of the record that is too many, counted in batches."""
    state = Rejections()
    for start in range(0, total, batch):
        count = min(batch, total - start)
        at = [n - start for n in sorted(refused) if start <= n < start + count]
        state, over = state.after(count, at, limit)
        if over is not None:
            return start + over.position
    return None


@pytest.mark.parametrize("batch", [1, 7, 100, 5000])
def test_the_hundredth_in_a_row_is_too_many_however_the_records_are_batched(batch: int) -> None:
    run = Limit(share=0)
    assert first_over(set(range(30, 130)), 3000, run, batch) == 129
    assert first_over(set(range(30, 129)), 3000, run, batch) is None
    assert first_over(set(range(300)) - {99, 198, 297}, 300, run, batch) is None


@pytest.mark.parametrize("batch", [1, 7, 100, 5000])
def test_the_share_is_of_the_last_thousand_and_of_none_before_so_many_were_seen(batch: int) -> None:
    share = Limit(run=0)
    every_tenth = set(range(0, 3000, 10))
    assert first_over(every_tenth, 3000, share, batch) == 1000  # the first refusal with 1,000 records seen
    assert first_over(set(range(0, 3000, 20)), 3000, share, batch) is None  # 5 % is within, more is not
    fifty = {2000 + 2 * n for n in range(50)}
    assert first_over(fifty, 4000, share, batch) is None
    assert first_over(fifty | {2999}, 4000, share, batch) == 2999
    assert first_over(fifty | {3000}, 4000, share, batch) is None  # the first of the fifty is 1,000 records back


def test_it_can_be_switched_off() -> None:
    assert first_over(set(range(5000)), 5000, OFF, 100) is None
    assert first_over(set(range(5000)), 5000, Limit(share=1, run=0), 100) is None


def test_what_is_kept_is_bounded() -> None:
    state = Rejections()
    for _ in range(10):
        state, _ = state.after(1000, range(1000), OFF)
    assert len(state.recent) == WINDOW
