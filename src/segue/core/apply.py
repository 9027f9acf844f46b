"""Apply one interaction to one customer's context: the function that every event passes.

The order matters and is this: known already? what was due before it; identifiers; session, and late? place, item,
deadlines, timeline. What came out is a value: `Applied` with the facts, or `Duplicate`.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from segue.core import handoffs, items, sessions, timeline, timers, window
from segue.core.context import Context, Policy
from segue.core.identity import rank_of_type
from segue.core.ids import fingerprint
from segue.core.interaction import Entry, Fact, Interaction, KnownIdentifier, Place

_encode = msgspec.json.Encoder().encode


class Applied(Struct, frozen=True, gc=False):
    """The context changed. `raw` is the entry as it stands in the timeline.

    `due` are the deadlines that passed before it, each a change of its own; `revision` is that after this one.
    """

    facts: tuple[Fact, ...]
    raw: Raw
    previous: Place | None
    late: bool
    revision: int
    due: tuple[timers.Fired, ...] = ()


class Duplicate(Struct, frozen=True):
    """This event id was applied before; nothing changed."""


DUPLICATE = Duplicate()


def new_context(customer_key: str, entry: Entry) -> Context:
    """Return an empty context for a customer first seen with `entry`."""
    return Context(customer_key=customer_key, created_at_ms=entry.event_time_ms)


def apply(context: Context, interaction: Interaction, policy: Policy) -> Applied | Duplicate:
    """Apply `interaction` to `context`, which is changed in place; its owner must not share it."""
    entry = interaction.entry
    mark = fingerprint(entry.id)
    seen = context.seen
    if mark in seen and window.contains(seen, mark):
        return DUPLICATE
    context.seen = window.remember(seen, mark, policy.keep_ids)
    at = entry.event_time_ms
    due: tuple[timers.Fired, ...] = ()
    if 0 < context.due_ms < at and at > context.stream_time_ms:
        due = tuple(timers.fire(context, at - 1, entry.received_at_ms, policy))
    context.revision += 1
    facts = [Fact("customer.created")] if context.revision == 1 else []
    _identify(context, interaction, policy.keep_identifiers)
    session, opened, late = sessions.place(context, entry, policy)
    facts += opened
    if session is not None:
        entry.session_id = session.session_id
    here = context.current
    previous = None
    newest = at >= context.stream_time_ms
    if newest and not late:
        previous = None if here is None else Place(here.channel, here.since_ms, here.touchpoint)
        facts += handoffs.moved(context, entry, session)
    if entry.item is not None:
        contact = f"{entry.session_id}/{entry.channel}"
        contested = bool(interaction.contested) and f"{entry.item.kind}_id" in interaction.contested
        facts += items.change(context, entry, contact, contested, policy)
    if entry.survey is not None:
        facts.append(Fact("survey.answered", after=entry.survey.metric, value=entry.survey.score))
    if entry.wait_ms is not None:
        facts.append(Fact("wait", after=entry.touchpoint, value=float(entry.wait_ms)))
    if facts:
        handoffs.recorded(context, entry, facts, policy.keep_handoffs)
    timers.watch_session(context, policy)
    if entry.item is not None or entry.type in timers.WATCHED:
        facts += timers.watch(context, entry, late, policy)
    if late:
        entry.late = True
    line = _encode(entry)
    timeline.add(context, at, line, policy.keep_timeline)
    channel, received = entry.channel, entry.received_at_ms
    context.channels[channel] = context.channels.get(channel, 0) + 1
    if newest:
        context.stream_time_ms = at
    if received > context.received_at_ms:
        context.received_at_ms = received
    return Applied(tuple(facts), Raw(line), previous, late, context.revision, due)


def _identify(context: Context, interaction: Interaction, keep: int) -> None:
    known = context.identifiers
    for given in interaction.identifiers:
        value, kind = given.value, given.type
        for have in known:
            if have.value == value and have.type == kind:
                if given.level != have.level and given.level == "verified":
                    better = KnownIdentifier(kind, value, given.level, have.since_ms)
                    known[known.index(have)] = better
                break
        else:
            known.append(KnownIdentifier(kind, value, given.level, interaction.entry.event_time_ms))
    if len(known) > keep:
        trim_identifiers(known, keep)


def trim_identifiers(known: list[KnownIdentifier], keep: int) -> None:
    """Every case has an id, so of the weakest type the one known longest goes."""
    while len(known) > keep:
        known.remove(max(known, key=lambda have: (rank_of_type(have.type), -have.since_ms)))
