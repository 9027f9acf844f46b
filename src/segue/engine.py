"""The loop of every processor, and the order of effects that makes it exactly once.

For the records of one poll, in this order (docs/adr/0002):

    1. read and load    decode the records, load the documents that the cache lacks
    2. apply            the pure core, in memory
    3. commit           ONE transaction of the log: outputs and next offsets
    4. write            ONE atomic write to Redis: documents, timelines, counters, fence

While there is a backlog, the log commits (3) and Redis writes (4) while the next records are read and applied (1, 2).
The order stays: nothing is written before its commit has ended, and nothing of the next records is committed before
Redis has answered. So at most one turn is committed and not known to be in Redis (docs/adr/0018). What a write does
not change is read before it (docs/adr/0019).

Whatever fails, the shards concerned are dropped from memory and restored: raise the owner epoch in the
fence, read on from the fence's offset, and apply WITHOUT emitting up to the offset that was committed.
A crash between 3 and 4, a Redis that went back in time and an empty Redis are all this one path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from segue.core.event import Rejected
from segue.errors import Fenced, LogUnavailable, MemberLost, SegueError, StoreUnavailable, WentBack
from segue.log.port import TP, Log, Member, Output, Polled, Record
from segue.merge import TimeMerge
from segue.metrics import Meter, Snapshot
from segue.processor import Processor, Shard
from segue.quarantine import Quarantine
from segue.rejections import Limit, Rejections
from segue.store.shards import Encoded, Fence, ShardStore, Write
from segue.turn import applied

REPORT_S = 0.2
COMMIT_S = 1.0
"""How long the log's offsets may lag behind the fence while nothing is emitted."""
HELD_BATCHES = 4
"""How many batches of one partition may wait in memory for older records of others."""
LINGER_S = 0.01
"""Least time between two turns: what arrives meanwhile shares a transaction, which costs the broker more
than the records in it."""
_DECODED_BYTES, _DECODED = 2000, 1.3
"""What a document takes in memory: so much, and so many times its bytes in Redis."""
TIMERS_S = 0.1
"""How often the processor is asked for what time has made due. It takes two looks and a report of resolve's to
know that a moment has passed: of the second that a timer may take, at most 0.4; 0.8 where more comes all the time."""
_POLL_S = 0.1
_APPENDED = 2
"""The type of a record's timestamp that is the log's own: Kafka's `LogAppendTime`."""
_ROUND_MS = 500
_BACKOFF_S = (0.2, 2.0)
_SEAT_LASTS = 5
"""So many outages of the log in a row, and it is taken for the seat's own: a client may be stuck for good."""

log = structlog.get_logger()


class _Turn(Struct):
    """A turn that was applied, and what is yet to be done and said of it."""

    committing: dict[TP, int] | None
    """The offsets of its commit; None where it needs none."""
    shards: list[Shard]
    writes: list[Write]
    records: dict[TP, list[Record]]
    received_ms: list[list[int]]
    rejections: dict[TP, Rejections]
    offsets: dict[TP, int]
    emit: bool
    rejected: int
    sent: bool = False
    """Whether its commit has ended and its write was sent."""


class _Failed(Exception):
    """The processor raised what is no outage: a bug, or a record that it cannot take. The cause is attached."""


class Engine:
    """Runs one processor until `stop()` says so. `clock` returns ms since 1970: the one wall clock here."""

    def __init__(
        self,
        processor: Processor,
        source: Log,
        store: ShardStore,
        instance: str,
        stop: Callable[[], bool],
        batch_records: int = 2000,
        cache_mb: int = 200,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        limit: Limit | None = None,
        stands: Callable[[], bool] = lambda: True,
    ) -> None:
        """`stands` says whether the layout that this engine works in is still the one to work in."""
        self.processor, self._log, self._store, self._instance = processor, source, store, instance
        self._stop, self._batch, self._clock = stop, batch_records, clock
        self._cache_bytes, self._document_bytes = cache_mb * 1_000_000, 0.0
        self._stands, self.superseded = stands, False
        self.meter = Meter()
        self._member: Member | None = None
        self._shards: dict[TP, Shard] = {}
        self._waiting: set[TP] = set()
        self._merge = TimeMerge() if len(processor.topics) > 1 else None
        self._ended: set[TP] = set()
        self._resting: set[TP] = set()
        self._caught_up: dict[str, int] = {}
        self._moved: dict[TP, float] = {}
        self._pending: dict[TP, int] = {}
        self._quarantine = Quarantine(processor.name, limit or Limit())
        self._committed_at = 0.0
        self._report_at = 0.0
        self._store_ms = 0
        self._timers_at = 0.0
        self._there: dict[TP, int] = {}
        """Where the partitions that were not at their end ended at the last look for timers."""
        self._turned_at = 0.0
        self._unanswered: _Turn | None = None
        """The turn whose commit or write is under way."""
        store.before_reading = self._catch_up
        self._now = 0
        """The time (ms) up to which the last poll brought everything, of the partitions whose end it met."""
        self._failures = 0

    def run(self) -> None:
        """Work until stopped, or until the layout is about to be another (`superseded`): then leave the group.

        Outages are waited out; only a bug or wrong settings raise.
        """
        try:
            while not self._stop() and not self.superseded:
                try:
                    self._round()
                    self._failures = 0
                except (LogUnavailable, StoreUnavailable, MemberLost) as error:
                    self._recover(error)
            if self._member is not None:
                with suppress(SegueError):  # the fence knows what the log was not told
                    self._settle(self._member)
                    self._commit_pending(self._member)
        finally:
            if self._member is not None:
                self._member.close()

    def _round(self) -> None:
        if self._member is None:
            self._member = self._log.join(self.processor.group, self.processor.topics, self._instance)
            self._store.forget_the_gone(self._clock())
        rest = self._turned_at + LINGER_S - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        before = self._clock()
        polled = self._member.poll(self._batch, _POLL_S if self._unanswered is None else 0)
        self._now = min(self._clock(), before + _ROUND_MS)  # what came while the process was stopped is not in there
        for tp in polled.revoked:
            self._drop(tp)
            self._waiting.discard(tp)
            self._quarantine.forget(tp)
            self._moved.pop(tp, None)
        self._waiting.update(polled.assigned)
        self._moved |= dict.fromkeys(polled.assigned, time.monotonic())
        if self._waiting:
            self._restore(self._member)
        self._ended.difference_update(polled.records, polled.behind)
        at_end = {tp: self._shards[tp] for tp in polled.ended if tp in self._shards}
        records = polled.records if self._merge is None else self._in_order(self._member, self._merge, polled)
        if records:
            self._turned_at = time.monotonic()
            self._turns(self._member, records)
        for tp, shard in at_end.items():  # what came with their ends has been applied now, or will be read again
            if self._shards.get(tp) is shard and tp not in self._quarantine.stops:
                self._ended.add(tp)
        more = sum(map(len, polled.records.values())) > self._batch // 2
        if not more or self._stop():
            self._settle(self._member)
        if self._unanswered is None:
            if time.monotonic() - self._committed_at > COMMIT_S:
                self._commit_pending(self._member)
            self._tell(self._member)

    def _tell(self, member: Member) -> None:
        """What rests on all that was applied being in Redis: how far this is, and what time alone brings about."""
        for tp in self._ended:
            if self._merge is None or not self._merge.held(tp):
                self._caught_up[self._shards[tp].name] = self._now
                self._moved[tp] = time.monotonic()
        self._report(self._now)
        if self.processor.timed and self._shards and time.monotonic() > self._timers_at:
            read = [shard for shard in self._shards.values() if self._read_since(shard)]
            if len(read) == len(self._shards) or time.monotonic() > self._timers_at + TIMERS_S:
                self._timers(member, read, self._now)

    def _read_since(self, shard: Shard) -> bool:
        """Whether all that lay in a partition at the last look for timers has been applied. Where more comes all the
        time, its end is never met."""
        there = self._there.get(shard.tp)
        return shard.tp in self._ended or (there is not None and shard.next_offset >= there)

    def _timers(self, member: Member, read: list[Shard], now: int) -> None:
        """Append the timer records of the partitions that are caught up; they act when they are read."""
        outputs = self.processor.due(read, now)
        if outputs:
            self._log.append(outputs)
            # Not asked again before what was appended is read.
            self._ended.difference_update({(output.topic, output.partition) for output in outputs})
        busy = [tp for tp in self._shards if tp not in self._ended]
        self._there = member.ends(busy)
        self._timers_at = time.monotonic() + (2 * TIMERS_S if busy else TIMERS_S)  # the question is not free

    def _in_order(self, member: Member, merge: TimeMerge, polled: Polled) -> dict[TP, list[Record]]:
        """Pass the records through the merge; a partition far ahead of the others rests meanwhile."""
        merge.add(polled.records, polled.ended, polled.behind)
        records = merge.take()
        for tp in polled.records:
            if merge.held(tp) > HELD_BATCHES * self._batch:
                member.pause(tp)
                self._resting.add(tp)
        for tp in [tp for tp in self._resting if merge.held(tp) < self._batch]:
            self._resting.discard(tp)
            shard = self._shards.get(tp)
            if shard is not None:
                held = merge.held(tp)
                after = records[tp][-1].offset() if tp in records else shard.next_offset - 1
                member.start(tp, (merge.last_offset(tp) if held else after) + 1)
        return records

    # --- one poll's records

    def _turns(self, member: Member, records: dict[TP, list[Record]]) -> None:
        """Apply the records: those committed before (a replay) without emitting, then the new ones."""
        if self._quarantine.stops:
            records = self._short_of_stops(member, records)
        silent: dict[TP, list[Record]] = {}
        loud: dict[TP, list[Record]] = {}
        for tp, batch in records.items():
            shard = self._shards.get(tp)
            if shard is None:  # revoked, or waiting for its restore: it will be read again
                continue
            if batch[0].offset() < shard.next_offset:
                log.warning("offsets begin again: the topic was made anew", topic=tp[0], partition=tp[1])
                self._to_restore(member, [tp])
                continue
            if batch[0].offset() >= shard.emit_from:
                loud[tp] = batch
                continue
            old = [record for record in batch if record.offset() < shard.emit_from]
            silent[tp] = old
            if len(old) < len(batch):
                loud[tp] = batch[len(old) :]
        for turn, emit in ((silent, False), (loud, True)):
            for part in self._quarantine.parts(turn):
                if not self._guarded(member, part, emit):
                    # What is read again comes first: nothing of this poll may overtake it.
                    self._to_restore(member, [tp for tp in records if tp in self._shards])
                    if self._quarantine.searching:
                        self._restore(member)
                    return

    def _guarded(self, member: Member, records: dict[TP, list[Record]], emit: bool) -> bool:
        """Do a turn. Returns False when some of its partitions must be read again."""
        try:
            self._turn(member, records, emit)
        except Fenced as error:
            log.info("partitions passed to another owner", processor=self.processor.name, why=str(error))
            self._to_restore(member, records)
        except WentBack as error:  # nothing was committed on what a Redis says that lost writes
            log.warning("restoring", processor=self.processor.name, why=str(error))
            self.meter.counts["fence_surprises"] += 1
            self._to_restore(member, records)
        except (LogUnavailable, StoreUnavailable):
            self._to_restore(member, records)
            raise
        except _Failed as error:
            self.meter.counts["failed"] += self._quarantine.narrow_down(records, error.__cause__ or error)
            self._to_restore(member, records)
        else:
            self._quarantine.went_well(self._batch)
        return self._shards.keys() >= records.keys()

    def _turn(self, member: Member, records: dict[TP, list[Record]], emit: bool) -> None:
        shards = {tp: self._shards[tp] for tp in records}
        sound, letters = self._set_aside(shards, records)
        offsets = {tp: found[-1].offset() + 1 for tp, found in records.items()}
        outputs, writes = self._apply(member, shards, sound, offsets)
        if self._unanswered is not None:
            if not self._settle(member):  # nothing may overtake what is read again, nor rest on what is not in Redis
                self._to_restore(member, records)
                return
            try:
                self._tell(member)
            except WentBack as error:  # which concerns all partitions, not only those of this turn
                raise StoreUnavailable(str(error)) from error
        refused = {tp: shard.refused for tp, shard in shards.items() if shard.refused}
        rejections = self._quarantine.within_limit(records, refused, emit)
        if rejections is None:
            self._to_restore(member, records)
            return
        committing = self._commit(member, letters + outputs, offsets) if emit else None
        if letters and not emit:  # the core took them when they were committed; now it does not: lost nowhere else
            member.commit(letters, {tp: shard.emit_from for tp, shard in shards.items()})
        received_ms = [shard.received_ms for shard in shards.values()]
        rejected = sum(map(len, refused.values()))
        self._unanswered = _Turn(
            committing, list(shards.values()), writes, records, received_ms, rejections, offsets, emit, rejected
        )
        self._store.expect(writes)
        self._go_on(member, wait=committing is None)
        for write, shard in zip(writes, shards.values(), strict=True):
            shard.fence, shard.next_offset = write.fence, offsets[shard.tp]
            shard.encoded, shard.changed, shard.wake = Encoded(), {}, {}
            shard.received_ms, shard.refused = [], []

    def _go_on(self, member: Member, wait: bool = True) -> None:
        """Send the write of the turn before, when its commit has ended; `wait` for that. Raises what the commit failed
        with; after Fenced the partitions of that turn will be restored."""
        turn = self._unanswered
        if turn is None or turn.sent:
            return
        if turn.committing is not None:
            if not (wait or member.finished()):
                return
            turn.sent = True
            try:
                member.finish()
            except Fenced:
                self._unanswered = None
                self._store.expect([])
                # Put off again, but for what was revoked meanwhile: it is another's by now, and so is its next offset.
                put_off = {tp: offset for tp, offset in turn.committing.items() if tp in self._shards}
                self._pending = put_off | self._pending
                self._to_restore(member, [each.tp for each in turn.shards if self._shards.get(each.tp) is each])
                raise
        turn.sent = True
        self._store.begin(turn.writes)

    def _catch_up(self) -> None:
        if self._member is not None:
            self._go_on(self._member)

    def _settle(self, member: Member) -> bool:
        """Wait until the write of the last turn is answered, and only then count that turn as done. Returns whether it
        is; what is not will be restored."""
        try:
            self._go_on(member)
        except Fenced as error:
            log.info("partitions passed to another owner", processor=self.processor.name, why=str(error))
            return False
        turn, self._unanswered = self._unanswered, None
        if turn is None:
            return True
        surprised = self._store.finish()
        now = self._clock()
        for shard, received_ms in zip(turn.shards, turn.received_ms, strict=True):
            if shard.name not in surprised and self._shards.get(shard.tp) is shard:
                self._moved[shard.tp] = time.monotonic()
                if turn.emit:
                    self.meter.readable(received_ms, now)
                    self._complete(shard, turn.records[shard.tp][-1])
        self._quarantine.counted(turn.rejections, turn.offsets)
        if turn.emit:
            self.meter.counts["rejected"] += turn.rejected
        self.meter.counts["applied" if turn.emit else "replayed"] += sum(map(len, turn.records.values()))
        if surprised:
            log.warning(
                "fence is not what was written last; restoring", processor=self.processor.name, shards=surprised
            )
            self.meter.counts["fence_surprises"] += len(surprised)
            lost = [shard for shard in turn.shards if shard.name in surprised]
            self._to_restore(member, [shard.tp for shard in lost if self._shards.get(shard.tp) is shard])
        self._trim(turn.writes)
        return not surprised

    def _complete(self, shard: Shard, last: Record) -> None:
        """Everything received before a record is applied: also where more comes all the time and the end is never met.
        So it is with topics of the log's own time, which are those that senders write."""
        kind, received_ms = last.timestamp()
        if self._merge is not None and kind == _APPENDED:
            self._caught_up[shard.name] = max(self._caught_up.get(shard.name, 0), received_ms - 1)

    def _set_aside(
        self, shards: dict[TP, Shard], records: dict[TP, list[Record]]
    ) -> tuple[dict[TP, list[Record]], list[Output]]:
        """Split off the records that are known to fail. Returns the others and their dead letters."""
        letters = []
        sound = dict(records)
        for tp, failing in self._quarantine.failing(records).items():
            sound[tp] = [record for record in records[tp] if record.offset() not in failing]
            for record in records[tp]:
                if record.offset() in failing:
                    detail = f"{failing[record.offset()]} in {self.processor.name}, see its log; replay after a fix"
                    letters.append(shards[tp].refuse(record, Rejected("processing", "$", detail), self.processor.name))
        return sound, letters

    def _apply(
        self, member: Member, shards: dict[TP, Shard], records: dict[TP, list[Record]], offsets: dict[TP, int]
    ) -> tuple[list[Output], list[Write]]:
        """All that the processor does, up to the bytes to write: only this can fail by a record's fault."""
        processor = self.processor
        try:
            return applied(
                processor, self._store, shards, records, offsets, lambda: self._go_on(member, wait=processor.claims)
            )
        except (SegueError, MemoryError):
            raise
        except Exception as error:
            raise _Failed from error
        finally:
            self._store.forget_ahead()

    def _commit(self, member: Member, outputs: list[Output], offsets: dict[TP, int]) -> dict[TP, int] | None:
        """Begin to commit, or put it off when there is nothing to emit. Returns the offsets that are under way.

        Then the fence alone says how far the state is, and it is what a restore goes by; a transaction for
        offsets only would cost the broker as much as one with records.
        """
        self._pending |= offsets
        if not outputs and time.monotonic() - self._committed_at < COMMIT_S:
            return None
        member.begin(outputs, self._pending)
        committing, self._pending = self._pending, {}
        self._committed_at = time.monotonic()
        return committing

    def _commit_pending(self, member: Member) -> None:
        """Commit the offsets put off. When that fails nothing is lost: the fence knows them."""
        if self._pending:
            try:
                member.commit((), self._pending)
            except Fenced as error:
                log.info("partitions passed to another owner", processor=self.processor.name, why=str(error))
            self._pending = {}
            self._committed_at = time.monotonic()

    def _trim(self, writes: list[Write]) -> None:
        """Keep the cache within its limit, going by what was written lately: of each shard the oldest half goes."""
        for write in writes:
            for raw in islice(write.documents.values(), 10):
                self._document_bytes += (len(raw) - self._document_bytes) / 50
        each = _DECODED_BYTES + _DECODED * self._document_bytes
        if sum(len(shard.documents) for shard in self._shards.values()) * each > self._cache_bytes:
            for shard in self._shards.values():
                for key in list(shard.documents)[: len(shard.documents) // 2]:
                    del shard.documents[key]

    def _short_of_stops(self, member: Member, records: dict[TP, list[Record]]) -> dict[TP, list[Record]]:
        """Leave out what lies beyond the stops; a partition that has come to its stop holds up no other."""
        short = self._quarantine.short_of_stops(records)
        for tp in self._quarantine.stops.keys() & records.keys():
            if len(short.get(tp, ())) < len(records[tp]):
                member.pause(tp)
                self._ended.discard(tp)
                self._resting.discard(tp)
                if self._merge is not None:
                    self._merge.drop(tp)
        return short

    # --- taking over, restoring, giving up

    def _restore(self, member: Member) -> None:
        """Take over the waiting partitions, each at the offset that its state stands at."""
        self._settle(member)
        if not self._stands():  # asked after joining: who holds processing sees either us in the group or nothing
            self.superseded = True
            return
        waiting = sorted(self._waiting)
        committed = member.committed(waiting)
        proof = {tp: offset for tp, offset in committed.items() if offset is not None}
        try:
            if proof:  # only the group's true owner can commit, so only it raises the epoch
                member.commit((), proof)
        except Fenced:
            return  # the next poll tells which are lost
        topic_ids = member.topic_ids({topic for topic, _ in waiting})
        for tp in waiting:
            shard, found = self._take_over(tp, topic_ids[tp[0]], committed[tp])
            self.meter.counts["take_overs"] += 1
            self.processor.recover(shard, found)
            self._shards[tp] = shard
            self._waiting.discard(tp)
            self._ended.discard(tp)
            member.start(tp, shard.next_offset)
            if self._merge is not None:
                self._merge.started(tp)
            if shard.emit_from > shard.next_offset:
                behind = shard.emit_from - shard.next_offset
                log.info("replaying", processor=self.processor.name, shard=shard.name, records=behind)

    def _take_over(self, tp: TP, topic_id: str, committed: int | None) -> tuple[Shard, Fence | None]:
        name = self.processor.shard_of(tp)
        found, raw, stats = self._store.take_over(name, topic_id)
        emit_from = committed or 0
        if found is None:
            start, epoch, stream_time = 0, 1, 0
        elif found.topic_id != topic_id:  # the topic was made anew: our state holds nothing of it yet
            start, epoch, stream_time = 0, found.epoch + 1, found.stream_time_ms
        else:
            start, epoch, stream_time = found.next_offset, found.epoch + 1, found.stream_time_ms
        shard = Shard(
            name=name,
            tp=tp,
            topic_id=topic_id,
            epoch=epoch,
            fence=raw,
            next_offset=start,
            emit_from=emit_from,
            stream_time_ms=stream_time,
            stats=stats,
        )
        return shard, found

    def _to_restore(self, member: Member, tps: Sequence[TP] | dict[TP, Any]) -> None:
        for tp in tps:
            self._drop(tp)
            self._waiting.add(tp)
            member.pause(tp)

    def _drop(self, tp: TP) -> None:
        shard = self._shards.pop(tp, None)
        self._pending.pop(tp, None)
        self._ended.discard(tp)
        self._resting.discard(tp)
        if self._merge is not None:
            self._merge.drop(tp)
        if shard is not None:
            self._caught_up.pop(shard.name, None)

    def _recover(self, error: SegueError) -> None:
        """Wait after an outage, longer each time; a lost membership is taken anew."""
        self._failures += 1
        wait = min(_BACKOFF_S[0] * 2 ** (self._failures - 1), _BACKOFF_S[1])
        log.warning("waiting", processor=self.processor.name, why=str(error), retry_in_s=wait)
        self.meter.counts["outages"] += 1
        turn, self._unanswered = self._unanswered, None
        self._store.begin_anew()
        if self._member is not None:
            if turn is not None and not turn.sent:
                try:
                    self._member.finish()  # the committed offsets will tell what became of it
                except MemberLost as lost:
                    error = lost
                except SegueError:
                    pass
            stuck = isinstance(error, LogUnavailable) and self._failures > _SEAT_LASTS
            if not isinstance(error, MemberLost) and not stuck:
                self._to_restore(self._member, list(self._shards))
            else:
                for tp in list(self._shards):
                    self._drop(tp)
                self._member.close()
                self._member = None
                self._waiting.clear()
                self._moved.clear()
                self._quarantine.clear()
        until = time.monotonic() + wait
        while time.monotonic() < until and not self._stop():
            time.sleep(0.05)

    # --- telling others

    def _report(self, now: int) -> None:
        if time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + REPORT_S
        self._quarantine.remind()
        behind = now - min((self._caught_up.get(s.name, 0) for s in self._shards.values()), default=now)
        snapshot = Snapshot(
            processor=self.processor.name,
            instance=self._instance,
            at_ms=now,
            counts=dict(self.meter.counts),
            latency=self.meter.latency,
            latency_sum_ms=self.meter.latency_sum_ms,
            owned=len(self._shards),
            behind_ms=min(behind, 86_400_000),
            stopped=len(self._quarantine.stops),
            restoring=len(self._waiting) + sum(s.emit_from > s.next_offset for s in self._shards.values()),
            stalled_ms=self._stalled_ms(),
            store_ms=self._store_ms,
        )
        asked = time.monotonic()
        self._store.report(self._caught_up, msgspec.json.encode(snapshot), self._instance)
        self._store_ms = int((time.monotonic() - asked) * 1000)
        self.superseded = self.superseded or not self._stands()

    def _stalled_ms(self) -> int:
        moving = (moved for tp, moved in self._moved.items() if tp not in self._quarantine.stops)
        return int((time.monotonic() - min(moving, default=time.monotonic())) * 1000)
