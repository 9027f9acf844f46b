"""Bursts by event time: enough events within a time, told once per period. Pure, and the same whatever the order.

Theory of operation. An agent reads many partitions, so the order in which it sees events changes from run to
run, and at-least-once delivery repeats some. Therefore nothing here depends on order: a state is a *set* of
events, an event id counts once, and time is cut into periods of the clock (the half hours, say) instead of a
cooldown counted from whichever burst was seen first. A burst belongs to the period of its first event, and a
period is told once: so a storm that goes on is told again every period, as a reminder, and every replay tells
the same periods. That holds for events no older than `keep_ms` behind the newest; older ones are ignored,
since the state no longer knows whether it has counted them.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import msgspec
from msgspec import Struct, field


class Policy(Struct, frozen=True):
    """What makes a burst: `count` events within `within_ms`; told once per `period_ms` of the clock (UTC)."""

    count: int
    within_ms: int
    period_ms: int
    keep_ms: int = 6 * 3_600_000
    keep_events: int = 500


class Seen(Struct, frozen=True, array_like=True, order=True, gc=False):
    """One event that counts."""

    at_ms: int
    event_id: str


class BurstState(Struct, omit_defaults=True):
    """What is remembered of one place: the events, oldest first, and the periods that were told."""

    events: list[Seen] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    floor_ms: int = -(2**62)
    """Events up to this time have been forgotten, so one of that age may have been counted already."""


class Burst(Struct, frozen=True):
    """A burst found: the start of its period and its events, oldest first."""

    period_ms: int
    events: tuple[Seen, ...]


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(BurstState).decode


def observe(state: BurstState, at_ms: int, event_id: str, policy: Policy) -> list[Burst]:
    """Count one event into `state`, which is changed in place. Returns the bursts of periods not told before."""
    seen = Seen(at_ms, event_id)
    if at_ms <= state.floor_ms or any(event.event_id == event_id for event in state.events):
        return []
    insort(state.events, seen)
    found = _bursts(state, seen, policy)
    state.told = sorted({*state.told, *(burst.period_ms for burst in found)})
    _forget(state, policy)
    return found


def _bursts(state: BurstState, new: Seen, policy: Policy) -> list[Burst]:
    """The first untold burst of each period among those that the new event is part of."""
    events, count = state.events, policy.count
    at = bisect_left(events, new)
    found: dict[int, Burst] = {}
    for first in range(max(0, at - count + 1), min(at, len(events) - count) + 1):
        begin = events[first].at_ms
        period = begin - begin % policy.period_ms
        if events[first + count - 1].at_ms - begin <= policy.within_ms and period not in state.told:
            end = bisect_left(events, Seen(begin + policy.within_ms + 1, ""))
            found.setdefault(period, Burst(period, tuple(events[first:end])))
    return list(found.values())


def _forget(state: BurstState, policy: Policy) -> None:
    events = state.events
    floor = events[-1].at_ms - policy.keep_ms - 1
    if len(events) > policy.keep_events:
        floor = max(floor, events[-policy.keep_events - 1].at_ms)
    if floor > state.floor_ms:
        state.floor_ms = floor
        del events[: bisect_left(events, Seen(floor + 1, ""))]
        state.told = [period for period in state.told if period + policy.period_ms > floor]
