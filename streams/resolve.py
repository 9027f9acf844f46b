"""resolve: `segue.events.*` to `segue.interactions`.

Checks each event, normalises its identifiers, decides whose it is (`segue.core.identity`), and re-keys it
by customer. What cannot be used goes to `segue.dead-letters`; every new link and every pair of customers
that one event named goes to `segue.identity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from segue.core import identity
from segue.core.event import MAX_PROPERTIES_BYTES, NO_PROPERTIES, Identifier, Rejected, decode
from segue.core.interaction import Interaction
from segue.core.interaction import entry_of as timeline_entry
from segue.core.lineage import Command, Merge, Transfer
from segue.identity_records import IdentityRecord, committed
from segue.log.port import TP, Log, Output, Record
from segue.normalise import normalise
from segue.processor import Shard
from segue.resolution import Arrival, Order, Resolution
from segue.routing import unusable
from segue.store.identity import IdentityIndex
from segue.store.shards import Encoded, Fence
from segue.topics import COMMANDS, EVENT_TOPICS, EVENTS, IDENTITY, INTERACTIONS

_encode = msgspec.json.Encoder().encode
_decode_command = msgspec.json.Decoder(Command).decode

Found = Arrival | Order | Rejected
_Named = tuple[tuple[Identifier, ...], tuple[str, ...], tuple[str, ...]]
"""Usable identifiers, their names (`type:value`), and those of devices."""


@lru_cache(maxsize=50_000)
def _named(given: tuple[Identifier, ...], region: str | None) -> _Named | Rejected:
    """What an event names, or why it cannot be used. A customer's next event nearly always names the same."""
    identifiers = normalise(given, region)
    why = unusable(identifiers)
    if why is not None:
        return why
    refs = tuple(identity.ref(identifier) for identifier in identifiers)
    return identifiers, refs, tuple(r for i, r in zip(identifiers, refs, strict=True) if identity.is_device(i))


class Resolve:
    """The processor. `region` reads phone numbers written without a country code."""

    name = "resolve"
    group = "segue.resolve"
    kind = "none"
    timed = False
    claims = True
    portion: int | None = None
    topics: Sequence[str] = (*EVENT_TOPICS, COMMANDS)

    def __init__(
        self, index: IdentityIndex, source: Log, region: str | None = None, interactions: str = INTERACTIONS
    ) -> None:
        self._index, self._log, self._region, self._interactions = index, source, region, interactions
        self._arrivals: list[Arrival] = []
        """Of the batch at hand, as received: `prepare` decides them, `apply` passes them on."""

    def shard_of(self, tp: TP) -> str:
        return f"{tp[0].removeprefix(EVENTS)}.{tp[1]}"

    def read(self, shard: Shard, records: list[Record]) -> list[tuple[Record, Found]]:
        if shard.tp[0] == COMMANDS:
            return [(record, _order_given(record)) for record in records]
        channel = shard.tp[0].removeprefix(EVENTS)
        return [(record, check(record, channel, self._region)) for record in records]

    def prepare(self, batch: list[tuple[Shard, list[tuple[Record, Found]]]]) -> None:
        batch = [(shard, pairs) for shard, pairs in batch if not _replayed(shard, pairs)]
        self._arrivals = [found for _, pairs in batch for _, found in pairs if isinstance(found, Arrival)]
        self._arrivals.sort(key=_order)
        orders = [found for _, pairs in batch for _, found in pairs if isinstance(found, Order)]
        Resolution(self._index, self._arrivals, orders).settle()

    def apply(self, batch: list[tuple[Shard, list[tuple[Record, Found]]]]) -> list[Output]:
        outputs: list[Output] = []
        for shard, decoded in batch:
            replayed = _replayed(shard, decoded)
            for record, found in decoded:
                if isinstance(found, Rejected):
                    outputs.append(shard.refuse(record, found, self.name))
                elif isinstance(found, Order):
                    outputs += () if replayed else _done(found, self._interactions)
                else:
                    shard.stats["accepted"] += 1
        for arrival in self._arrivals:
            outputs += _emit(arrival, self._interactions)
        return outputs

    def counters(self, shard: Shard) -> Mapping[str, int]:
        return shard.stats

    def due(self, shards: list[Shard], now_ms: int) -> list[Output]:
        return []

    def encode(self, shard: str, dirty: dict[str, Any]) -> Encoded:
        return Encoded()  # what it keeps is the identity index

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
    named = _named(event.data.identifiers, region)
    if isinstance(named, Rejected):
        return named
    identifiers, refs, devices = named
    return Arrival(event, identifiers, refs, record.timestamp()[1], devices=devices)


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
    for device in arrival.sat:
        yield _seated(arrival, device, decision.customer_key)
    for merge in arrival.merges:
        yield from _merging(merge, arrival.received_at_ms, interactions)
    for (identifier, owner, reason), first in zip(decision.contested, arrival.noted, strict=False):
        if first:
            yield _candidate(arrival, identifier, decision.customer_key, owner, reason)


def _linked(arrival: Arrival, identifier: Identifier, key: str) -> Output:
    at = arrival.received_at_ms
    record = IdentityRecord("link", key, arrival.event.id, at, identifier, born_ms=arrival.born_ms)
    return Output(IDENTITY, identity.ref(identifier).encode(), _encode(record))


def _seated(arrival: Arrival, device: str, key: str) -> Output:
    identifier = arrival.identifiers[arrival.refs.index(device)]
    record = IdentityRecord("seat", key, arrival.event.id, arrival.at_ms, identifier)
    return Output(IDENTITY, f"seat|{device}|{key}".encode(), _encode(record))


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
