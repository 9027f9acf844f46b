"""The records of `segue.identity`, and the index that they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from segue.core import identity
from segue.core.event import Identifier
from segue.core.identity import Known
from segue.core.lineage import Merge
from segue.core.seats import Seats, together
from segue.log.port import Record
from segue.store.identity import Batch, Note, Owner, entry_of

_encode = msgspec.json.Encoder().encode

REFILL = 5000
"""Links per round trip when the index is filled anew."""


class IdentityRecord(Struct, omit_defaults=True):
    """A record of `segue.identity`.

    `link`: an identifier belongs to a customer; keyed by `type:value`. `candidate`: it was used by a customer while it
    is another's, `other_customer_key`, and `reason` says why they were not merged; keyed by all three. `seat`: another
    person was named on a device than before, at the event time `at_ms`; keyed by device and customer. `merge` and
    `unmerge`: keyed by the absorbed customer, so that compaction keeps what holds. `refused`: an operator's command
    that could not be done, which has no customer.
    """

    kind: Literal["link", "candidate", "seat", "merge", "unmerge", "refused"]
    customer_key: str
    event_id: str
    """The event that said so, or the command."""
    at_ms: int
    identifier: Identifier | None = None
    other_customer_key: str | None = None
    reason: str | None = None
    merge: Merge | None = None
    born_ms: int = 0
    """When the customer was first seen."""


def committed(read: Callable[[], Iterable[Record]]) -> Iterator[Batch]:
    """What `segue.identity` says, for `IdentityIndex.refill`. `read` reads the topic.

    Two readings: the merges first, for they say whose records depend on each other.
    """
    merges, undone = _merges(read())
    related = {key for merge in (*merges.values(), *undone) for key in (merge.survivor, merge.absorbed)}
    links: dict[str, str] = {}
    records: dict[str, Known] = {}
    notes: dict[tuple[str, str], str] = {}
    seats: dict[str, Seats] = {}
    kept: dict[str, Known] = {key: Known() for key in related}
    for found in records_of(read()):
        key, identifier = found.customer_key, found.identifier
        if identifier is None:
            continue
        if found.kind == "candidate":
            note = Note(found.event_id, found.at_ms, found.reason or "")
            notes[identity.ref(identifier), key] = _encode(note).decode()
            continue
        if found.kind == "seat":
            ref = identity.ref(identifier)
            seats[ref] = together(seats.get(ref, {}), {key: (found.at_ms, found.event_id)})
            continue
        owner = Owner(key, found.born_ms or found.at_ms, found.at_ms, found.event_id)
        links[identity.ref(identifier)] = entry_of(owner)
        if identifier.type in identity.UNIQUE:
            known = kept[key] if key in kept else records.setdefault(key, Known())
            known.unique.setdefault(identifier.type, identifier.value)
        if len(links) >= REFILL:
            yield Batch(links, _raws(records), notes, seats)
            links, records, notes, seats = {}, {}, {}, {}
    for key in related:
        _placed(kept, merges, key)
    for merge, command_id in undone.items():
        _taken_out(kept, merges, merge, command_id)
    yield Batch(links, _raws(records | kept), notes, seats)


def adds_only(records: Iterable[Record]) -> bool:
    """Whether these records of `segue.identity` only add to an index, and change nothing that it has already."""
    for found in records_of(records):
        if found.merge is not None:
            return False
        named = found.kind == "link" and found.identifier is not None and found.identifier.type in identity.UNIQUE
        if named and found.born_ms not in (0, found.at_ms):  # a name for a customer who was there before
            return False
    return True


def records_of(records: Iterable[Record]) -> Iterator[IdentityRecord]:
    """What records of `segue.identity` say."""
    for record in records:
        raw = record.value()
        if raw is not None:
            yield msgspec.json.decode(raw, type=IdentityRecord)


def _merges(records: Iterable[Record]) -> tuple[dict[str, Merge], dict[Merge, str]]:
    """The merges that hold, by the absorbed; and those that were undone, with the command."""
    merges: dict[str, Merge] = {}
    undone: dict[Merge, str] = {}
    for found in records_of(records):
        if found.merge is None:
            continue
        if found.kind == "merge":
            merges[found.merge.absorbed] = found.merge
        else:
            merges.pop(found.merge.absorbed, None)
            undone[found.merge] = found.event_id
    return merges, undone


def _taken_out(kept: dict[str, Known], merges: dict[str, Merge], merge: Merge, command_id: str) -> None:
    """Keep a customer apart from whom it was taken out of, and from all who stand for that one."""
    key, above = merge.absorbed, merge.survivor
    mine = kept[key]
    if key not in merges:
        mine.freed, mine.by = merge, command_id
    while True:
        mine.apart = sorted({*mine.apart, above})
        kept[above].apart = sorted({*kept[above].apart, key})
        if above not in merges:
            return
        above = merges[above].survivor


def _placed(kept: dict[str, Known], merges: dict[str, Merge], key: str) -> None:
    """Add a customer to all who stand for it."""
    mine = dict(kept[key].unique)
    kept[key].into = merges.get(key)
    above = key
    while above in merges:
        above = merges[above].survivor
        kept[above].absorbed += 1
        for kind, value in mine.items():
            kept[above].unique.setdefault(kind, value)


def _raws(records: dict[str, Known]) -> dict[str, str]:
    return {key: _encode(known).decode() for key, known in records.items()}
