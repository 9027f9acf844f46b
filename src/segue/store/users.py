"""Who has used an identifier: nearly always one customer. Queries, as in `reader`.

A telephone of two, a tablet of a family: an identifier belongs to the first who used it, and of who else did the index
keeps a note with the reason why they are not one person. Whoever reads by such an identifier is told all of them:
whose context it takes is a choice, and not the store's. A unique identifier is a person's name; it is not asked about.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from segue.core.event import Identifier
from segue.core.identity import REASONS, REASONS_ZH, UNIQUE, Known, Root
from segue.core.items import UNRESOLVED
from segue.store.identity import MAX_SHARERS, Note, bucket, owner_of
from segue.store.keys import Layout
from segue.store.reader import CUSTOMER_KEY, Queries, Query

REMEMBERED = MAX_SHARERS + 1
"""Customers remembered for one identifier: the first who used it, and so many beside."""
FIRST = "first"
"""In the place of a reason: of the customer whom an identifier belongs to."""
WHY = {FIRST: {"en": "they used it first", "zh": "该标识最先由其使用"}} | {
    reason: {"en": words, "zh": REASONS_ZH[reason]} for reason, words in REASONS.items()
}

_USERS = files("segue.store").joinpath("users.lua").read_text()

_note = msgspec.json.Decoder(Note).decode
_known = msgspec.json.Decoder(Known).decode


class User(Struct, frozen=True):
    """A customer who has used an identifier: since when, by which event, and why they are not another of its users."""

    customer_key: str
    since_ms: int
    event_id: str
    reason: str


class Users(NamedTuple):
    """Who has used an identifier, whoever it belongs to first. Not `complete`: as many as are remembered
    (`REMEMBERED`), and others may have."""

    every: list[User]
    complete: bool = True

    @property
    def ambiguous(self) -> bool:
        return len(self.every) > 1 or not self.complete


class Choice(Struct, frozen=True):
    """One of several customers, with what helps to choose: no identifier, which would be another person's."""

    customer_key: str
    reason: str
    why: dict[str, str]
    """In `en` and `zh`."""
    since_ms: int
    event_id: str
    last_seen_ms: int
    channels: list[str]
    open_items: int


class _Item(Struct):
    status: str


class _Document(Struct):
    stream_time_ms: int = 0
    channels: dict[str, int] = {}
    items: dict[str, _Item] = {}


def alone(identifier: Identifier) -> bool:
    """Whether a checked identifier is one customer's by its nature."""
    return identifier.type == CUSTOMER_KEY or identifier.type in UNIQUE


def users(queries: Queries, identifier: Identifier) -> Query[Users]:
    """Who has used a checked identifier; merged customers are one. Nobody when nobody has."""
    if identifier.type == CUSTOMER_KEY:
        return Users([User(identifier.value, 0, "", FIRST)])
    layout = yield from queries.layout()
    ref = f"{identifier.type}:{identifier.value}"
    place = bucket(ref, layout.partitions)
    owner, sharers = layout.owner(place, ref), layout.sharers(place, ref)
    noted: list[bytes] = []
    if alone(identifier):
        (entry,) = yield [("GET", owner)]
    else:  # one command, because a pipeline of two costs as much again (`api.doors`)
        ((entry, noted),) = yield [("EVAL", _USERS, "2", owner, sharers)]
    if entry is None:
        return Users([])
    first = owner_of(entry.decode())
    found = [User(first.customer_key, first.since_ms, first.event_id, FIRST)]
    if noted:
        notes = sorted((_note(raw).at_ms, key.decode(), _note(raw)) for key, raw in _pairs(noted))
        found += [User(key, note.at_ms, note.event_id, note.reason) for _, key, note in notes]
        standing = yield from roots(layout, dict.fromkeys((user.customer_key for user in found), 0))
        each: dict[str, User] = {}
        for user in found:
            key = standing[user.customer_key].key
            each.setdefault(key, structs.replace(user, customer_key=key))
        found = list(each.values())
    return Users(found, complete=len(noted) < 2 * MAX_SHARERS)


def choices(queries: Queries, found: list[User]) -> Query[list[Choice]]:
    """What there is to choose from, most recently seen first."""
    told = []
    for user in found:
        view = yield from queries.view(user.customer_key)
        document = _Document() if view.context is None else msgspec.json.decode(view.context, type=_Document)
        unresolved = sum(item.status in UNRESOLVED for item in document.items.values())
        told.append(
            Choice(
                user.customer_key,
                user.reason,
                WHY[user.reason],
                user.since_ms,
                user.event_id,
                document.stream_time_ms,
                sorted(document.channels),
                unresolved,
            )
        )
    return sorted(told, key=lambda choice: -choice.last_seen_ms)


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def roots(layout: Layout, born_ms: dict[str, int]) -> Query[dict[str, Root]]:
    """Who stands for each of these customers, as resolve decided. By when they were first seen (ms)."""
    found: dict[str, Known] = {}
    asked = list(born_ms)
    while asked:
        (raws,) = yield [("MGET", *(layout.known(bucket(key, layout.partitions), key) for key in asked))]
        found |= {key: Known() if raw is None else _known(raw) for key, raw in zip(asked, raws, strict=True)}
        survivors = {known.into.survivor for known in found.values() if known.into is not None}
        asked = sorted(survivors - found.keys())
    return {key: _root(found, key, born) for key, born in born_ms.items()}


def _root(found: dict[str, Known], key: str, born_ms: int) -> Root:
    while (into := found[key].into) is not None:
        key, born_ms = into.survivor, into.elder_ms
    return Root(born_ms, key, found[key])
