"""Open items: cases, orders, promises, and what an interaction changes about them.

Theory of operation. An event names an item by kind and id and says what it knows. The first sight of an
item opens it; after that only differences count. A resolved or closed item that becomes open again, or
whose reopen count grew, was reopened. A customer who comes back about an unresolved item in a new session
or on another channel has made another attempt. An item opened within seven days of the customer's
previous one of its kind is a repeated contact, counted by opening times, so that the order of arrival does not matter.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

from msgspec import structs

from segue.core.context import Context, Item, Opening, Policy
from segue.core.interaction import Entry, Fact, ItemChange

UNRESOLVED = ("open", "waiting")
KEEP_CONTACTS = 5


def change(context: Context, entry: Entry, contact: str, contested: bool, policy: Policy) -> list[Fact]:
    """Apply what the event says of its item. `contact` names the contact this event belongs to."""
    seen = entry.item
    assert seen is not None
    ref = seen.ref
    item = context.items.get(ref)
    facts: list[Fact] = []
    if item is None:
        item = _opened(context, entry, seen, contested, policy, facts)
    if entry.event_time_ms >= item.updated_at_ms:
        _status(item, ref, seen, entry, facts)
        _handling(item, ref, seen, entry, facts)
    _totals(item, ref, seen, facts)
    _attempt(item, ref, entry, contact, facts)
    item.updated_at_ms = max(item.updated_at_ms, entry.event_time_ms)
    forget(context.items, policy.keep_closed_items)
    return facts


def _opened(
    context: Context, entry: Entry, seen: ItemChange, contested: bool, policy: Policy, facts: list[Fact]
) -> Item:
    opened = seen.opened_at_ms if seen.opened_at_ms is not None else entry.event_time_ms
    item = Item(
        kind=seen.kind,
        id=seen.id,
        status=seen.status or "open",
        opened_at_ms=opened,
        updated_at_ms=entry.event_time_ms,
        channel=entry.channel,
        group=seen.group,
        due_at_ms=seen.due_at_ms,
    )
    context.items[seen.ref] = item
    if contested:  # begun by another customer: this one joined it
        facts.append(Fact("item.joined", item=seen.ref, after=item.status))
        return item
    facts.append(Fact("item.opened", item=seen.ref, before=entry.channel, after=item.status))
    if not context.openings:
        strongest = context.identifiers[0].type if context.identifiers else "unknown"
        facts.append(Fact("customer.first_item", item=seen.ref, after=strongest))
    facts += repeated(context, Opening(opened, seen.ref), policy)
    return item


def united(mine: Item, theirs: Item) -> Item:
    """One item that two customers turned out to share: as whoever heard of it last knows it, counts added up."""
    older, newer = sorted((mine, theirs), key=lambda item: item.updated_at_ms)
    return structs.replace(
        newer,
        opened_at_ms=min(older.opened_at_ms, newer.opened_at_ms),
        title=newer.title or older.title,
        group=newer.group or older.group,
        assignee=newer.assignee or older.assignee,
        due_at_ms=newer.due_at_ms or older.due_at_ms,
        attempts=older.attempts + newer.attempts,
        contacts=[*older.contacts, *newer.contacts][-KEEP_CONTACTS:],
        sla_missed=older.sla_missed or newer.sla_missed,
        reopened=max(older.reopened, newer.reopened),
        reassigned=max(older.reassigned, newer.reassigned),
    )


def repeated(context: Context, opening: Opening, policy: Policy) -> list[Fact]:
    """Mark openings that follow another of their kind within the recontact time.

    Of their kind: a case about an order is the first contact about it. A late arrival may mark its successor.
    """
    openings = context.openings
    at, kind = bisect_right(openings, opening.opened_at_ms, key=lambda o: o.opened_at_ms), _kind(opening.ref)
    last, following = (
        next((o for o in part if _kind(o.ref) == kind), None) for part in (reversed(openings[:at]), openings[at:])
    )
    openings.insert(at, opening)
    facts = []
    for before, after in pairwise(o for o in (last, opening, following) if o is not None):
        gap = after.opened_at_ms - before.opened_at_ms
        if gap <= policy.recontact_ms and not after.repeated:
            after.repeated = True
            earlier = context.items.get(before.ref)
            state = earlier.status if earlier is not None else "closed"
            evidence = tuple(earlier.contacts) if earlier is not None else ()
            facts.append(Fact("contact.repeated", after.ref, before.ref, state, float(gap), evidence))
    newest = openings[-1].opened_at_ms
    while len(openings) > 1 and (
        len(openings) > policy.keep_openings or newest - openings[0].opened_at_ms > 2 * policy.recontact_ms
    ):
        del openings[0]
    return facts


def _kind(ref: str) -> str:
    return ref.partition(":")[0]


def _status(item: Item, ref: str, seen: ItemChange, entry: Entry, facts: list[Fact]) -> None:
    before, after = item.status, seen.status
    if after is None or after == before:
        return
    item.status = after
    facts.append(Fact("item.status", item=ref, before=before, after=after))
    if after in UNRESOLVED:
        item.resolved_at_ms = None
        if before not in UNRESOLVED and seen.reopen_count is None:
            item.reopened += 1
            facts.append(Fact("item.reopened", item=ref, before=before, value=float(item.reopened)))
    elif before in UNRESOLVED:
        item.resolved_at_ms = entry.event_time_ms


def _handling(item: Item, ref: str, seen: ItemChange, entry: Entry, facts: list[Fact]) -> None:
    """Group and assignee, the later of which wins; a change of group is a handoff."""
    if seen.group is not None and seen.group != item.group:
        if item.group is not None:
            facts.append(Fact("handoff.group", item=ref, before=item.group, after=seen.group))
        item.group = seen.group
    item.assignee = seen.assignee or item.assignee
    item.title = seen.title or item.title
    item.due_at_ms = seen.due_at_ms or item.due_at_ms


def _totals(item: Item, ref: str, seen: ItemChange, facts: list[Fact]) -> None:
    """What only grows: a missed SLA, the desk's counts of reopenings and reassignments."""
    if seen.sla_missed and not item.sla_missed:
        item.sla_missed = True
        facts.append(Fact("item.sla_missed", item=ref, after=item.group))
    if seen.reopen_count is not None and seen.reopen_count > item.reopened:
        item.reopened = seen.reopen_count
        facts.append(Fact("item.reopened", item=ref, after=item.status, value=float(item.reopened)))
    if seen.reassign_count is not None and seen.reassign_count > item.reassigned:
        facts.append(Fact("item.reassigned", item=ref, before=str(item.reassigned), value=float(seen.reassign_count)))
        item.reassigned = seen.reassign_count


def _attempt(item: Item, ref: str, entry: Entry, contact: str, facts: list[Fact]) -> None:
    """Count a contact of the customer's about an unresolved item. Whoever opens it, the customer came first."""
    kinds = {fact.fact for fact in facts}
    acting = entry.acting()
    by_customer = acting == "customer" or (acting == "agent" and "item.opened" in kinds)
    if not by_customer or item.status not in UNRESOLVED or contact == item.last_contact:
        return
    item.last_contact = contact
    item.attempts += 1
    if item.attempts > 1 and "item.reopened" not in kinds:  # reopening it says that already
        earlier = tuple(item.contacts)
        facts.append(
            Fact("item.contacted_again", ref, after=entry.channel, value=float(item.attempts), evidence=earlier)
        )
    item.contacts = [*item.contacts, entry.id][-KEEP_CONTACTS:]


def forget(items: dict[str, Item], keep_closed: int) -> None:
    """Drop what was longest untouched: closed items beyond the limit, then, far beyond it, any item."""
    if len(items) <= keep_closed:
        return
    closed = sorted((item.updated_at_ms, ref) for ref, item in items.items() if item.status == "closed")
    for _, ref in closed[: max(0, len(closed) - keep_closed)]:
        del items[ref]
    if len(items) > 4 * keep_closed:
        rank = sorted((item.status in UNRESOLVED, item.updated_at_ms, ref) for ref, item in items.items())
        for _, _, ref in rank[: len(items) - 4 * keep_closed]:
            del items[ref]
