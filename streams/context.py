"""context: `segue.interactions` to the context documents in Redis and `segue.journey-steps`.

Calls `segue.core.apply.apply` for each interaction of a customer, in order. One journey step goes out per
applied interaction; a duplicate changes nothing and emits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from segue.core.apply import Applied, apply, new_context
from segue.core.context import Context, Policy, decoder, encoder
from segue.core.event import Rejected
from segue.core.interaction import Interaction, Step
from segue.engine import Shard, load_missing
from segue.log.port import TP, Output, Record
from segue.store.shards import Fence, ShardStore
from segue.topics import INTERACTIONS, JOURNEY_STEPS

_decode = msgspec.json.Decoder(Interaction).decode
_encode_step = msgspec.json.Encoder().encode

MAX_TOUCHPOINTS = 500
"""Touchpoints counted by name per shard; a sender that makes up new ones for ever fills `(more)`."""


class ContextProcessor:
    name = "context"
    group = "segue.context"
    kind = "ctx"

    def __init__(self, store: ShardStore, policy: Policy) -> None:
        self._store, self._policy = store, policy
        self.topics: Sequence[str] = (store.layout.interactions,)
        self._steps_alike = store.layout.step_partitions == store.layout.partitions

    def shard_of(self, tp: TP) -> str:
        return str(tp[1])

    def read(self, shard: Shard, records: list[Record]) -> list[Interaction | Output]:
        return [self._decoded(shard, record) for record in records]

    def _decoded(self, shard: Shard, record: Record) -> Interaction | Output:
        try:
            return _decode(record.value() or b"")
        except msgspec.DecodeError as error:
            why = Rejected("not_an_interaction", "$", f"{error}; only resolve writes to {INTERACTIONS}")
            return shard.refuse(record, why, self.name)

    def prepare(self, batch: list[tuple[Shard, list[Interaction | Output]]]) -> None:
        needed = (
            (shard, found.customer_key)
            for shard, decoded in batch
            for found in decoded
            if isinstance(found, Interaction)
        )
        load_missing(self._store, needed, decoder.decode)

    def apply(self, batch: list[tuple[Shard, list[Interaction | Output]]]) -> list[Output]:
        outputs: list[Output] = []
        for shard, decoded in batch:
            for found in decoded:
                if isinstance(found, Interaction):
                    self._one(shard, found, outputs)
                else:
                    outputs.append(found)
        return outputs

    def _one(self, shard: Shard, interaction: Interaction, outputs: list[Output]) -> None:
        key, entry = interaction.customer_key, interaction.entry
        context = shard.documents.get(key)
        if context is None:
            context = shard.documents[key] = new_context(key, entry)
        outcome = apply(context, interaction, self._policy)
        stats = shard.stats
        if not isinstance(outcome, Applied):
            stats["duplicates"] += 1
            return
        shard.dirty[key] = context
        shard.stream_time_ms = max(shard.stream_time_ms, entry.event_time_ms)
        shard.received_ms.append(entry.received_at_ms)
        stats[f"events|{entry.channel}|{entry.type}"] += 1
        count_touchpoint(stats, entry.channel, entry.touchpoint)
        if outcome.late:
            stats["late"] += 1
        if outcome.facts:
            count_facts(stats, outcome)
        step = Step(key, context.revision, outcome.raw, outcome.facts, outcome.previous)
        partition = shard.tp[1] if self._steps_alike else -1  # the customer's either way, at no cost
        outputs.append(Output(JOURNEY_STEPS, key.encode(), _encode_step(step), partition))

    def encode(self, document: Context) -> bytes:
        return encoder.encode(document)

    def recover(self, shard: Shard, found: Fence | None) -> None:
        """Nothing beyond the documents: they and the fence stand or fall together."""


def count_touchpoint(stats: dict[str, int], channel: str, touchpoint: str | None) -> None:
    """Count per touchpoint, the named ones up to a limit."""
    if touchpoint is None:
        return
    name = f"touchpoint|{channel}|{touchpoint}"
    if name not in stats and stats["touchpoints"] >= MAX_TOUCHPOINTS:
        name = f"touchpoint|{channel}|(more)"
    if name not in stats:
        stats[name] = 0
        stats["touchpoints"] += 1
    stats[name] += 1


def count_facts(stats: dict[str, int], outcome: Applied) -> None:
    """Count what `segue stats` shows. Items are counted once however often a thing happened to them."""
    for fact in outcome.facts:
        kind = fact.fact
        stats[f"fact|{kind}"] += 1
        if kind == "item.opened":
            item = (fact.item or "").partition(":")[0]
            stats[f"opened|{item}|{fact.before}"] += 1
            stats[f"status|{item}|{fact.after}"] += 1
        elif kind == "item.status":
            item = (fact.item or "").partition(":")[0]
            stats[f"status|{item}|{fact.before}"] -= 1
            stats[f"status|{item}|{fact.after}"] += 1
        elif kind == "customer.first_item":
            stats[f"first_item|{fact.after}"] += 1
        elif (kind == "item.reopened" and fact.before is None and fact.value == 1) or (
            kind == "item.reassigned" and fact.before == "0"
        ):
            stats[f"items|{kind}"] += 1
