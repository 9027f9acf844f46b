"""resolve: `segue.events.*` to `segue.interactions`.

Checks each event, normalises its identifiers, decides whose it is (`segue.core.identity`), and re-keys it
by customer. What cannot be used goes to `segue.dead-letters`; every new link and every pair of customers
that one event named goes to `segue.identity`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

import msgspec
from msgspec import Struct, structs

from segue.core import identity
from segue.core.event import MAX_PROPERTIES_BYTES, NO_PROPERTIES, Event, Identifier, Rejected, decode
from segue.core.identity import Known, Root
from segue.core.interaction import Interaction
from segue.core.interaction import entry_of as timeline_entry
from segue.core.lineage import Command, Merge, Transfer
from segue.engine import Shard
from segue.log.port import TP, Log, Output, Record
from segue.normalise import normalise
from segue.routing import NO_USABLE_IDENTIFIER
from segue.store.identity import EVENT_AT, KEY_WIDTH, Batch, IdentityIndex, Owner, entry_of, owner_of
from segue.store.shards import Fence
from segue.topics import COMMANDS, EVENT_TOPICS, EVENTS, IDENTITY, INTERACTIONS

_encode = msgspec.json.Encoder().encode
_decode_command = msgspec.json.Decoder(Command).decode
_decode_known = msgspec.json.Decoder(Known).decode

REFILL = 5000
"""Links per round trip when the index is filled anew."""


class Arrival(Struct, gc=False):
    """An event that passed the checks, with its usable identifiers and their names (`type:value`)."""

    event: Event
    identifiers: tuple[Identifier, ...]
    refs: tuple[str, ...]
    received_at_ms: int
    decision: identity.Decision | None = None
    born_ms: int = 0
    """When the customer it goes to was first seen."""
    merges: tuple[Merge, ...] = ()
    noted: tuple[bool, ...] = ()
    """Of each contested identifier, whether this is the event that noted it."""


class Order(Struct, gc=False):
    """An operator's command, and what came of it: a merge done or undone, or the reason why not."""

    command: Command
    at_ms: int
    outcome: Merge | str = ""

    @property
    def refs(self) -> list[str]:
        command = self.command
        return [command.identifier] if command.other is None else [command.identifier, command.other]


Found = Arrival | Order | Rejected


@lru_cache(maxsize=50_000)
def _named(given: tuple[Identifier, ...], region: str | None) -> tuple[tuple[Identifier, ...], tuple[str, ...]]:
    """The usable identifiers of an event and their names. A customer's next event nearly always names the same."""
    identifiers = normalise(given, region)
    return identifiers, tuple(identity.ref(identifier) for identifier in identifiers)


class IdentityRecord(Struct, omit_defaults=True):
    """A record of `segue.identity`.

    `link`: an identifier belongs to a customer; keyed by `type:value`. `candidate`: it was used by a customer while it
    is another's, `other_customer_key`, and `reason` says why they were not merged; keyed by all three. `merge` and
    `unmerge`: keyed by the absorbed customer, so that compaction keeps what holds. `refused`: an operator's command
    that could not be done, which has no customer.
    """

    kind: Literal["link", "candidate", "merge", "unmerge", "refused"]
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


class Resolve:
    """The processor. `region` reads phone numbers written without a country code."""

    name = "resolve"
    group = "segue.resolve"
    kind = "none"
    topics: Sequence[str] = (*EVENT_TOPICS, COMMANDS)

    def __init__(
        self, index: IdentityIndex, source: Log, region: str | None = None, interactions: str = INTERACTIONS
    ) -> None:
        self._index, self._log, self._region, self._interactions = index, source, region, interactions

    def shard_of(self, tp: TP) -> str:
        return f"{tp[0].removeprefix(EVENTS)}.{tp[1]}"

    def read(self, shard: Shard, records: list[Record]) -> list[tuple[Record, Found]]:
        if shard.tp[0] == COMMANDS:
            return [(record, _order_given(record)) for record in records]
        channel = shard.tp[0].removeprefix(EVENTS)
        return [(record, check(record, channel, self._region)) for record in records]

    def prepare(self, batch: list[tuple[Shard, list[tuple[Record, Found]]]]) -> None:
        batch = [(shard, pairs) for shard, pairs in batch if not _replayed(shard, pairs)]
        arrivals = [found for _, pairs in batch for _, found in pairs if isinstance(found, Arrival)]
        arrivals.sort(key=_order)
        orders = [found for _, pairs in batch for _, found in pairs if isinstance(found, Order)]
        Resolution(self._index, arrivals, orders).settle()

    def apply(self, batch: list[tuple[Shard, list[tuple[Record, Found]]]]) -> list[Output]:
        outputs: list[Output] = []
        arrivals: list[Arrival] = []
        for shard, decoded in batch:
            replayed = _replayed(shard, decoded)
            for record, found in decoded:
                if isinstance(found, Rejected):
                    outputs.append(shard.refuse(record, found, self.name))
                elif isinstance(found, Order):
                    outputs += () if replayed else _done(found, self._interactions)
                else:
                    shard.stats["accepted"] += 1
                    if not replayed:
                        arrivals.append(found)
        arrivals.sort(key=_order)
        for arrival in arrivals:
            outputs += _emit(arrival, self._interactions)
        return outputs

    def due(self, shards: list[Shard], now_ms: int) -> list[Output]:
        return []

    def encode(self, document: Any) -> bytes:
        raise NotImplementedError("resolve keeps no documents")

    def recover(self, shard: Shard, found: Fence | None) -> None:
        """When Redis may have lost links, fill the index from the log before going on."""
        self._index.forget()
        if not self._index.complete():
            self._index.refill(committed(lambda: self._log.read(IDENTITY)))


def _replayed(shard: Shard, pairs: list[tuple[Record, Found]]) -> bool:
    """Whether these were decided and committed before. They are not decided again: the index knows what came later."""
    return bool(pairs) and pairs[0][0].offset() < shard.emit_from


def check(record: Record, channel: str, region: str | None) -> Arrival | Rejected:
    """Whether a record of a channel's topic is an event that can be used."""
    raw = record.value()
    if raw is None:
        return Rejected("tombstone", "$", "an event topic takes events only; to erase a customer use the API")
    if record.key() is None:
        return Rejected("null_key", "key", "key the record by the best identifier known, so that order holds")
    event = decode(raw)
    if isinstance(event, Rejected):
        return event
    if event.channel != channel:
        return Rejected("wrong_topic", "$.channel", f"publish {event.channel} events to {EVENTS}{event.channel}")
    identifiers, refs = _named(event.data.identifiers, region)
    if not identifiers:
        return NO_USABLE_IDENTIFIER
    return Arrival(event, identifiers, refs, record.timestamp()[1])


def _order(arrival: Arrival) -> tuple[int, datetime]:
    """As received; what was received in the same millisecond, by event time. The sort keeps partition order."""
    return arrival.received_at_ms, arrival.event.time


def _emit(arrival: Arrival, interactions: str) -> Iterable[Output]:
    event, decision = arrival.event, arrival.decision
    assert decision is not None
    properties = event.data.properties
    if properties and len(bytes(properties)) > MAX_PROPERTIES_BYTES:
        properties = NO_PROPERTIES
    interaction = Interaction(
        customer_key=decision.customer_key,
        entry=timeline_entry(event, arrival.received_at_ms, properties),
        identifiers=arrival.identifiers,
    )
    if decision.contested:
        interaction.contested = tuple(identifier.type for identifier, _, _ in decision.contested)
    yield Output(interactions, decision.customer_key.encode(), _encode(interaction))
    for identifier in decision.link:
        yield _linked(arrival, identifier, decision.customer_key)
    for merge in arrival.merges:
        yield from _merging(merge, arrival.received_at_ms, interactions)
    for (identifier, owner, reason), first in zip(decision.contested, arrival.noted, strict=False):
        if first:
            yield _candidate(arrival, identifier, decision.customer_key, owner, reason)


def _linked(arrival: Arrival, identifier: Identifier, key: str) -> Output:
    at = arrival.received_at_ms
    record = IdentityRecord("link", key, arrival.event.id, at, identifier, born_ms=arrival.born_ms)
    return Output(IDENTITY, identity.ref(identifier).encode(), _encode(record))


def _candidate(arrival: Arrival, identifier: Identifier, key: str, owner: str, reason: str) -> Output:
    record = IdentityRecord("candidate", key, arrival.event.id, arrival.received_at_ms, identifier, owner, reason)
    return Output(IDENTITY, f"{identity.ref(identifier)}|{key}|{owner}".encode(), _encode(record))


def _merging(merge: Merge, at_ms: int, interactions: str) -> Iterator[Output]:
    """The request to the absorbed customer's owner, and the record."""
    key = merge.absorbed.encode()
    yield Output(interactions, key, _encode(Transfer(merge.absorbed, "merge", merge)))
    record = IdentityRecord(
        "merge", merge.survivor, merge.event_id, at_ms, other_customer_key=merge.absorbed, merge=merge
    )
    yield Output(IDENTITY, b"merge|" + key, _encode(record))


def _order_given(record: Record) -> Order | Rejected:
    try:
        command = _decode_command(record.value() or b"")
    except msgspec.DecodeError as error:
        return Rejected("not_a_command", "$", f"{error}; use `segue identity` or the API")
    return Order(command, record.timestamp()[1])


def _done(order: Order, interactions: str) -> Iterator[Output]:
    """What an operator's command comes to."""
    command, outcome = order.command, order.outcome
    if isinstance(outcome, Merge):
        if command.action == "merge":
            yield from _merging(outcome, order.at_ms, interactions)
            return
        key, survivor = outcome.absorbed, outcome.survivor
        transfer = Transfer(key, "unmerge", outcome, command_id=command.command_id)
        yield Output(interactions, key.encode(), _encode(transfer))
        record = IdentityRecord(
            "unmerge", survivor, command.command_id, order.at_ms, other_customer_key=key, merge=outcome
        )
        yield Output(IDENTITY, f"merge|{key}".encode(), _encode(record))
        return
    record = IdentityRecord("refused", "", command.command_id, order.at_ms, reason=outcome)
    yield Output(IDENTITY, f"command|{command.command_id}".encode(), _encode(record))


class Note(Struct, frozen=True):
    """Why a customer who used another's identifier is not that other: a value of the index' hash of sharers."""

    event_id: str
    at_ms: int
    reason: str


_decode_note = msgspec.json.Decoder(Note).decode


class Resolution:
    """Decides a batch of events in order, and claims what they link, until nobody else claimed it first."""

    def __init__(self, index: IdentityIndex, arrivals: list[Arrival], orders: list[Order]) -> None:
        self._index, self._arrivals, self._orders = index, arrivals, orders
        self._entries: dict[str, str] = {}
        self._event, self._at = "", 0
        self._records: dict[str, str | None] = {}
        """Customers' records as they stand in the index, as far as they were needed."""
        self._restart()

    def _restart(self) -> None:
        """Forget what the last pass decided."""
        self._now: dict[str, Known] = {}
        self._born: dict[str, int] = {}
        self._new: set[str] = set()
        self._wanted: set[str] = set()
        self._anchors: dict[str, str] = {}
        self._links: dict[str, str] = {}

    def settle(self) -> None:
        """Decide every arrival and every order."""
        self._arrivals = [arrival for arrival in self._arrivals if not self._known(arrival)]
        if not self._arrivals and not self._orders:
            return
        ordered = (ref for order in self._orders for ref in order.refs)
        self._entries = self._index.owners(chain((r for a in self._arrivals for r in a.refs), ordered))
        while True:
            self._decide()
            if self._wanted:
                self._records |= self._index.records(sorted(self._wanted))
                continue
            # A new customer's own identifier first: the others follow whoever wins it.
            if self._lost(self._anchors) or self._lost_records() or self._lost(self._links):
                continue
            self._note()
            return

    def _known(self, arrival: Arrival) -> bool:
        """Decide at once for the customer whose identifiers are all known: nearly every event.

        Ownership never changes, so no other event of the batch has a say. An event that claimed one of them
        itself, in an attempt that was not committed, has to link it again and is not decided here.
        """
        key, event_id = "", arrival.event.id
        for ref in arrival.refs:
            entry = self._index.cached(ref)
            if entry is None or entry[EVENT_AT:] == event_id:
                return False
            if not key:
                key = entry[:KEY_WIDTH]
            elif entry[:KEY_WIDTH] != key:
                return False
        arrival.decision = identity.Decision(key, ())
        return True

    def _decide(self) -> None:
        self._restart()
        entries = dict(self._entries)
        owners = {ref: entry[:KEY_WIDTH] for ref, entry in entries.items()}
        for arrival in self._arrivals:
            self._learn_ages(arrival.refs, entries)
            self._event, self._at = arrival.event.id, arrival.received_at_ms
            decision = identity.decide(arrival.identifiers, owners, self._root, self._sharers, self._unite)
            key = decision.customer_key
            if key not in self._born:
                self._born[key] = arrival.received_at_ms
                self._new.add(key)
            arrival.born_ms = self._born[key]
            for identifier in decision.link:
                ref = identity.ref(identifier)
                owners[ref] = key
                entry = entry_of(Owner(key, arrival.born_ms, arrival.received_at_ms, arrival.event.id))
                entries[ref] = entry
                (self._anchors if identity.new_key(identifier) == key else self._links)[ref] = entry
                if identifier.type in identity.UNIQUE:
                    self._named(key, identifier)
            self._as_claimed(arrival, decision, entries, owners)
        for order in self._orders:
            self._learn_ages(order.refs, entries)
            order.outcome = self._obey(order, owners)

    def _learn_ages(self, refs: Iterable[str], entries: dict[str, str]) -> None:
        for ref in refs:
            if ref in entries:
                owner = owner_of(entries[ref])
                self._born[owner.customer_key] = owner.born_ms

    def _sharers(self, ref: str) -> set[str]:
        return {self._root(key).key for key in self._index.sharers(ref)}

    def _as_claimed(
        self, arrival: Arrival, decision: identity.Decision, entries: dict[str, str], owners: dict[str, str]
    ) -> None:
        """Say again what this very event claimed in an attempt that was not committed."""
        key, event_id = decision.customer_key, arrival.event.id
        pairs = [(i, entries.get(ref)) for i, ref in zip(arrival.identifiers, arrival.refs, strict=True)]
        link = tuple(i for i, entry in pairs if entry and entry[:KEY_WIDTH] == key and entry[EVENT_AT:] == event_id)
        arrival.decision = identity.Decision(key, link, decision.contested)
        named = {owners[ref] for ref in arrival.refs}
        if len(named) > 1:
            merges = (known.into for each in sorted(named) for known in self._line(each))
            arrival.merges = tuple(dict.fromkeys(m for m in merges if m is not None and m.event_id == event_id))

    # --- customers' records

    def _look(self, key: str) -> Known:
        """A customer's record as this pass has it; one not read yet is read before the next pass."""
        if key in self._now:
            return self._now[key]
        if key not in self._records:
            if key not in self._new:
                self._wanted.add(key)
            return Known()
        raw = self._records[key]
        return Known() if raw is None else _decode_known(raw)

    def _line(self, key: str) -> Iterator[Known]:
        """A customer's record and those of whoever stands for it, one after another."""
        known = self._look(key)
        yield known
        while known.into is not None:
            known = self._look(known.into.survivor)
            yield known

    def _root(self, key: str) -> Root:
        known, born = self._look(key), self._born.get(key, self._at)  # unknown: it is new
        while known.into is not None:
            key, born = known.into.survivor, known.into.elder_ms
            known = self._look(key)
        return Root(born, key, known)

    def _named(self, key: str, identifier: Identifier) -> None:
        """A unique identifier is the name of its customer, and of all who stand for that one."""
        above: str | None = key
        while above is not None:
            known = self._look(above)
            if identifier.type not in known.unique:
                unique = known.unique | {identifier.type: identifier.value}
                self._now[above] = structs.replace(known, unique=unique)
            above = known.into.survivor if known.into is not None else None

    def _unite(self, one: Root, other: Root, leading: Identifier, second: Identifier) -> None:
        elder, younger = identity.by_age(one, other)
        level = leading.level if second.level == "verified" else second.level
        reason = f"{leading.type} with {second.type}"
        merge = Merge(elder.key, younger.key, self._event, self._at, reason, level, elder_ms=elder.born_ms)
        self._now |= identity.united(elder, younger, merge)

    def _obey(self, order: Order, owners: dict[str, str]) -> Merge | str:
        """Do what an operator asks for; what this very command did in an attempt that was not committed counts."""
        if any(ref not in owners for ref in order.refs):
            return "unknown_identifier"
        keys = [owners[ref] for ref in order.refs]
        act = self._unmerged if order.command.action == "unmerge" else self._merged
        return act(order, keys)

    def _unmerged(self, order: Order, keys: list[str]) -> Merge | str:
        key, known = keys[0], self._look(keys[0])
        command_id = order.command.command_id
        if known.by == command_id and known.freed is not None:
            return known.freed
        if known.into is None:
            return "not_merged"
        line = [key]
        while (into := self._look(line[-1]).into) is not None:
            line.append(into.survivor)
        self._now |= identity.divided(key, {each: self._look(each) for each in line}, command_id)
        return known.into

    def _merged(self, order: Order, keys: list[str]) -> Merge | str:
        command_id = order.command.command_id
        for known in (known for key in keys for known in self._line(key)):
            if known.into is not None and known.into.event_id == command_id:
                return known.into
        one, two = self._root(keys[0]), self._root(keys[-1])
        if one.key == two.key:
            return "the_same"
        if identity.unlike(one.known, two.known):
            return "another_person"
        elder, younger = identity.by_age(one, two)
        merge = Merge(elder.key, younger.key, command_id, order.at_ms, "operator", "verified", elder_ms=elder.born_ms)
        self._now |= identity.united(elder, younger, merge)
        return merge

    # --- claiming

    def _lost(self, claims: dict[str, str]) -> bool:
        """Claim; whether somebody else had claimed one of them first."""
        new = {ref: entry for ref, entry in claims.items() if ref not in self._entries}
        stand = self._index.claim(new)
        self._entries |= stand
        return any(stand[ref][:KEY_WIDTH] != entry[:KEY_WIDTH] for ref, entry in new.items())

    def _lost_records(self) -> bool:
        """Write the records that changed, survivors first; whether somebody else had changed one of them."""
        changes = {}
        for key, known in sorted(self._now.items(), key=lambda item: item[1].into is not None):
            seen, new = self._records.get(key), _encode(known).decode()
            if seen != new:
                changes[key] = (seen, new)
        lost = self._index.replace(changes)
        self._records |= {key: new for key, (_, new) in changes.items()} | lost
        return any(stands is None or _decode_known(stands) != self._now[key] for key, stands in lost.items())

    def _note(self) -> None:
        """Note who used whose identifiers; each pair is said in the log once."""
        notes: dict[tuple[str, str], str] = {}
        for arrival in self._arrivals:
            decision = arrival.decision
            assert decision is not None
            for identifier, _, reason in decision.contested:
                pair = identity.ref(identifier), decision.customer_key
                notes.setdefault(pair, _encode(Note(arrival.event.id, arrival.received_at_ms, reason)).decode())
        if not notes:
            return
        stand = {pair: _decode_note(note).event_id if note else "" for pair, note in self._index.share(notes).items()}
        for arrival in self._arrivals:
            decision = arrival.decision
            assert decision is not None
            arrival.noted = tuple(
                stand[identity.ref(identifier), decision.customer_key] == arrival.event.id
                for identifier, _, _ in decision.contested
            )


def committed(read: Callable[[], Iterable[Record]]) -> Iterator[Batch]:
    """What `segue.identity` says, for `IdentityIndex.refill`. `read` reads the topic.

    Two readings: the merges first, for they say whose records depend on each other.
    """
    merges, undone = _merges(read())
    related = {key for merge in (*merges.values(), *undone) for key in (merge.survivor, merge.absorbed)}
    links: dict[str, str] = {}
    records: dict[str, Known] = {}
    notes: dict[tuple[str, str], str] = {}
    kept: dict[str, Known] = {key: Known() for key in related}
    for found in _identity_records(read()):
        key, identifier = found.customer_key, found.identifier
        if identifier is None:
            continue
        if found.kind == "candidate":
            note = Note(found.event_id, found.at_ms, found.reason or "")
            notes[identity.ref(identifier), key] = _encode(note).decode()
            continue
        owner = Owner(key, found.born_ms or found.at_ms, found.at_ms, found.event_id)
        links[identity.ref(identifier)] = entry_of(owner)
        if identifier.type in identity.UNIQUE:
            known = kept[key] if key in kept else records.setdefault(key, Known())
            known.unique.setdefault(identifier.type, identifier.value)
        if len(links) >= REFILL:
            yield links, _raws(records), notes
            links, records, notes = {}, {}, {}
    for key in related:
        _placed(kept, merges, key)
    for merge, command_id in undone.items():
        _taken_out(kept, merges, merge, command_id)
    yield links, _raws(records | kept), notes


def adds_only(records: Iterable[Record]) -> bool:
    """Whether these records of `segue.identity` only add to an index, and change nothing that it has already."""
    for found in _identity_records(records):
        if found.merge is not None:
            return False
        named = found.kind == "link" and found.identifier is not None and found.identifier.type in identity.UNIQUE
        if named and found.born_ms not in (0, found.at_ms):  # a name for a customer who was there before
            return False
    return True


def _identity_records(records: Iterable[Record]) -> Iterator[IdentityRecord]:
    for record in records:
        raw = record.value()
        if raw is not None:
            yield msgspec.json.decode(raw, type=IdentityRecord)


def _merges(records: Iterable[Record]) -> tuple[dict[str, Merge], dict[Merge, str]]:
    """The merges that hold, by the absorbed; and those that were undone, with the command."""
    merges: dict[str, Merge] = {}
    undone: dict[Merge, str] = {}
    for found in _identity_records(records):
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
