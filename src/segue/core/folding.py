"""Two contexts made one: what becomes of each field, in one table.

A field of `Context` without a rule does not merge (a test names it), so whoever adds a field adds its line here.
A rule gets both contexts and returns the field's new value for the survivor; rules run in the order of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from segue.core import items, sessions, timers, window
from segue.core.apply import trim_identifiers
from segue.core.context import Context, Policy
from segue.core.interaction import Fact, KnownIdentifier, Place
from segue.core.lines import Lines


class Both(Struct):
    """The survivor's context, which is changed, the other, which is used up, and the facts that come of it."""

    mine: Context
    theirs: Context
    policy: Policy
    facts: list[Fact]


Rule = Callable[[Both], Any]


def fold(mine: Context, theirs: Context, policy: Policy) -> list[Fact]:
    """Fold `theirs` into `mine`, in place; `theirs` must not be used afterwards. Returns what this brought to light."""
    both = Both(mine, theirs, policy, [])
    for name, rule in RULES.items():
        setattr(mine, name, rule(both))
    return both.facts


def _kept(name: str) -> Rule:
    """The survivor's."""
    return lambda both: getattr(both.mine, name)


def _earliest(name: str) -> Rule:
    """The earlier of two times; 0 is none."""
    return lambda both: min(filter(None, (getattr(both.mine, name), getattr(both.theirs, name))), default=0)


def _largest(name: str) -> Rule:
    return lambda both: max(getattr(both.mine, name), getattr(both.theirs, name))


def _identifiers(both: Both) -> list[KnownIdentifier]:
    """Union: each at its higher level, since the earlier time."""
    known: dict[tuple[str, str], KnownIdentifier] = {}
    for given in sorted([*both.mine.identifiers, *both.theirs.identifiers], key=lambda each: each.since_ms):
        have = known.setdefault((given.type, given.value), given)
        if given.level == "verified" and have.level != "verified":
            known[given.type, given.value] = KnownIdentifier(have.type, have.value, given.level, have.since_ms)
    union = list(known.values())
    trim_identifiers(union, both.policy.keep_identifiers)
    return union


def _place(both: Both) -> Place | None:
    """Latest by event time: where the one who was seen last is."""
    first, last = sorted((both.theirs, both.mine), key=lambda context: context.stream_time_ms)
    return last.current or first.current


def _sessions(both: Both) -> Any:
    """Bridged by the rule of sessions, which sees to `holds` and `loose` too."""
    both.facts += sessions.united(both.mine, both.theirs, both.policy)
    return both.mine.sessions


def _items(both: Both) -> Any:
    """Union; one that both have is united field by field."""
    union = both.mine.items
    for ref, item in both.theirs.items.items():
        mine = union.get(ref)
        union[ref] = item if mine is None else items.united(mine, item)
    items.forget(union, both.policy.keep_closed_items)
    return union


def _openings(both: Both) -> Any:
    """Union, in which one customer's opening may turn out to follow another's: a repeated contact."""
    have = {opening.ref for opening in both.mine.openings}
    for opening in both.theirs.openings:
        if opening.ref not in have:
            both.facts += items.repeated(both.mine, opening, both.policy)
    return both.mine.openings


def _handoffs(both: Both) -> Any:
    """Union by id, in the order of time, the latest."""
    union = {handoff.handoff_id: handoff for handoff in (*both.theirs.handoffs, *both.mine.handoffs)}
    return sorted(union.values(), key=lambda h: (h.at_ms, h.handoff_id))[-both.policy.keep_handoffs :]


def _channels(both: Both) -> dict[str, int]:
    """Sum."""
    total = both.mine.channels
    for channel, count in both.theirs.channels.items():
        total[channel] = total.get(channel, 0) + count
    return total


class _Line(Struct, gc=False):
    id: str
    event_time_ms: int


_line = msgspec.json.Decoder(_Line).decode


def _timeline(both: Both) -> Lines:
    """Union by event id, in the order of event time, the latest."""
    lines = {
        (found := _line(raw)).id: (found.event_time_ms, raw) for raw in (*both.theirs.timeline, *both.mine.timeline)
    }
    in_order = sorted(lines.values(), key=lambda line: line[0])
    timeline = Lines()
    timeline.extend(raw for _, raw in in_order[-both.policy.keep_timeline :])
    return timeline


def _seen(both: Both) -> str:
    """The latest of both in turns."""
    return window.united(both.mine.seen, both.theirs.seen, both.policy.keep_ids)


def _deadlines(both: Both) -> Any:
    """Union; of two of one name, that set later. When a session closes follows from the sessions, and what is due
    first from them all."""
    mine, union = both.mine, both.mine.deadlines
    for name, deadline in both.theirs.deadlines.items():
        if name not in union or union[name].since_ms < deadline.since_ms:
            union[name] = deadline
    union.pop(timers.SESSION, None)
    mine.due_ms = min((each.due_ms for each in union.values()), default=0)
    timers.watch_session(mine, both.policy)
    return union


RULES: dict[str, Rule] = {
    "customer_key": _kept("customer_key"),
    "revision": _largest("revision"),
    "kin": _kept("kin"),
    "schema": _kept("schema"),
    "created_at_ms": _earliest("created_at_ms"),
    "identifiers": _identifiers,
    "current": _place,
    "sessions": _sessions,
    "holds": _kept("holds"),
    "loose": _kept("loose"),
    "items": _items,
    "openings": _openings,
    "handoffs": _handoffs,
    "channels": _channels,
    "seen": _seen,
    "stream_time_ms": _largest("stream_time_ms"),
    "received_at_ms": _largest("received_at_ms"),
    "deadlines": _deadlines,
    "due_ms": _kept("due_ms"),
    "fired_ms": _largest("fired_ms"),
    "entries": _kept("entries"),
    "timeline": _timeline,
}
"""By field. `current` looks at `stream_time_ms`, and `openings` at the items, so these come before."""
