"""Reading several partitions in the order in which the log received the records."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from segue.log.port import TP, Record
from segue.log.sqlite import Row
from segue.merge import PATIENCE_S, TimeMerge

WEB, CALL, SHOP = ("segue.events.web", 0), ("segue.events.voice", 0), ("segue.events.store", 0)


def records(tp: TP, *times_ms: int, first: int = 0) -> dict[TP, list[Record]]:
    """Records of one partition, received at these times."""
    return {tp: [Row(tp, first + n, at, b"k", b"v", None) for n, at in enumerate(times_ms)]}


def times(taken: dict[TP, list[Record]]) -> dict[TP, list[int]]:
    return {tp: [record.timestamp()[1] for record in found] for tp, found in taken.items()}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def merge(*tps: TP, clock: Clock | None = None) -> TimeMerge:
    made = TimeMerge(clock or Clock())
    for tp in tps:
        made.started(tp)
    return made


def test_partitions_at_their_end_hold_nothing_up() -> None:
    found = merge(WEB, CALL)
    found.add(records(WEB, 1, 5), [WEB, CALL])
    assert times(found.take()) == {WEB: [1, 5]}
    assert found.take() == {}


def test_nothing_is_given_out_before_every_partition_has_spoken() -> None:
    found = merge(WEB, CALL)
    found.add(records(WEB, 1, 5), [WEB])
    assert found.take() == {}
    assert found.held(WEB) == 2


def test_records_are_given_out_up_to_the_time_that_every_unfinished_partition_has_reached() -> None:
    found = merge(WEB, CALL)
    found.add(records(WEB, 1, 3, 7) | records(CALL, 2, 3), [])
    assert times(found.take()) == {WEB: [1, 3], CALL: [2, 3]}
    assert (found.held(WEB), found.held(CALL), found.last_offset(WEB)) == (1, 0, 2)


def test_what_was_held_goes_out_when_the_slower_partition_ends() -> None:
    found = merge(WEB, CALL)
    found.add(records(WEB, 1, 3, 7) | records(CALL, 2), [WEB])
    assert times(found.take()) == {WEB: [1], CALL: [2]}
    found.add({}, [CALL])
    assert times(found.take()) == {WEB: [3, 7]}


def test_a_partition_that_gives_more_after_its_end_counts_again() -> None:
    found = merge(WEB, CALL)
    found.add({}, [WEB, CALL])
    found.add(records(WEB, 5), [])
    found.add(records(CALL, 9), [CALL])
    assert times(found.take()) == {WEB: [5]}
    found.add({}, [WEB])
    assert times(found.take()) == {CALL: [9]}


def test_a_silent_partition_is_waited_for_up_to_the_patience_and_not_longer() -> None:
    clock = Clock()
    found = merge(WEB, CALL, SHOP, clock=clock)
    found.add(records(WEB, 1, 4) | records(CALL, 2), [WEB])
    assert found.take() == {}
    clock.now_s = PATIENCE_S - 0.001
    assert found.take() == {}
    clock.now_s = PATIENCE_S
    assert times(found.take()) == {WEB: [1], CALL: [2]}


def test_patience_begins_anew_after_every_partition_has_spoken() -> None:
    clock = Clock()
    found = merge(WEB, CALL, clock=clock)
    found.add(records(WEB, 1), [])
    assert found.take() == {}
    clock.now_s = PATIENCE_S / 2
    found.add(records(CALL, 2), [])
    assert times(found.take()) == {WEB: [1]}
    clock.now_s = PATIENCE_S
    assert found.take() == {}  # the web is silent since just now


def test_a_dropped_partition_is_forgotten_with_what_was_held_of_it() -> None:
    found = merge(WEB, CALL)
    found.add(records(WEB, 1) | records(CALL, 2), [WEB])
    found.drop(CALL)
    found.add(records(CALL, 3), [])
    assert found.held(CALL) == 0
    assert times(found.take()) == {WEB: [1]}


def test_a_partition_started_again_begins_with_nothing_held() -> None:
    found = merge(WEB)
    found.add(records(WEB, 1), [])
    found.started(WEB)
    assert found.held(WEB) == 0


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from([WEB, CALL, SHOP]), st.lists(st.integers(0, 50), max_size=20), min_size=1),
    st.lists(st.tuples(st.sampled_from([WEB, CALL, SHOP]), st.integers(1, 8)), max_size=60),
)
def test_whatever_the_reads_bring_first_records_come_out_in_received_order_and_none_is_lost(
    logs: dict[TP, list[int]], reads: list[tuple[TP, int]]
) -> None:
    logs = {tp: sorted(received) for tp, received in logs.items()}
    everything = [(tp, len(received) + 1) for tp, received in logs.items()]
    found, at, out = merge(*logs), dict.fromkeys(logs, 0), []
    for tp, count in reads + everything:
        if tp not in logs:
            continue
        chunk = logs[tp][at[tp] : at[tp] + count]
        brought = records(tp, *chunk, first=at[tp]) if chunk else {}
        at[tp] += len(chunk)
        found.add(brought, [tp] if at[tp] == len(logs[tp]) else [])
        taken = found.take()
        out += sorted(time for part in times(taken).values() for time in part)
    assert out == sorted(time for received in logs.values() for time in received)
