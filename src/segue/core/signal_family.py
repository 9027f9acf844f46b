"""What a merge of customers does to the state of their signals: carried over, folded, and divided again.

The owners of two partitions of `segue.journey-steps` talk by steps that carry a state. A merge's step says whose state
will come; until it is there, what counts is parked, so that a cooldown of the absorbed holds for the survivor from the
first step on and nothing is signalled twice.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Raw, structs

from segue.core.interaction import StepView
from segue.core.rules import Match, SignalState, encoder

KIN_FACTS = frozenset({"customer.merged", "customer.absorbed", "customer.unmerged", "customer.released"})
MAX_PARKED = 200
"""Steps that wait for a state; with more, the wait is over, for nothing waits for ever."""

MAX_RELEASED = 100

_step = msgspec.json.Decoder(StepView).decode
_encode = msgspec.json.Encoder().encode


def concerns_kin(step: StepView) -> bool:
    """Whether a step is about a merge. Its first fact says so, or it carries a state."""
    return bool(step.signals) or (bool(step.facts) and step.facts[0].fact in KIN_FACTS)


def divides(step: StepView) -> bool:
    """Whether a merge is undone here. That is done once all is here that may have to be divided."""
    return bool(step.facts) and step.facts[0].fact == "customer.unmerged"


def expect(state: SignalState, key: str) -> None:
    """The state of `key` belongs here from now on; it may have come already. One's own comes back after a merge."""
    state.released = [each for each in state.released if each != key]
    if key in state.arrived:
        state.arrived.remove(key)
    else:
        state.waiting.append(key)


def be_free(state: SignalState) -> None:
    """Stand for oneself again, with one's own state as the survivor sends it back: what is here was before."""
    if state.customer_key not in state.arrived:
        _forget(state)
    state.into = None
    expect(state, state.customer_key)


def _forget(state: SignalState) -> None:
    state.active, state.matches, state.origins = [], {}, {}


def arrive(state: SignalState, come: SignalState, keep: int) -> None:
    """Fold in a state that was carried here, and what had come to it or is still to come."""
    if state.into is not None:  # one's own, before the word that one is free
        _forget(state)
    for key in (come.customer_key, *come.arrived):
        if key in state.waiting:
            state.waiting.remove(key)
        else:
            state.arrived.append(key)
    for key in come.waiting:
        expect(state, key)
    state.parked += come.parked
    fold(state, come, keep)


def park(state: SignalState, step: StepView) -> None:
    """Keep a step until nothing is waited for any more."""
    state.parked.append(Raw(_encode(step)))
    if len(state.parked) > MAX_PARKED:
        state.waiting.clear()


def unparked(state: SignalState) -> list[StepView]:
    """The steps that waited, in their order; they wait no more."""
    steps, state.parked = [_step(raw) for raw in state.parked], []
    return steps


def fold(mine: SignalState, theirs: SignalState, keep: int) -> None:
    """Union of what was signalled and of what counts; of two times fired, the later."""
    known = {signal.signal_id for signal in mine.active}
    both = [*mine.active, *(signal for signal in theirs.active if signal.signal_id not in known)]
    mine.active = sorted(both, key=lambda signal: (signal.last_seen_ms, signal.signal_id))[-keep:]
    for name, matches in theirs.matches.items():
        mine.matches[name] = sorted([*mine.matches.get(name, ()), *matches], key=lambda match: match.at_ms)
    for name, at in theirs.fired.items():
        mine.fired[name] = max(at, mine.fired.get(name, at))
    origins = {name: theirs.origins.get(name, theirs.customer_key) for name in _names(theirs)}
    mine.origins |= {name: origin for name, origin in origins.items() if origin != mine.customer_key}


def divide(state: SignalState, leaving: tuple[str, ...], key: str) -> SignalState:
    """Take out what came by some customers, for `key`, who leaves with them. Cooldowns hold on both sides."""
    theirs = {name for name, origin in state.origins.items() if origin in leaving}
    out = SignalState(
        key,
        active=[signal for signal in state.active if signal.signal_id in theirs],
        matches=_matches(state, lambda match: match.event_id in theirs),
        fired=dict(state.fired),
        origins={name: state.origins[name] for name in theirs if state.origins[name] != key},
    )
    state.released = [*state.released, *leaving][-MAX_RELEASED:]
    state.active = [signal for signal in state.active if signal.signal_id not in theirs]
    state.matches = _matches(state, lambda match: match.event_id not in theirs)
    state.origins = {name: origin for name, origin in state.origins.items() if name not in theirs}
    return out


def _names(state: SignalState) -> list[str]:
    signals = [signal.signal_id for signal in state.active]
    return signals + [match.event_id for matches in state.matches.values() for match in matches]


def _matches(state: SignalState, wanted: Callable[[Match], bool]) -> dict[str, list[Match]]:
    some = {name: [match for match in found if wanted(match)] for name, found in state.matches.items()}
    return {name: found for name, found in some.items() if found}


def carried(state: SignalState, to: str) -> Raw:
    """The state as it travels to another customer. What it waits for is waited for there."""
    key = state.customer_key
    # The numbers of steps are each customer's own.
    parked = [
        structs.replace(_step(raw), customer_key=to, revision=0, via=_step(raw).via or key) for raw in state.parked
    ]
    raw = Raw(encoder.encode(structs.replace(state, parked=[Raw(_encode(step)) for step in parked])))
    state.waiting = [each for each in state.waiting if each == key]
    state.arrived, state.parked = [], []
    return raw


def onwards(state: SignalState, come: SignalState, via: str | None) -> str | None:
    """Who a state that came is for, if not this customer: whoever stands for it, or who passed it on and is free again.

    One's own, which comes back after a merge, may be here before the word of that; but if it was waited for when the
    customer was absorbed again, it goes on.
    """
    key = state.customer_key
    if via is not None and via in state.released:
        return via
    if state.into is None or (come.customer_key == key and key not in state.waiting):
        return None
    if come.customer_key == key:
        state.waiting.remove(key)
    return state.into
