"""Detected handoffs: the customer simply appears elsewhere, or somebody else takes over.

Three kinds. `channel`: the customer's next interaction is on another channel, within the same session or
while an item is unresolved. `actor`: a conversation passes from bot to agent or back. `group`: an item
passes from one group to another (found in `core.items`). System events move nobody.
"""

from __future__ import annotations

from segue.core import ids
from segue.core.context import Context, Handoff, Session
from segue.core.interaction import Entry, Fact, Place
from segue.core.items import UNRESOLVED

KINDS = {"handoff.channel": "channel", "handoff.actor": "actor", "handoff.group": "group"}


def moved(context: Context, entry: Entry, session: Session | None) -> list[Fact]:
    """Move the customer to where this interaction took place. Returns the handoffs that this means."""
    kind = "customer" if entry.actor is None else entry.actor.kind
    if kind == "system":
        return []
    here, at = context.current, entry.event_time_ms
    served_by = kind if kind in ("bot", "agent") else None
    if here is None:
        context.current = Place(entry.channel, at, entry.touchpoint, entry.device, served_by)
        return []
    facts = []
    if entry.channel != here.channel:
        same_visit = session is not None and session.events > 1
        if same_visit or any(item.status in UNRESOLVED for item in context.items.values()):
            facts.append(Fact("handoff.channel", before=here.channel, after=entry.channel))
        context.current = Place(entry.channel, at, entry.touchpoint, entry.device, served_by)
        return facts
    if served_by is not None and served_by != here.served_by:
        if here.served_by is not None:
            facts.append(Fact("handoff.actor", before=here.served_by, after=served_by))
        here.served_by = served_by
    if entry.touchpoint is not None and entry.touchpoint != here.touchpoint:
        here.touchpoint, here.since_ms = entry.touchpoint, at
    if entry.device is not None:
        here.device = entry.device
    return facts


def recorded(context: Context, entry: Entry, facts: list[Fact], keep: int) -> None:
    """Write the handoffs among `facts` into the context, newest last."""
    for fact in facts:
        kind = KINDS.get(fact.fact)
        if kind is None or fact.before is None or fact.after is None:
            continue
        name = f"{context.customer_key}/{entry.id}/{kind}"
        context.handoffs.append(
            Handoff(
                handoff_id=ids.derive(ids.HANDOFF, name),
                kind=kind,
                before=fact.before,
                after=fact.after,
                at_ms=entry.event_time_ms,
                event_id=entry.id,
                item=fact.item,
            )
        )
    del context.handoffs[:-keep]
