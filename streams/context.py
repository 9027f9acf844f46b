"""context: `segue.interactions` to the context documents in Redis and `segue.journey-steps`.

Calls `segue.core.apply.apply` for each interaction of a customer, in order, and `segue.core.family` for each step of a
merge. One journey step goes out per applied interaction and per deadline that passed; a duplicate changes nothing and
emits nothing. For customers whose deadline the clock has reached it appends a `segue.timer.due` record to its own input
(docs/adr/0009).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import msgspec
from msgspec import Raw

from segue.core import family, ids, timers
from segue.core.apply import Applied, apply, new_context
from segue.core.context import Context, Policy, decoder, encoder, lines_of
from segue.core.event import Rejected
from segue.core.interaction import Actor, Entry, Fact, Interaction, Step
from segue.core.lineage import Transfer
from segue.core.lines import Fetch, Lines
from segue.core.timers import Fired, TimerDue
from segue.log.port import TP, Output, Record
from segue.processor import Shard, load_missing
from segue.store.shards import Encoded, Fence, ShardStore
from segue.topics import INTERACTIONS, JOURNEY_STEPS

_decode = msgspec.json.Decoder(Interaction).decode
_decode_other = msgspec.json.Decoder(TimerDue | Transfer).decode
_encode = msgspec.json.Encoder().encode

MAX_TOUCHPOINTS = 500
"""Touchpoints counted by name per shard; a sender that makes up new ones for ever fills `(more)`."""

MOST_DUE = 500
"""Timer records per shard and look: a million sessions that end at once do not keep events waiting."""

Read = Interaction | TimerDue | Transfer | Output
"""A record decoded; an `Output` is the dead letter that became of it."""


class ContextProcessor:
    name = "context"
    group = "segue.context"
    kind = "ctx"
    timed = True
    claims = False
    portion: int | None = 64

    def __init__(self, store: ShardStore, policy: Policy) -> None:
        self._store, self._policy = store, policy
        self._interactions = store.layout.interactions
        self.topics: Sequence[str] = (self._interactions,)
        self._steps_alike = store.layout.step_partitions == store.layout.partitions
        self._complete_ms = 0
        self._kin: set[str] = set()
        """Customers whose document knows of a merge, as far as it was seen here: their parts are loaded too."""
        self._shards: dict[str, Shard] = {}
        """Of the batch under way."""

    def shard_of(self, tp: TP) -> str:
        return str(tp[1])

    def read(self, shard: Shard, records: list[Record]) -> list[Read]:
        try:
            return [_decode(record.value() or b"") for record in records]
        except msgspec.DecodeError:  # there is something else among them
            return [self._decoded(shard, record) for record in records]

    def _decoded(self, shard: Shard, record: Record) -> Read:
        raw = record.value() or b""
        try:
            return _decode(raw)
        except msgspec.DecodeError as error:
            with suppress(msgspec.DecodeError):
                other: TimerDue | Transfer = _decode_other(raw)
                return other
            why = Rejected("not_an_interaction", "$", f"{error}; only resolve writes to {INTERACTIONS}")
            return shard.refuse(record, why, self.name)

    def prepare(self, batch: list[tuple[Shard, list[Read]]]) -> None:
        needed = [
            (shard, found.customer_key)
            for shard, decoded in batch
            for documents in (shard.documents,)
            for found in decoded
            if not isinstance(found, Output) and found.customer_key not in documents
        ]
        load_missing(self._store, needed, self._loaded)
        if self._kin:
            load_missing(self._store, self._parts(batch), self._loaded)
        self._shards = {shard.name: shard for shard, _ in batch}
        self._read_ahead({(shard.name, name): lines for shard, name, lines in self._looked_back_on(batch)})

    def _loaded(self, shard: str, name: str, raw: bytes) -> Context:
        context = decoder.stored(raw, self._fetch(shard, name))
        if context.kin is not None:
            self._kin.add(context.customer_key)
        return context

    def _fetch(self, shard: str, name: str) -> Fetch:
        return partial(self._entries, shard, name)

    def _entries(self, shard: str, name: str) -> list[bytes]:
        """A timeline that `_looked_back_on` did not foresee."""
        return next(self._store.entries([(shard, name)], {shard: self._shards[shard].fence}))

    def _read_ahead(self, wanted: dict[tuple[str, str], Lines]) -> None:
        """Read many timelines at once rather than one by one."""
        if wanted:
            fences = {shard: self._shards[shard].fence for shard, _ in wanted}
            for lines, found in zip(wanted.values(), self._store.entries(list(wanted), fences), strict=True):
                lines.read(found)

    def _looked_back_on(self, batch: list[tuple[Shard, list[Read]]]) -> Iterator[tuple[Shard, str, Lines]]:
        """The timelines that events out of order, and merges, will look at further back than memory reaches."""
        for shard, decoded in batch:
            documents = shard.documents
            latest: dict[str, int] = {}
            for found in decoded:
                if type(found) is Interaction:  # a union in `isinstance` costs as much as all of this
                    key, at = found.customer_key, found.entry.event_time_ms
                    context = documents.get(key)
                    if context is None:
                        continue
                    if at >= latest.get(key, context.stream_time_ms):
                        latest[key] = at
                        continue
                    names = [key]
                elif isinstance(found, Transfer):
                    context = documents.get(found.customer_key)
                    names = [] if context is None else [found.customer_key, *family.parts_of(context)]
                else:
                    continue
                for name in names:
                    there = documents.get(name)
                    if there is not None and lines_of(there).unread:
                        yield shard, name, lines_of(there)

    def _parts(self, batch: list[tuple[Shard, list[Read]]]) -> Iterator[tuple[Shard, str]]:
        """The parts that the records of merged customers need."""
        for shard, decoded in batch:
            for found in decoded:
                if isinstance(found, Output | TimerDue) or found.customer_key not in self._kin:
                    continue
                context = shard.documents.get(found.customer_key)
                if context is None:
                    continue
                if isinstance(found, Interaction):
                    part = family.touched(context, found)
                    names = [] if part is None else [part]
                else:
                    names = [*family.parts_of(context), family.part_of(found.customer_key, found.merge.absorbed)]
                for name in names:
                    yield shard, name

    def apply(self, batch: list[tuple[Shard, list[Read]]]) -> list[Output]:
        outputs: list[Output] = []
        for shard, decoded in batch:
            shard.ends = ends = []
            for place, found in zip(shard.places or range(len(decoded)), decoded, strict=True):
                if type(found) is Interaction:
                    self._one(shard, found, outputs, place)
                elif isinstance(found, TimerDue):
                    self._timer(shard, found, outputs)
                elif isinstance(found, Transfer):
                    outputs += self._transfer(shard, found)
                elif isinstance(found, Output):
                    outputs.append(found)
                ends.append(len(outputs))
        return outputs

    def counters(self, shard: Shard) -> Mapping[str, int]:
        if shard.tally:
            count_events(shard.stats, shard.tally)
            shard.tally = {}
        return shard.stats

    def _one(self, shard: Shard, interaction: Interaction, outputs: list[Output], place: int) -> None:
        key, entry = interaction.customer_key, interaction.entry
        context = shard.documents.get(key)
        if context is None:
            context = shard.documents[key] = new_context(key, entry)
        elif context.kin is not None:
            onwards = family.passed_on(context, interaction)
            if onwards is not None:
                outputs.append(Output(self._interactions, onwards.customer_key.encode(), _encode(onwards)))
                return
        policy = self._policy
        due, behind = context.due_ms, context.received_at_ms - context.stream_time_ms
        outcome = apply(context, interaction, policy)
        if not isinstance(outcome, Applied):
            shard.stats["duplicates"] += 1
            return
        shard.dirty[key] = context
        if entry.event_time_ms > shard.stream_time_ms:
            shard.stream_time_ms = entry.event_time_ms
        shard.received_ms.append(entry.received_at_ms)
        kind = entry.channel, entry.type, entry.touchpoint
        counted = shard.tally.get(kind)
        if counted is None:
            counted = shard.tally[kind] = [0, place]
        counted[0] += 1
        counted[1] = place if place < counted[1] else counted[1]
        if outcome.late:
            shard.stats["late"] += 1
        for fired in outcome.due:
            self._step(shard, key, fired, outputs)
        self._step(shard, key, outcome, outputs, interaction.via)
        if context.due_ms != due or context.received_at_ms - context.stream_time_ms != behind:
            self._wake(shard, context, due, behind)
        if context.kin is not None:
            self._apply_to_part(shard, context, interaction)

    def _wake(self, shard: Shard, context: Context, due: int, behind: int) -> None:
        """Note when the customer's earliest deadline is reached, if that has changed from what these two made of it."""
        wake = timers.wake_at(context, self._policy)
        if wake != timers.wake_of(due, behind, self._policy):
            shard.wake[context.customer_key] = wake

    def _timer(self, shard: Shard, timer: TimerDue, outputs: list[Output]) -> None:
        """Fire what is due; nothing, when the deadline was cancelled, moved or fired meanwhile."""
        key, policy = timer.customer_key, self._policy
        context = shard.documents.get(key)
        if context is None or (context.kin is not None and context.kin.into is not None):
            shard.wake[key] = 0
            return
        due = context.due_ms
        for fired in timers.fire(context, timers.now_of(context, timer.now_ms, policy), timer.now_ms, policy):
            self._step(shard, key, fired, outputs)
        if context.due_ms != due:
            shard.dirty[key] = context
        shard.wake[key] = timers.wake_at(context, policy)

    def _apply_to_part(self, shard: Shard, context: Context, interaction: Interaction) -> None:
        """What a survivor is told, the part that it belongs to is told too; nothing is emitted for that."""
        name, entry = family.touched(context, interaction), interaction.entry
        if name is None:
            return
        part = shard.documents.get(name)
        if part is None or not part.revision:
            part = new_context(interaction.via or context.customer_key, entry)
        entry.session_id, entry.late = None, False  # as it was before the survivor's session was written in
        apply(part, interaction, self._policy)
        shard.documents[name] = shard.dirty[name] = part

    def _transfer(self, shard: Shard, transfer: Transfer) -> Iterator[Output]:
        key = transfer.customer_key
        moved = family.receive(transfer, shard.documents, self._policy)
        shard.documents.update(moved.changed)
        shard.dirty.update(moved.changed)
        self._kin.update(moved.changed)
        for name, document in moved.changed.items():
            if name == document.customer_key:  # parts are not woken, nor is a stub
                stub = document.kin is not None and document.kin.into is not None
                shard.wake[name] = 0 if stub else timers.wake_at(document, self._policy)
        for sent in moved.sent:
            yield Output(self._interactions, sent.customer_key.encode(), _encode(sent))
        if not moved.changed:
            shard.stats[f"transfers_{'passed_on' if moved.sent else 'repeated'}"] += 1
        if moved.facts:
            count_facts(shard.stats, moved.facts)
            context = moved.changed[key]
            entry = _entry(context, transfer, moved.facts[0])
            step = Step(key, context.revision, entry, tuple(moved.facts), customers=moved.customers)
            yield Output(JOURNEY_STEPS, key.encode(), _encode(step))

    def _step(
        self, shard: Shard, key: str, change: Applied | Fired, outputs: list[Output], via: str | None = None
    ) -> None:
        if change.facts:
            count_facts(shard.stats, change.facts)
        step = Step(key, change.revision, change.raw, change.facts, change.previous, via)
        partition = shard.tp[1] if self._steps_alike else -1  # the customer's either way, at no cost
        outputs.append(Output(JOURNEY_STEPS, key.encode(), _encode(step), partition))

    def due(self, shards: list[Shard], now_ms: int) -> list[Output]:
        """Timer records for the customers whose earliest deadline the clock has reached.

        The clock is that of what was received: it stands still while resolve has anything left to read, as far as
        resolve had said at the look before this one. What resolve had passed on by then has been read since.
        """
        reached, self._complete_ms = min(self._complete_ms, now_ms), self._store.complete_until("resolve")
        partitions = {shard.name: shard.tp[1] for shard in shards}
        return [
            Output(self.topics[0], key.encode(), _encode(TimerDue(key, reached)), partitions[name])
            for name, keys in self._store.awake(list(partitions), reached, MOST_DUE).items()
            for key in keys
        ]

    def encode(self, shard: str, dirty: dict[str, Context]) -> Encoded:
        documents, changes = {}, []
        for name, context in dirty.items():
            documents[name] = encoder.stored(context)
            lines = lines_of(context)
            changes.append((name, lines.take(lines.fetch or self._fetch(shard, name))))
        return Encoded(documents, changes)

    def recover(self, shard: Shard, found: Fence | None) -> None:
        """Nothing beyond the documents: they and the fence stand or fall together."""


def _entry(context: Context, transfer: Transfer, fact: Fact) -> Raw:
    """The entry of a merge's step; it is in nobody's timeline. Its time is where the customer's events stand."""
    merge = transfer.merge
    name = f"{fact.fact}/{merge.survivor}/{merge.absorbed}/{transfer.command_id or merge.event_id}"
    at = context.stream_time_ms or merge.at_ms
    return Raw(_encode(Entry(ids.derive(ids.MERGE, name), fact.fact, "other", at, merge.at_ms, actor=Actor("system"))))


def count_events(stats: dict[str, int], tally: dict[tuple[str, str, str | None], list[int]]) -> None:
    """Count the events of a turn per type and per touchpoint, the named ones up to a limit: whichever came first."""
    for (channel, kind, touchpoint), (events, _) in sorted(tally.items(), key=lambda counted: counted[1][1]):
        stats[f"events|{channel}|{kind}"] += events
        if touchpoint is None:
            continue
        name = f"touchpoint|{channel}|{touchpoint}"
        if name not in stats and stats["touchpoints"] >= MAX_TOUCHPOINTS:
            name = f"touchpoint|{channel}|(more)"
        if name not in stats:
            stats[name] = 0
            stats["touchpoints"] += 1
        stats[name] += events


def count_facts(stats: dict[str, int], facts: Iterable[Fact]) -> None:
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
