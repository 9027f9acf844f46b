"""signals: `segue.journey-steps` to `segue.signals`, by the rules of the rule book.

Most steps match no rule and cost one look at their facts; only customers with a match are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import Raw, Struct

from segue.core import signal_family as family
from segue.core.event import Rejected
from segue.core.interaction import Fact, Step, StepView
from segue.core.rules import Rule, RuleBook, SignalState, decoder, encoder
from segue.deadletters import replayed_for
from segue.log.port import TP, Output, Record
from segue.processor import Shard, load_missing
from segue.store.shards import Encoded, Fence, ShardStore
from segue.topics import JOURNEY_STEPS, SIGNALS

_decode = msgspec.json.Decoder(StepView).decode
_encode = msgspec.json.Encoder().encode


def _carrying(to: str, step: StepView, state: Raw, via: str | None = None) -> Output:
    """A step that brings a state to another customer; `via` passes it on."""
    carrying = Step(to, 0, Raw(_encode(step.entry)), via=via, signals=state)
    return Output(JOURNEY_STEPS, to.encode(), _encode(carrying))


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
    timed = False
    claims = False
    portion: int | None = None
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
        if not step.facts and not step.signals:
            return None
        matches = self._rules.matching(step)
        if not matches and not family.concerns_kin(step):
            return None
        return Found(step, matches, replayed_for(record.headers()) == self.name)

    def prepare(self, batch: list[tuple[Shard, list[Found | Output]]]) -> None:
        needed = (
            (shard, found.step.customer_key)
            for shard, decoded in batch
            for found in decoded
            if isinstance(found, Found)
        )
        load_missing(self._store, needed, lambda _, __, raw: decoder.decode(raw))

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
        step, key = found.step, found.step.customer_key
        state = shard.documents.get(key)
        if state is None:
            state = shard.documents[key] = SignalState(key)
        revision = step.revision
        if not step.signals and (not state.missed(revision) if found.replayed else revision <= state.revision):
            return  # this step was counted before
        shard.dirty[key] = state
        divides = family.divides(step)
        if family.concerns_kin(step) and not (divides and state.waiting):
            outputs += self._kin(state, step)
        if state.waiting and (found.matches or divides):
            state.revision = max(state.revision, step.revision)
            family.park(state, step)
        else:
            outputs += self._count(shard, state, step, found.matches)
        if state.parked and not state.waiting:
            for each in family.unparked(state):
                if family.divides(each):
                    outputs += self._kin(state, each)
                outputs += self._count(shard, state, each, self._rules.matching(each))

    def _count(
        self, shard: Shard, state: SignalState, step: StepView, matches: list[tuple[Rule, Fact]]
    ) -> Iterator[Output]:
        revision = max(state.revision, step.revision)
        for signal in self._rules.apply(state, step, matches):
            shard.stats[f"signal|{signal.rule}"] += 1
            shard.received_ms.append(step.entry.received_at_ms)
            yield Output(SIGNALS, state.customer_key.encode(), _encode(signal), shard.tp[1])
        state.revision = revision

    def _kin(self, state: SignalState, step: StepView) -> Iterator[Output]:
        """A merge or its undoing: send on what belongs to another, take in what comes, know what is to come."""
        key = state.customer_key
        if step.signals:
            come = decoder.decode(step.signals)
            to = family.onwards(state, come, step.via)
            if to is None:
                family.arrive(state, come, self._rules.keep)
            else:
                yield _carrying(to, step, step.signals, via=key)
            return
        fact = step.facts[0]
        before, after = fact.before or "", fact.after or ""
        if fact.fact == "customer.merged":
            family.expect(state, before)
        elif fact.fact == "customer.released":
            family.be_free(state)
        elif fact.fact == "customer.unmerged":
            leaving = family.divide(state, step.customers, after)
            yield _carrying(after, step, family.carried(leaving, after))
        else:  # absorbed
            state.into = after
            yield _carrying(after, step, family.carried(state, after))

    def counters(self, shard: Shard) -> Mapping[str, int]:
        return shard.stats

    def due(self, shards: list[Shard], now_ms: int) -> list[Output]:
        return []

    def encode(self, shard: str, dirty: dict[str, SignalState]) -> Encoded:
        return Encoded({name: encoder.encode(state) for name, state in dirty.items()})

    def recover(self, shard: Shard, found: Fence | None) -> None:
        """Nothing beyond the documents."""
