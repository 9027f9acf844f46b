"""Deciding whose a batch of events is, on the identity index that all resolve processes share.

Theory of operation. A pass decides every event in order with what is known of the index, in memory; then what it would
change is claimed in Redis. Where somebody else was first, the pass is made again with what stands there now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

import msgspec
from msgspec import Struct, structs

from segue.core import identity, seats
from segue.core.event import Event, Identifier
from segue.core.identity import Known, Root
from segue.core.interaction import happened_ms
from segue.core.lineage import Command, Merge
from segue.core.seats import Seats
from segue.store.identity import EVENT_AT, KEY_WIDTH, IdentityIndex, Note, Owner, entry_of, owner_of

_encode = msgspec.json.Encoder().encode
_decode_known = msgspec.json.Decoder(Known).decode
_decode_note = msgspec.json.Decoder(Note).decode


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
    devices: tuple[str, ...] = ()
    """The names of those identifiers that are a device's."""
    sat: tuple[str, ...] = ()
    """Devices at which its customer took the seat by this event."""

    @property
    def at_ms(self) -> int:
        """Event time, by our clock."""
        return happened_ms(self.event, self.received_at_ms)


class Order(Struct, gc=False):
    """An operator's command, and what came of it: a merge done or undone, or the reason why not."""

    command: Command
    at_ms: int
    outcome: Merge | str = ""

    @property
    def refs(self) -> list[str]:
        command = self.command
        return [command.identifier] if command.other is None else [command.identifier, command.other]


class Resolution:
    """Decides a batch of events in order, and claims what they link, until nobody else claimed it first."""

    def __init__(self, index: IdentityIndex, arrivals: list[Arrival], orders: list[Order]) -> None:
        self._index, self._arrivals, self._orders = index, arrivals, orders
        self._entries: dict[str, str] = {}
        self._event, self._at = "", 0
        self._records: dict[str, str | None] = {}
        """Customers' records as they stand in the index, as far as they were needed."""
        self._shared: dict[str, list[str]] = {}
        self._seats: dict[str, Seats] = {}
        self._restart()

    def _restart(self) -> None:
        """Forget what the last pass decided."""
        self._now: dict[str, Known] = {}
        self._born: dict[str, int] = {}
        self._new: set[str] = set()
        self._wanted: set[str] = set()
        self._unshared: set[str] = set()
        self._anchors: dict[str, str] = {}
        self._links: dict[str, str] = {}
        self._sat: dict[str, Seats] = {}

    def settle(self) -> None:
        """Decide every arrival and every order."""
        self._seats = self._index.seats(dict.fromkeys(ref for each in self._arrivals for ref in each.devices))
        self._arrivals = self._undecided()
        if not self._arrivals and not self._orders:
            return
        ordered = (ref for order in self._orders for ref in order.refs)
        self._entries = self._index.owners(chain((r for a in self._arrivals for r in a.refs), ordered))
        while True:
            self._decide()
            if self._wanted or self._unshared:
                self._records |= self._index.records(sorted(self._wanted))
                self._shared |= self._index.sharers(sorted(self._unshared))
                continue
            # A new customer's own identifier first: the others follow whoever wins it.
            if self._lost(self._anchors) or self._lost_records() or self._lost(self._links):
                continue
            self._note()
            return

    def _undecided(self) -> list[Arrival]:
        """Those that `_known` cannot decide, and who use a device of theirs: somebody may take the seat there."""
        undecided = [arrival for arrival in self._arrivals if not self._known(arrival)]
        moving = {ref for arrival in undecided for ref in arrival.devices}
        if not moving:
            return undecided
        return [each for each in self._arrivals if each.decision is None or not moving.isdisjoint(each.devices)]

    def _known(self, arrival: Arrival) -> bool:
        """Decide at once for the customer whose identifiers are all known: nearly every event.

        An entry never changes (a merge is said elsewhere), so no other event of the batch has a say. An event that
        claimed one of them itself, in an attempt that was not committed, has to link it again: not decided here.
        """
        key, event_id = "", arrival.event.id
        if self._seats and not self._seats.keys().isdisjoint(arrival.devices):
            return False
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
            sitter = partial(self._sitting, arrival.at_ms)
            decision = identity.decide(arrival.identifiers, owners, self._root, self._sharers, self._unite, sitter)
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
            self._seat(arrival, key, owners)
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
        """Who used an identifier beside its owner; what was not read yet is read before the next pass."""
        if ref not in self._shared:
            self._unshared.add(ref)
        return {self._root(key).key for key in self._shared.get(ref, ())}

    # --- devices

    def _sitting(self, at_ms: int, identifier: Identifier) -> str | None:
        return (
            seats.sitting(self._seats_at(identity.ref(identifier)), at_ms) if identity.is_device(identifier) else None
        )

    def _seats_at(self, device: str) -> Seats:
        return self._sat.get(device) or self._seats.get(device) or {}

    def _seat(self, arrival: Arrival, key: str, owners: dict[str, str]) -> None:
        """The customer takes the seat at the devices where another person sat; said again, if this very event did."""
        sat = []
        actor = arrival.event.data.actor
        if arrival.devices and (actor is None or actor.kind == "customer"):
            taken = arrival.at_ms, arrival.event.id
            for device in arrival.devices:
                found = self._seats_at(device)
                theirs = self._root(seats.sitting(found, arrival.at_ms) or owners[device])
                if identity.unlike(self._root(key).known, theirs.known):
                    found = self._sat[device] = seats.together(found, {key: taken})
                if found.get(key) == taken:
                    sat.append(device)
        arrival.sat = tuple(sat)

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
            return "unknown_customer"
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
        refused = identity.objection(one, two)
        if refused is not None:
            return refused
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
        self._index.sit(self._sat)
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
