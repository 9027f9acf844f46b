"""What time alone brings about: a session that closes, a cart left behind, a promise that is due.

Theory of operation. A deadline is part of the customer's document (`Context.deadlines`), set and cancelled by
events. It fires when the customer's time passes it, and that is moved by records only: by the customer's next
event, which first fires what was due before it, and by a `segue.timer.due` record, which the owner of the
partition appends once the wall clock has reached the deadline and nothing is left to read. So a replay fires
the same, and a timer record that comes twice, or after the deadline was cancelled or moved, finds nothing to do.

The customer's time by the wall clock is the clock itself, unless the newest event was already older than the grace
when it was received: then we are being told of the past (an import, a batch at night), the next event may be of
any time after it, and time goes on from the newest event at the pace of the clock. Nothing is fired early by an
import that runs through ten years in a minute.

Each kind of deadline is a function in `_FIRES`; what is awaited after an event, and what ends the waiting, is in
`AWAITED`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from segue.core import ids, sessions, timeline
from segue.core.context import Context, Deadline, Item, Policy
from segue.core.interaction import Actor, Entry, Fact, Place
from segue.core.items import UNRESOLVED

FIRED = "segue.timer.due"
SESSION = "session"
CALLBACK = "callback"
"""The kind of item that is a promise to call back."""


class TimerDue(Struct, frozen=True, gc=False, tag=FIRED, tag_field="type"):
    """A record of `segue.interactions`: the wall clock shows `now_ms`, and this customer has a deadline by then."""

    customer_key: str
    now_ms: int


class Awaited(NamedTuple):
    """After one of `starts` one of `ends` is expected; if none comes in time, that is the fact `fact`."""

    fact: str
    after_ms: int
    starts: tuple[str, ...]
    ends: tuple[str, ...]


MINUTE = COARSE_MS = 60_000
_BOUGHT = ("order.placed", "order.completed", "purchase.completed", "checkout.completed", "cart.checked_out")
AWAITED = {
    "cart": Awaited(
        "cart.abandoned",
        60 * MINUTE,
        ("cart.item_added", "cart.updated", "cart.resumed", "product.added"),
        ("cart.abandoned", "cart.emptied", "checkout.started", *_BOUGHT),
    ),
    "checkout": Awaited(
        "checkout.abandoned",
        30 * MINUTE,
        ("checkout.started", "checkout.step_viewed", "checkout.step_completed"),
        ("checkout.abandoned", *_BOUGHT),
    ),
    "form": Awaited(
        "form.abandoned",
        30 * MINUTE,
        ("form.started", "form.step_completed"),
        ("form.submitted", "form.completed", "form.abandoned"),
    ),
    "queue": Awaited(
        "call.abandoned",
        15 * MINUTE,
        ("call.queued",),
        ("call.answered", "call.abandoned", "call.ended", "call.dropped", "callback.promised"),
    ),
}
"""What is awaited, by name. `Policy.abandoned_after_ms` gives other times."""

_STARTS = {kind: name for name, awaited in AWAITED.items() for kind in awaited.starts}
_ENDS: dict[str, list[str]] = {}
for _name, _awaited in AWAITED.items():
    for _kind in _awaited.ends:
        _ENDS.setdefault(_kind, []).append(_name)
ABANDONED = frozenset(awaited.fact for awaited in AWAITED.values())
WATCHED = _STARTS.keys() | _ENDS.keys()

_encode = msgspec.json.Encoder().encode


class Fired(Struct, frozen=True, gc=False):
    """A deadline that was reached. `raw` is the entry that says so, `revision` that of the document after it."""

    facts: tuple[Fact, ...]
    raw: Raw
    revision: int
    previous: Place | None = None


# --- setting and cancelling


def watch(context: Context, entry: Entry, late: bool, policy: Policy) -> list[Fact]:
    """Set and cancel what is awaited after an event of WATCHED, or of an item. It is not on the timeline yet."""
    facts: list[Fact] = []
    if entry.item is not None:
        _watch_item(context, entry.item.ref)
    if entry.type in WATCHED:
        for name in _ENDS.get(entry.type, ()):
            waiting = context.deadlines.get(name)
            if waiting is not None and waiting.since_ms <= entry.event_time_ms:
                set_deadline(context, name, None)
        if entry.type in ABANDONED:  # the channel says so itself
            ref = entry.item.ref if entry.item is not None else None
            facts.append(Fact(entry.type, item=ref, after=entry.touchpoint))
        started = _STARTS.get(entry.type)
        if started is not None and not late:
            _await(context, started, entry, policy)
    return facts


def set_deadline(context: Context, name: str, deadline: Deadline | None) -> None:
    """Set, move or (None) cancel a deadline."""
    if deadline is not None:
        context.deadlines[name] = deadline
    elif context.deadlines.pop(name, None) is None:
        return
    earliest = 0
    for each in context.deadlines.values():
        if each.due_ms < earliest or not earliest:
            earliest = each.due_ms
    context.due_ms = earliest


def watch_session(context: Context, policy: Policy) -> None:
    """Wait for the session that closes first. Called for every event."""
    found = context.sessions
    before = context.deadlines.get(SESSION)
    if before is not None and 0 < before.due_ms - policy.grace_ms - found[-1].until_ms <= policy.session_gap_ms // 30:
        return  # nearly always: the minute is still the same
    _, due = sessions.first_to_close(context, policy)
    if due != (0 if before is None else before.due_ms):
        set_deadline(context, SESSION, Deadline(due) if due else None)


def _watch_item(context: Context, ref: str) -> None:
    item = context.items.get(ref)
    due = None
    if item is not None and item.status in UNRESOLVED and not item.sla_missed:
        due = item.due_at_ms
    before = context.deadlines.get(ref)
    if due is None or due <= 0:
        set_deadline(context, ref, None)
    elif before is None or before.due_ms != due:
        assert item is not None
        set_deadline(context, ref, Deadline(due, item.updated_at_ms, item.channel, item=ref))


def _await(context: Context, name: str, entry: Entry, policy: Policy) -> None:
    awaited, at = AWAITED[name], entry.event_time_ms
    waiting = context.deadlines.get(name)
    if waiting is not None and waiting.since_ms > at:
        return
    if at < context.stream_time_ms and any(line.type in awaited.ends for line in timeline.since(context, at)):
        return  # it had ended before we heard that it began
    due = at + policy.abandoned_after_ms.get(name, awaited.after_ms)
    ref = entry.item.ref if entry.item is not None else None
    set_deadline(context, name, Deadline(due, at, entry.channel, entry.touchpoint, ref, entry.id))


# --- firing


def now_of(context: Context, wall_ms: int, policy: Policy) -> int:
    """The customer's time when the wall clock shows `wall_ms`."""
    behind = context.received_at_ms - context.stream_time_ms
    return wall_ms - behind if behind > policy.grace_ms else wall_ms


def wake_at(context: Context, policy: Policy) -> int:
    """When, by the wall clock, the earliest deadline is reached: what the index holds. 0: there is none.

    To the minute when we are told of the past: with every event of a backlog it would move otherwise.
    """
    return wake_of(context.due_ms, context.received_at_ms - context.stream_time_ms, policy)


def wake_of(due_ms: int, behind_ms: int, policy: Policy) -> int:
    """The same of an earliest deadline, and of how far the newest event lay behind when it was received."""
    if not due_ms or behind_ms <= policy.grace_ms:
        return due_ms
    return ((due_ms + behind_ms) // COARSE_MS + 1) * COARSE_MS


def fire(context: Context, until_ms: int, received_at_ms: int, policy: Policy) -> Iterator[Fired]:
    """Fire what is due up to `until_ms`, in order; the context changes with each step of the iteration."""
    while context.deadlines and context.due_ms <= until_ms:
        name, deadline = min(context.deadlines.items(), key=lambda each: (each[1].due_ms, each[0]))
        set_deadline(context, name, None)
        found = _FIRES.get(name, _item_due)(context, name, deadline, policy)
        if found is not None:
            yield _fired(context, name, deadline, *found, received_at_ms, policy)


def _fired(
    context: Context, name: str, deadline: Deadline, fact: Fact, channel: str, received_at_ms: int, policy: Policy
) -> Fired:
    entry = Entry(
        id=ids.derive(ids.TIMER, f"{context.customer_key}/{name}/{deadline.due_ms}/{fact.after or ''}"),
        type=fact.fact,
        channel=channel,
        event_time_ms=deadline.due_ms,
        received_at_ms=received_at_ms,
        touchpoint=deadline.touchpoint,
        actor=Actor("system"),
        session_id=fact.after if name == SESSION else None,
    )
    line = _encode(entry)
    if name != SESSION:  # the sessions say themselves that they are closed
        timeline.add(context, deadline.due_ms, line, policy.keep_timeline)
        context.fired_ms = max(context.fired_ms, deadline.due_ms)
    context.revision += 1
    return Fired((fact,), Raw(line), context.revision)


def _session_due(context: Context, name: str, deadline: Deadline, policy: Policy) -> tuple[Fact, str] | None:
    closed = sessions.close(context, deadline.due_ms, policy)
    watch_session(context, policy)
    return None if closed is None else (sessions.closed_fact(closed), closed.channels[-1])


def _item_due(context: Context, ref: str, deadline: Deadline, policy: Policy) -> tuple[Fact, str] | None:
    item = context.items.get(ref)
    if item is None or item.status not in UNRESOLVED or item.sla_missed:
        return None
    item.sla_missed = True
    return Fact(_missed(item), ref, after=item.group, evidence=tuple(item.contacts)), item.channel


def _missed(item: Item) -> str:
    return "callback.missed" if item.kind == CALLBACK else "item.sla_missed"


def _abandoned(context: Context, name: str, deadline: Deadline, policy: Policy) -> tuple[Fact, str] | None:
    evidence = () if deadline.event_id is None else (deadline.event_id,)
    fact = Fact(AWAITED[name].fact, deadline.item, after=deadline.touchpoint, evidence=evidence)
    return fact, deadline.channel or "other"


_Fire = Callable[[Context, str, Deadline, Policy], tuple[Fact, str] | None]
_FIRES: dict[str, _Fire] = {SESSION: _session_due, **dict.fromkeys(AWAITED, _abandoned)}
"""By the deadline's name; every other is an item's, by its `kind:id`."""
