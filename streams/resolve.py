"""resolve: `segue.events.*` to `segue.interactions`.

Checks each event, normalises its identifiers, decides whose it is (`segue.core.identity`), and re-keys it
by customer. What cannot be used goes to `segue.dead-letters`; every new link and every pair of customers
that one event named goes to `segue.identity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from segue.core import identity
from segue.core.event import MAX_PROPERTIES_BYTES, NO_PROPERTIES, Event, Identifier, Rejected, decode
from segue.core.interaction import Interaction, entry_of
from segue.engine import Shard
from segue.log.port import TP, Log, Output, Record
from segue.normalise import normalise
from segue.routing import NO_USABLE_IDENTIFIER
from segue.store.identity import KEY_WIDTH, IdentityIndex
from segue.store.shards import Fence
from segue.topics import EVENT_TOPICS, EVENTS, IDENTITY, INTERACTIONS

_encode = msgspec.json.Encoder().encode

REFILL = 5000
"""Links per round trip when the index is filled anew."""


class Arrival(Struct, gc=False):
    """An event that passed the checks, with its usable identifiers and their names (`type:value`)."""

    event: Event
    identifiers: tuple[Identifier, ...]
    refs: tuple[str, ...]
    received_at_ms: int
    decision: identity.Decision | None = None


@lru_cache(maxsize=50_000)
def _named(given: tuple[Identifier, ...], region: str | None) -> tuple[tuple[Identifier, ...], tuple[str, ...]]:
    """The usable identifiers of an event and their names. A customer's next event nearly always names the same."""
    identifiers = normalise(given, region)
    return identifiers, tuple(identity.ref(identifier) for identifier in identifiers)


class IdentityRecord(Struct, omit_defaults=True):
    """A record of `segue.identity`, keyed by `type:value`: a link, or a pair that may be one person."""

    kind: str
    identifier: Identifier
    customer_key: str
    event_id: str
    at_ms: int
    other_customer_key: str | None = None


class Resolve:
    """The processor. `region` reads phone numbers written without a country code."""

    name = "resolve"
    group = "segue.resolve"
    kind = "none"
    topics: Sequence[str] = EVENT_TOPICS

    def __init__(
        self, index: IdentityIndex, source: Log, region: str | None = None, interactions: str = INTERACTIONS
    ) -> None:
        self._index, self._log, self._region, self._interactions = index, source, region, interactions

    def shard_of(self, tp: TP) -> str:
        return f"{tp[0].removeprefix(EVENTS)}.{tp[1]}"

    def read(self, shard: Shard, records: list[Record]) -> list[tuple[Record, Arrival | Rejected]]:
        channel = shard.tp[0].removeprefix(EVENTS)
        return [(record, check(record, channel, self._region)) for record in records]

    def prepare(self, batch: list[tuple[Shard, list[tuple[Record, Arrival | Rejected]]]]) -> None:
        arrivals = [found for _, pairs in batch for _, found in pairs if isinstance(found, Arrival)]
        arrivals.sort(key=_order)
        Resolution(self._index, arrivals).settle()

    def apply(self, batch: list[tuple[Shard, list[tuple[Record, Arrival | Rejected]]]]) -> list[Output]:
        outputs: list[Output] = []
        arrivals: list[Arrival] = []
        for shard, decoded in batch:
            for record, found in decoded:
                if isinstance(found, Rejected):
                    outputs.append(shard.refuse(record, found, self.name))
                else:
                    shard.stats["accepted"] += 1
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
            self._index.refill(committed(self._log.read(IDENTITY)))


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
        entry=entry_of(event, arrival.received_at_ms, properties),
        identifiers=arrival.identifiers,
    )
    if decision.contested:
        interaction.contested = tuple(identifier.type for identifier, _ in decision.contested)
    yield Output(interactions, decision.customer_key.encode(), _encode(interaction))
    for identifier in decision.link:
        yield _identity(arrival, "link", identifier, decision.customer_key)
    for identifier, owner in decision.contested:
        yield _identity(arrival, "candidate", identifier, decision.customer_key, owner)


def _identity(arrival: Arrival, kind: str, identifier: Identifier, key: str, other: str | None = None) -> Output:
    record = IdentityRecord(kind, identifier, key, arrival.event.id, arrival.received_at_ms, other)
    name = identity.ref(identifier)
    # A candidate has a key of its own, so that compaction does not let it replace the link.
    return Output(IDENTITY, (name if other is None else f"{name}|{key}|{other}").encode(), _encode(record))


class Resolution:
    """Decides a batch of events in order, and claims what they link, until nobody else claimed it first."""

    def __init__(self, index: IdentityIndex, arrivals: list[Arrival]) -> None:
        self._index, self._arrivals = index, arrivals
        self._entries: dict[str, str] = {}
        self._unique: dict[tuple[str, str], str] = {}

    def settle(self) -> None:
        """Set `decision` on every arrival."""
        self._arrivals = [arrival for arrival in self._arrivals if not self._known(arrival)]
        if not self._arrivals:
            return
        self._entries = self._index.owners(ref for arrival in self._arrivals for ref in arrival.refs)
        while True:
            anchors, links, uniques = self._decide()
            # A new customer's own identifier first: the others follow whoever wins it.
            if self._lost(anchors) or self._lost_unique(uniques) or self._lost(links):
                continue
            return

    def _known(self, arrival: Arrival) -> bool:
        """Decide at once for the customer whose identifiers are all known: nearly every event.

        Ownership never changes, so no other event of the batch has a say. An event that claimed one of them
        itself, in an attempt that was not committed, has to link it again and is not decided here.
        """
        key, event_id = "", arrival.event.id
        for ref in arrival.refs:
            entry = self._index.cached(ref)
            if entry is None or entry[KEY_WIDTH:] == event_id:
                return False
            if not key:
                key = entry[:KEY_WIDTH]
            elif entry[:KEY_WIDTH] != key:
                return False
        arrival.decision = identity.Decision(key, ())
        return True

    def _decide(self) -> tuple[dict[str, str], dict[str, str], dict[tuple[str, str], str]]:
        entries = dict(self._entries)
        owners = {ref: entry[:KEY_WIDTH] for ref, entry in entries.items()}
        unique = self._uniques(owners)
        anchors: dict[str, str] = {}
        links: dict[str, str] = {}
        uniques: dict[tuple[str, str], str] = {}
        for arrival in self._arrivals:
            decision = identity.decide(arrival.identifiers, owners, unique)
            key, event_id = decision.customer_key, arrival.event.id
            for identifier in decision.link:
                ref = identity.ref(identifier)
                owners[ref] = key
                entries[ref] = entry = key + event_id
                (anchors if identity.new_key(identifier) == key else links)[ref] = entry
                if identifier.type in identity.UNIQUE:
                    pair = (key, identifier.type)
                    if unique.get(pair) is None:
                        unique[pair] = uniques[pair] = identifier.value
            arrival.decision = self._as_claimed(arrival, decision, entries)
        return anchors, links, uniques

    def _as_claimed(self, arrival: Arrival, decision: identity.Decision, entries: dict[str, str]) -> identity.Decision:
        """Link again what this very event claimed in an attempt that was not committed."""
        mine = decision.customer_key + arrival.event.id
        link = tuple(i for i, ref in zip(arrival.identifiers, arrival.refs, strict=True) if entries.get(ref) == mine)
        if link == decision.link:
            return decision
        return identity.Decision(decision.customer_key, link, decision.contested)

    def _uniques(self, owners: dict[str, str]) -> dict[tuple[str, str], str]:
        """The unique identifiers of customers that a new unique identifier might join."""
        wanted = {
            (owners[ref], identifier.type)
            for arrival in self._arrivals
            for identifier in arrival.identifiers
            if identifier.type in identity.UNIQUE and identity.ref(identifier) not in owners
            for other in arrival.identifiers
            if (ref := identity.ref(other)) in owners
        } - self._unique.keys()
        self._unique |= self._index.uniques(sorted(wanted))
        return dict(self._unique)

    def _lost(self, claims: dict[str, str]) -> bool:
        """Claim; whether somebody else had claimed one of them first."""
        new = {ref: entry for ref, entry in claims.items() if ref not in self._entries}
        stand = self._index.claim(new)
        self._entries |= stand
        return any(stand[ref][:KEY_WIDTH] != entry[:KEY_WIDTH] for ref, entry in new.items())

    def _lost_unique(self, claims: dict[tuple[str, str], str]) -> bool:
        new = {pair: value for pair, value in claims.items() if pair not in self._unique}
        stand = self._index.claim_unique(new)
        self._unique |= stand
        return any(stand[pair] != value for pair, value in new.items())


def committed(records: Iterable[Record]) -> Iterator[tuple[dict[str, str], dict[tuple[str, str], str]]]:
    """The links among records of `segue.identity` for `IdentityIndex.refill`, some thousands at a time."""
    links: dict[str, str] = {}
    uniques: dict[tuple[str, str], str] = {}
    for record in records:
        raw = record.value()
        if raw is None:
            continue
        found = msgspec.json.decode(raw, type=IdentityRecord)
        if found.kind != "link":
            continue
        links[identity.ref(found.identifier)] = found.customer_key + found.event_id
        if found.identifier.type in identity.UNIQUE:
            uniques.setdefault((found.customer_key, found.identifier.type), found.identifier.value)
        if len(links) >= REFILL:
            yield links, uniques
            links, uniques = {}, {}
    yield links, uniques
