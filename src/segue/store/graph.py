"""Who is linked to whom, by which event, since when; and what an undone merge would move. Queries, as in `reader`."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from segue.core.event import Identifier
from segue.core.family import part_of
from segue.core.identity import Root
from segue.core.lineage import Kin, Merge, below
from segue.store.identity import bucket, owner_of
from segue.store.keys import Layout
from segue.store.reader import Queries, Query
from segue.store.users import WHY, roots


class Link(Struct, frozen=True, omit_defaults=True):
    """An identifier, the customer it belongs to (before any merge), and the event that first named both."""

    identifier: str
    customer_key: str
    since_ms: int
    event_id: str


class Candidate(Struct, frozen=True):
    """Somebody who used an identifier of this customer's and was not merged with them, and why."""

    identifier: str
    customer_key: str
    since_ms: int
    event_id: str
    reason: str
    why: dict[str, str]
    """In `en` and `zh`."""


class Graph(Struct, frozen=True):
    """What is known around one identifier. `belongs_to` is its customer before any merge; times are ms since 1970."""

    identifier: str
    belongs_to: str
    customer_key: str
    links: list[Link]
    merges: list[Merge]
    candidates: list[Candidate]
    apart: list[str]
    """Customers who were taken out of this one, or this one of them: no event merges them again."""


class _Known(Struct):
    type: str
    value: str


class _Document(Struct):
    customer_key: str
    kin: Kin | None = None
    identifiers: list[_Known] = []
    channels: dict[str, int] = {}
    items: dict[str, Any] = {}


class _Note(Struct):
    event_id: str
    at_ms: int
    reason: str


def graph(queries: Queries, identifier: Identifier) -> Query[Graph | None]:
    """The graph around a checked identifier; None when nobody has used it."""
    layout = yield from queries.layout()
    ref = f"{identifier.type}:{identifier.value}"
    (entry,) = yield [("GET", _owner(layout, ref))]
    if entry is None:
        return None
    belongs_to = owner_of(entry.decode()).customer_key
    view = yield from queries.view(belongs_to)
    document = _Document(belongs_to) if view.context is None else msgspec.json.decode(view.context, type=_Document)
    refs = list(dict.fromkeys([ref, *(f"{each.type}:{each.value}" for each in document.identifiers)]))
    found = yield [
        ("MGET", *(_owner(layout, each) for each in refs)),
        *(("HGETALL", _sharers(layout, r)) for r in refs),
    ]
    entries, notes = found[0], found[1:]
    owners = [(each, owner_of(raw.decode())) for each, raw in zip(refs, entries, strict=True) if raw is not None]
    kin = document.kin or Kin()
    standing = yield from roots(layout, {belongs_to: 0})
    noted = [(each, *pair) for each, held in zip(refs, notes, strict=True) for pair in sorted(held.items())]
    return Graph(
        ref,
        belongs_to,
        document.customer_key,
        [Link(each, owner.customer_key, owner.since_ms, owner.event_id) for each, owner in owners],
        kin.absorbed,
        [_candidate(*note) for note in noted],
        [key for key in standing[belongs_to].known.apart if key not in (document.customer_key, *kin.keys)],
    )


def standing(queries: Queries, identifiers: list[Identifier]) -> Query[list[Root | None]]:
    """Who stands for the customers of checked identifiers, as resolve decided; None where nobody has used one."""
    layout = yield from queries.layout()
    (raws,) = yield [("MGET", *(_owner(layout, f"{each.type}:{each.value}") for each in identifiers))]
    owners = [None if raw is None else owner_of(raw.decode()) for raw in raws]
    found = yield from roots(layout, {owner.customer_key: owner.born_ms for owner in owners if owner is not None})
    return [None if owner is None else found[owner.customer_key] for owner in owners]


def leaving(queries: Queries, found: Graph) -> Query[dict[str, Any] | None]:
    """What would leave with the identifier's customer if its merge were undone; None when there is none to undo."""
    merged = next((merge for merge in found.merges if merge.absorbed == found.belongs_to), None)
    if merged is None:
        return None
    keys = [found.belongs_to, *(merge.absorbed for merge in below(found.merges, found.belongs_to))]
    layout = yield from queries.layout()
    shard = layout.context_shard(found.customer_key)
    names = [layout.document(shard, "ctx", part_of(found.customer_key, key)) for key in keys]
    (raws,) = yield [("MGET", *names)]
    parts = [msgspec.json.decode(raw, type=_Document) for raw in raws if raw is not None]
    return {
        "from": found.customer_key,
        "customers": keys,
        "identifiers": sorted({f"{each.type}:{each.value}" for part in parts for each in part.identifiers}),
        "interactions": sum(sum(part.channels.values()) for part in parts),
        "items": sorted({ref for part in parts for ref in part.items}),
    }


def _candidate(ref: str, key: bytes, raw: bytes) -> Candidate:
    note = msgspec.json.decode(raw, type=_Note)
    return Candidate(ref, key.decode(), note.at_ms, note.event_id, note.reason, WHY[note.reason])


def _owner(layout: Layout, ref: str) -> str:
    return layout.owner(bucket(ref, layout.partitions), ref)


def _sharers(layout: Layout, ref: str) -> str:
    return layout.sharers(bucket(ref, layout.partitions), ref)
