"""context: `segue.interactions` to the context documents in Redis and `segue.journey-steps`.

Calls `segue.core.apply.apply` for each interaction of a customer, in order. One journey step goes out per
applied interaction and per deadline that passed; a duplicate changes nothing and emits nothing. For customers whose
deadline the clock has reached it appends a `segue.timer.due` record to its own input (docs/adr/0009).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from segue.core import timers
from segue.core.apply import Applied, apply, new_context
from segue.core.context import Context, Policy, decoder, encoder
from segue.core.event import Rejected
from segue.core.interaction import Fact, Interaction, Step
from segue.core.timers import Fired, TimerDue
from segue.engine import Shard, load_missing
from segue.log.port import TP, Output, Record
from segue.store.shards import Fence, ShardStore
from segue.topics import INTERACTIONS, JOURNEY_STEPS

_decode = msgspec.json.Decoder(Interaction).decode
_decode_timer = msgspec.json.Decoder(TimerDue).decode
_encode_timer = msgspec.json.Encoder().encode
_encode_step = msgspec.json.Encoder().encode

MAX_TOUCHPOINTS = 500
"""Touchpoints counted by name per shard; a sender that makes up new ones for ever fills `(more)`."""

MOST_DUE = 500
"""Timer records per shard and look: a million sessions that end at once do not keep events waiting."""

Read = Interaction | TimerDue | Output


class ContextProcessor:
    name = "context"
    group = "segue.context"
    kind = "ctx"

    def __init__(self, store: ShardStore, policy: Policy) -> None:
        self._store, self._policy = store, policy
        self.topics: Sequence[str] = (store.layout.interactions,)
        self._steps_alike = store.layout.step_partitions == store.layout.partitions
        self._complete_ms = 0

    def shard_of(self, tp: TP) -> str:
        return str(tp[1])

    def read(self, shard: Shard, records: list[Record]) -> list[Read]:
        return [self._decoded(shard, record) for record in records]

    def _decoded(self, shard: Shard, record: Record) -> Read:
        raw = record.value() or b""
        try:
            return _decode(raw)
        except msgspec.DecodeError as error:
            with suppress(msgspec.DecodeError):
                return _decode_timer(raw)
            why = Rejected("not_an_interaction", "$", f"{error}; only resolve writes to {INTERACTIONS}")
            return shard.refuse(record, why, self.name)

    def prepare(self, batch: list[tuple[Shard, list[Read]]]) -> None:
        needed = (
            (shard, found.customer_key)
            for shard, decoded in batch
            for found in decoded
            if not isinstance(found, Output)
        )
        load_missing(self._store, needed, decoder.decode)

    def apply(self, batch: list[tuple[Shard, list[Read]]]) -> list[Output]:
        outputs: list[Output] = []
        for shard, decoded in batch:
            for found in decoded:
                if isinstance(found, Interaction):
                    self._one(shard, found, outputs)
                elif isinstance(found, TimerDue):
                    self._timer(shard, found, outputs)
                else:
                    outputs.append(found)
        return outputs

    def _one(self, shard: Shard, interaction: Interaction, outputs: list[Output]) -> None:
        key, entry = interaction.customer_key, interaction.entry
        context = shard.documents.get(key)
        if context is None:
            context = shard.documents[key] = new_context(key, entry)
        before = timers.wake_at(context, self._policy)
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
        for fired in outcome.due:
            self._step(shard, key, fired, outputs)
        self._step(shard, key, outcome, outputs)
        wake = timers.wake_at(context, self._policy)
        if wake != before:
            shard.wake[key] = wake

    def _timer(self, shard: Shard, timer: TimerDue, outputs: list[Output]) -> None:
        """Fire what is due; nothing, when the deadline was cancelled, moved or fired meanwhile."""
        key, policy = timer.customer_key, self._policy
        context = shard.documents.get(key)
        if context is None:
            shard.wake[key] = 0
            return
        due = context.due_ms
        for fired in timers.fire(context, timers.now_of(context, timer.now_ms, policy), timer.now_ms, policy):
            self._step(shard, key, fired, outputs)
        if context.due_ms != due:
            shard.dirty[key] = context
        shard.wake[key] = timers.wake_at(context, policy)

    def _step(self, shard: Shard, key: str, change: Applied | Fired, outputs: list[Output]) -> None:
        if change.facts:
            count_facts(shard.stats, change.facts)
        step = Step(key, change.revision, change.raw, change.facts, change.previous)
        partition = shard.tp[1] if self._steps_alike else -1  # the customer's either way, at no cost
        outputs.append(Output(JOURNEY_STEPS, key.encode(), _encode_step(step), partition))

    def due(self, shards: list[Shard], now_ms: int) -> list[Output]:
        """Timer records for the customers whose earliest deadline the clock has reached.

        The clock is that of what was received: it stands still while resolve has anything left to read, as far as
        resolve had said at the look before this one. What resolve had passed on by then has been read since.
        """
        reached, self._complete_ms = min(self._complete_ms, now_ms), self._store.complete_until("resolve")
        partitions = {shard.name: shard.tp[1] for shard in shards}
        return [
            Output(self.topics[0], key.encode(), _encode_timer(TimerDue(key, reached)), partitions[name])
            for name, keys in self._store.awake(list(partitions), reached, MOST_DUE).items()
            for key in keys
        ]

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


def count_facts(stats: dict[str, int], facts: tuple[Fact, ...]) -> None:
    """Count what `segue stats` shows. Items are counted once however often a thing happened to them."""
    for fact in facts:
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
