"""signals: `segue.journey-steps` to `segue.signals`, by the rules of the rule book.

Most steps match no rule and cost one look at their facts; only customers with a match are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from segue.core.event import Rejected
from segue.core.interaction import Fact, StepView
from segue.core.rules import Rule, RuleBook, SignalState, decoder, encoder
from segue.deadletters import replayed_for
from segue.engine import Shard, load_missing
from segue.log.port import TP, Output, Record
from segue.store.shards import Fence, ShardStore
from segue.topics import JOURNEY_STEPS, SIGNALS

_decode = msgspec.json.Decoder(StepView).decode
_encode = msgspec.json.Encoder().encode


class Found(Struct):
    """A step that some rule counts, and what it counts."""

    step: StepView
    matches: list[tuple[Rule, Fact]]
    replayed: bool
    """It was a dead letter of ours and is sent again: later steps of the customer may have been counted before."""


class Signals:
    name = "signals"
    group = "segue.signals"
    kind = "sig"
    topics: Sequence[str] = (JOURNEY_STEPS,)

    def __init__(self, store: ShardStore, rules: RuleBook) -> None:
        self._store, self._rules = store, rules

    def shard_of(self, tp: TP) -> str:
        return str(tp[1])

    def read(self, shard: Shard, records: list[Record]) -> list[Found | Output]:
        found = (self._matched(shard, record) for record in records)
        return [each for each in found if each is not None]

    def _matched(self, shard: Shard, record: Record) -> Found | Output | None:
        try:
            step = _decode(record.value() or b"")
        except msgspec.DecodeError as error:
            why = Rejected("not_a_step", "$", f"{error}; only context writes to {JOURNEY_STEPS}")
            return shard.refuse(record, why, self.name)
        if not step.facts:
            return None
        matches = self._rules.matching(step)
        return Found(step, matches, replayed_for(record.headers()) == self.name) if matches else None

    def prepare(self, batch: list[tuple[Shard, list[Found | Output]]]) -> None:
        needed = (
            (shard, found.step.customer_key)
            for shard, decoded in batch
            for found in decoded
            if isinstance(found, Found)
        )
        load_missing(self._store, needed, decoder.decode)

    def apply(self, batch: list[tuple[Shard, list[Found | Output]]]) -> list[Output]:
        outputs: list[Output] = []
        for shard, decoded in batch:
            for found in decoded:
                if isinstance(found, Found):
                    self._one(shard, found, outputs)
                else:
                    outputs.append(found)
        return outputs

    def _one(self, shard: Shard, found: Found, outputs: list[Output]) -> None:
        key = found.step.customer_key
        state = shard.documents.get(key)
        if state is None:
            state = shard.documents[key] = SignalState(key)
        revision = found.step.revision
        if not state.missed(revision) if found.replayed else revision <= state.revision:
            return  # this step was counted before
        signals = self._rules.apply(state, found.step, found.matches)
        shard.dirty[key] = state
        for signal in signals:
            shard.stats[f"signal|{signal.rule}"] += 1
            shard.received_ms.append(found.step.entry.received_at_ms)
            outputs.append(Output(SIGNALS, key.encode(), _encode(signal), shard.tp[1]))

    def due(self, shards: list[Shard], now_ms: int) -> list[Output]:
        return []

    def encode(self, document: SignalState) -> bytes:
        return encoder.encode(document)

    def recover(self, shard: Shard, found: Fence | None) -> None:
        """Nothing beyond the documents."""
