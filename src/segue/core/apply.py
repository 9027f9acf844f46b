"""Apply one interaction to one customer's context: the function that every event passes.

The order matters and is this: known already? late? identifiers, session, place, item, timeline. What came
out is a value: `Applied` with the facts, or `Duplicate`.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from segue.core import handoffs, items, sessions, window
from segue.core.context import Context, Policy
from segue.core.identity import rank_of_type
from segue.core.ids import fingerprint
from segue.core.interaction import Entry, Fact, Interaction, KnownIdentifier, Place

_encode = msgspec.json.Encoder().encode


class Applied(Struct, frozen=True, gc=False):
    """The context changed. `raw` is the entry as it stands in the timeline."""

    facts: tuple[Fact, ...]
    raw: Raw
    previous: Place | None
    late: bool


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
    if window.contains(context.seen, mark):
        return DUPLICATE
    context.seen = window.remember(context.seen, mark, policy.keep_ids)
    context.revision += 1
    late = sessions.is_late(context, entry.event_time_ms, policy)
    facts = [Fact("customer.created")] if context.revision == 1 else []
    _identify(context, interaction, policy.keep_identifiers)
    session, opened = sessions.place(context, entry, late, policy)
    facts += opened
    if session is not None:
        entry.session_id = session.session_id
    here = context.current
    previous = None
    if not late and entry.event_time_ms >= context.stream_time_ms:
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
    entry.late = late
    raw = Raw(_encode(entry))
    _append(context, entry.event_time_ms, raw, policy.keep_timeline)
    context.channels[entry.channel] = context.channels.get(entry.channel, 0) + 1
    context.stream_time_ms = max(context.stream_time_ms, entry.event_time_ms)
    context.received_at_ms = max(context.received_at_ms, entry.received_at_ms)
    return Applied(tuple(facts), raw, previous, late)


def _identify(context: Context, interaction: Interaction, keep: int) -> None:
    known = context.identifiers
    for given in interaction.identifiers:
        for at, have in enumerate(known):
            if have.value == given.value and have.type == given.type:
                if given.level == "verified" and have.level != "verified":
                    known[at] = KnownIdentifier(have.type, have.value, given.level, have.since_ms)
                break
        else:
            since = interaction.entry.event_time_ms
            known.append(KnownIdentifier(given.type, given.value, given.level, since))
    while len(known) > keep:  # every case has an id; of the weakest type the one known longest goes
        known.remove(max(known, key=lambda have: (rank_of_type(have.type), -have.since_ms)))


class _At(Struct, gc=False):
    event_time_ms: int


_at = msgspec.json.Decoder(_At)


def _append(context: Context, at: int, raw: Raw, keep: int) -> None:
    """Add an entry in event-time order. Nearly always at the end; otherwise look back for its place."""
    timeline = context.timeline
    if at >= context.stream_time_ms:
        timeline.append(raw)
    else:
        index = len(timeline)
        while index and _at.decode(timeline[index - 1]).event_time_ms > at:
            index -= 1
        timeline.insert(index, raw)
    if len(timeline) > keep:
        del timeline[:-keep]
