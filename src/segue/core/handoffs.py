"""Detected handoffs: the customer simply appears elsewhere, or somebody else takes over.

Three kinds. `channel`: the customer's next interaction is on another channel, within the same session or
while an item is unresolved. `actor`: a conversation passes from bot to agent or back. `group`: an item
passes from one group to another (found in `core.items`). System events move nobody; nor does an agent's
work on a case while the customer is not there, nor answering a survey.
"""

from __future__ import annotations

from segue.core import ids
from segue.core.context import Context, Handoff, Session
from segue.core.interaction import Entry, Fact, Place
from segue.core.items import UNRESOLVED

NO_PLACES = frozenset({"survey"})
"""Channels on which nobody is served."""

KINDS = {"handoff.channel": "channel", "handoff.actor": "actor", "handoff.group": "group"}


def moved(context: Context, entry: Entry, session: Session | None) -> list[Fact]:
    """Move the customer to where this interaction took place. Returns the handoffs that this means."""
    acting, here = entry.acting(), context.current
    if acting == "system" or entry.channel in NO_PLACES or (acting == "agent" and session is None):
        return []
    serving = None if acting == "customer" else acting
    same_visit = session is not None and session.events > 1
    if here is None:
        context.current = Place(entry.channel, entry.event_time_ms, entry.touchpoint, entry.device, serving)
        return []
    facts = []
    if entry.channel != here.channel:
        if same_visit or any(item.status in UNRESOLVED for item in context.items.values()):
            facts.append(Fact("handoff.channel", before=here.channel, after=entry.channel))
        served_by = here.served_by if same_visit else None
        here = Place(entry.channel, entry.event_time_ms, entry.touchpoint, entry.device, served_by)
        context.current = here
    if serving is not None and serving != here.served_by:
        if here.served_by is not None:
            facts.append(Fact("handoff.actor", before=here.served_by, after=serving))
        here.served_by = serving
    if entry.touchpoint is not None and entry.touchpoint != here.touchpoint:
        here.touchpoint, here.since_ms = entry.touchpoint, entry.event_time_ms
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
