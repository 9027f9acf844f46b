"""A seat in a Kafka consumer group, with the right to commit outputs and offsets together.

Exactly once between topics rests on KIP-447: one transactional producer per process, and the group's
metadata sent with the offsets, so that the broker refuses the commit of a member that lost its partitions.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from segue.errors import Fenced, LogUnavailable, MemberLost
from segue.log.kafka_ends import Ends
from segue.log.port import TP, Output, Polled, Record
from segue.topics import MAX_RECORD_BYTES, PRODUCER

_OWNERSHIP_LOST = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
}
_SEAT_LOST = {KafkaError._MAX_POLL_EXCEEDED, KafkaError._FATAL}
"""From then on a consumer gives nothing more. `_FATAL` is what another's taking of the seat's name comes as."""

_TRANSACTION_S = 10.0
"""How long the end of a transaction may be retried before it is given up: the broker's own limit for all of it."""

_SETTLE_S = 0.002
"""A small fetch is taken apart partition by partition within this time; then all of it is there to be ordered."""

_MANY = 500
"""From so many records on it may not be; then the broker is asked, which costs 4 ms and is shared by all of them."""

_JOIN_S = 10.0

_IDLE_MS = 2000
"""When the node that coordinated the group is gone from the cluster, sending offsets waits for it, and looks again only
when the state of some other connection changes (librdkafka 2.16, its issue 5511): closing idle ones does that. An
answer takes less, or no transaction would end in time."""
_KNOWN_S = 3.0
"""How long the nodes of the cluster that a client knows may take to answer, before another client asks."""
_SILENCE_S, _REACH_S, _GIVE_UP_S = 2.0, 1.0, 4.0
"""After so long without anything from the broker it is asked for a sign; so long at a time; and so long in all."""


def produce(producer: Producer, output: Output, delivered: Callable[..., None] | None = None) -> None:
    """Hand a record to a producer; waits while its queue is full."""
    headers = output.headers
    while True:
        try:
            if headers is None and delivered is None:
                producer.produce(output.topic, output.value, output.key, output.partition)
            else:
                producer.produce(
                    output.topic, output.value, output.key, output.partition, on_delivery=delivered, headers=headers
                )
            return
        except BufferError:  # the queue is full: let deliveries out
            producer.poll(0.05)


def topic_ids(admin: AdminClient, common: dict[str, Any], topics: Iterable[str]) -> dict[str, str]:
    """The broker's ids of topics, by one request: a processor may read twenty. Raises LogUnavailable."""
    try:
        return _topic_ids(admin, topics, _KNOWN_S)
    except (KafkaException, TimeoutError):
        pass  # it may go on to wait for a node that has left the cluster; a new client knows of none
    try:
        return _topic_ids(AdminClient(common), topics, _TRANSACTION_S)
    except KafkaException as error:
        raise LogUnavailable(f"ids of topics: {error.args[0].str()}") from error
    except TimeoutError as error:
        raise LogUnavailable("ids of topics: no answer") from error


def _topic_ids(admin: AdminClient, topics: Iterable[str], timeout_s: float) -> dict[str, str]:
    described = admin.describe_topics(TopicCollection(list(topics)), request_timeout=timeout_s)
    return {topic: str(found.result(timeout_s + _REACH_S).topic_id) for topic, found in described.items()}


class KafkaMember:
    """`port.Member`: a consumer in a group and a transactional producer."""

    def __init__(
        self,
        common: dict[str, Any],
        bootstrap: str,
        group: str,
        topics: Sequence[str],
        instance: str,
        keeps_name: bool = False,
    ) -> None:
        self._bootstrap, self._topic = bootstrap, topics[0]
        self._heard = self._asked = time.monotonic()
        self._common, self._admin = common, AdminClient(common)
        self._ends = Ends(self._admin)
        # Re-bootstrapping when all brokers are away leaves the group's coordinator behind as a handle that never ends
        # (librdkafka 2.16): seen as a commit that hangs for minutes. Without it a client that was told of no broker,
        # as one that is just starting may do, has none to ask for good: `_listen` finds that out.
        common = common | {"metadata.recovery.strategy": "none"}
        self._assigned: list[TP] = []
        self._revoked: list[TP] = []
        self._active: set[TP] = set()
        self._next: dict[TP, int] = {}
        self._told: dict[TP, int] = {}
        """At which offsets the ends of partitions were told."""
        self._topic_ids: dict[TP, str] = {}
        """The topics that our offsets are of: committed beside them, for a topic of the same name begins at 0 again."""
        self._several = len(topics) > 1
        self._owned: set[TP] = set()
        self._closed = self._begun = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._to_end: Callable[[], None] | None = None
        """Ends the transaction under way; it has not been called yet."""
        self._producer = Producer(
            common
            | PRODUCER
            | {
                "transactional.id": f"{group}.{instance}",
                "transaction.timeout.ms": 10_000,
                "linger.ms": 0,  # commit flushes anyway
                "connections.max.idle.ms": _IDLE_MS,
                # A transaction that follows at once finds the last one still being completed; ask again soon.
                "retry.backoff.ms": 2,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._guard(lambda: self._producer.init_transactions(_JOIN_S))
        # A process that comes back under its name takes its seat again, instead of waiting for its old self to expire.
        seat = {"group.instance.id": instance} if keeps_name else {}
        self._consumer = Consumer(
            common
            | seat
            | {
                "group.id": group,
                "client.id": f"{group}.{instance}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.partition.eof": True,
                "session.timeout.ms": 6000,  # the least that brokers allow: how long a lost process is waited for
                "heartbeat.interval.ms": 1000,
                "fetch.wait.max.ms": 100,
                "queued.max.messages.kbytes": 32_768,  # bounds what waits in memory, per consumer
                "fetch.message.max.bytes": MAX_RECORD_BYTES,
            }
        )
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Assign nothing yet: `start` does, at the offset that the restore finds.
        consumer.incremental_assign([])
        tps = [(p.topic, p.partition) for p in partitions]
        self._owned.update(tps)
        self._assigned += tps

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        tps = [(p.topic, p.partition) for p in partitions]
        consumer.incremental_unassign([TopicPartition(*tp) for tp in tps if tp in self._active])
        self._active.difference_update(tps)
        self._owned.difference_update(tps)
        self._assigned = [tp for tp in self._assigned if tp not in tps]
        self._revoked += tps

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        # consume() waits for a full batch; so wait for one record, then take what is there already.
        first = self._consumer.poll(timeout_s)
        if first is not None and self._several:
            time.sleep(_SETTLE_S)
        self._listen(first is not None)
        messages = [] if first is None else [first, *self._consumer.consume(max_records, 0)]
        records: dict[TP, list[Record]] = {}
        met: dict[TP, int] = {}
        tp: TP = ("", -1)
        batch: list[Record] = []
        for message in messages:
            if message.partition() != tp[1] or message.topic() != tp[0]:  # they come partition by partition
                tp = (message.topic(), message.partition())
                batch = records.get(tp, [])
            error = message.error()
            if error is None:
                if not batch and tp in self._active:
                    records[tp] = batch
                batch.append(message)
            elif error.code() != KafkaError._PARTITION_EOF:
                self._consumer_error(error)
            # An end that came with its last record is met once more, when others may have come behind it.
            elif tp in self._active and self._told.get(tp) != message.offset():
                met[tp] = message.offset()
        for tp, batch in records.items():
            self._next[tp] = batch[-1].offset() + 1
        for tp, end in met.items():  # beyond the last record lies the mark of its transaction
            self._next[tp] = max(end, self._next.get(tp, 0))
        ended, behind = self._ended(first is not None, len(messages) >= _MANY, records, met)
        assigned, self._assigned = self._assigned, []
        revoked, self._revoked = self._revoked, []
        self._ends.left()
        return Polled(records, assigned, revoked, ended, behind)

    def _ended(
        self, heard: bool, many: bool, records: dict[TP, list[Record]], met: Iterable[TP]
    ) -> tuple[list[TP], list[TP]]:
        """The partitions that are at their end, and those that are not, or perhaps not, any more."""
        behind, surely = self._ends.doubted(heard, self._position())
        if self._several and many and not (behind or surely):  # else the broker was asked just now
            behind = self._behind()
        read = (tp for tp, batch in records.items() if self._at_end(tp, batch[-1].offset()))
        ended = [tp for tp in dict.fromkeys((*met, *read, *surely)) if tp not in behind]
        for tp in behind:
            self._told.pop(tp, None)
        for tp in ended:
            self._told[tp] = self._next.get(tp, 0)
        return ended, behind

    def _listen(self, heard: bool) -> None:
        """Raise MemberLost when the broker gave no sign for too long: a new seat's clients find it again."""
        now = time.monotonic()
        if heard:
            self._heard = self._asked = now
        elif now - self._asked > _SILENCE_S:
            try:
                self._consumer.list_topics(self._topic, timeout=_REACH_S)
                self._heard = self._asked = time.monotonic()
            except KafkaException as error:
                if now - self._heard > _SILENCE_S + _GIVE_UP_S:
                    raise MemberLost(f"no Kafka at {self._bootstrap}: {error.args[0].str()}") from error

    def _behind(self) -> list[TP]:
        """The partitions that have records which were received before those we just got, and not delivered.

        A fetch brings partitions one after another, so that another one's older records may still be under
        way, though it was at its end a moment ago. The broker's ends, asked for now, tell.
        """
        return [tp for tp, end in self._ends.now(self._active).items() if end > self._next.get(tp, 0)]

    def _position(self) -> dict[TP, int]:
        return {tp: self._next.get(tp, 0) for tp in self._active}

    def _at_end(self, tp: TP, offset: int) -> bool:
        """Whether the last fetch already said that nothing follows, without waiting for the next to say so."""
        _, high = self._consumer.get_watermark_offsets(TopicPartition(*tp), cached=True)
        return bool(0 <= high <= offset + 1)

    def _consumer_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in _SEAT_LOST:
            raise MemberLost(error.str())
        # everything else (a broker away, a topic not there yet) librdkafka retries by itself

    def start(self, tp: TP, offset: int | None) -> None:
        if tp not in self._owned:
            return
        at = TopicPartition(*tp, OFFSET_BEGINNING if offset is None else offset)
        if tp in self._active:
            self._consumer.incremental_unassign([TopicPartition(*tp)])
        self._consumer.incremental_assign([at])
        self._next[tp] = offset or 0
        self._told.pop(tp, None)
        self._active.add(tp)

    def pause(self, tp: TP) -> None:
        if tp in self._active:
            self._consumer.incremental_unassign([TopicPartition(*tp)])
            self._active.discard(tp)

    def committed(self, tps: Sequence[TP]) -> dict[TP, int | None]:
        if not tps:
            return {}
        self._begin(tps[0])
        try:
            found = self._consumer.committed([TopicPartition(*tp) for tp in tps], timeout=_TRANSACTION_S)
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() == KafkaError._TIMED_OUT:
                # A client that lost the group's coordinator may never find it again, though it reaches the broker.
                raise MemberLost(f"committed offsets: {cause.str()}") from error
            raise LogUnavailable(f"committed offsets: {cause.str()}") from error
        for part in found:
            if part.error is not None:
                raise LogUnavailable(f"committed offsets of {part.topic}: {part.error.str()}")
        ids = self.topic_ids({topic for topic, _ in tps})
        self._topic_ids |= {tp: ids[tp[0]] for tp in tps}
        return {
            (p.topic, p.partition): p.offset
            if p.offset not in (OFFSET_INVALID, None) and p.offset >= 0 and p.metadata in ("", None, ids[p.topic])
            else None
            for p in found
        }

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        return topic_ids(self._admin, self._common, topics)

    def ends(self, tps: Sequence[TP]) -> dict[TP, int]:
        return self._ends.now(tps)

    def commit(self, outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
        self.begin(outputs, offsets)
        self.finish()

    def begin(self, outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
        # The broker checks that the member is of the group's generation, not that the partitions are its own.
        lost = offsets.keys() - self._owned
        if lost:
            raise Fenced(f"{len(lost)} partitions have another owner now")
        producer = self._producer
        self._guard(producer.begin_transaction)
        try:
            send = producer.produce
            for output in outputs:
                if output.headers is None:  # nearly always, so without another call
                    try:
                        send(output.topic, output.value, output.key, output.partition)
                        continue
                    except BufferError:
                        pass
                produce(producer, output)
            positions = [TopicPartition(*tp, offset, self._topic_ids.get(tp, "")) for tp, offset in offsets.items()]
            self._to_end = self._ending(positions, producer.commit_transaction)
        except KafkaException as error:
            self._abort(error.args[0])
        except BaseException:  # whoever makes the outputs failed
            self._guard(lambda: _retry(producer.abort_transaction))
            raise

    def finished(self) -> bool:
        # The client reports each delivered record under Python's lock. Here, where the lock is at hand, that is quick;
        # a thread that ends the transaction while others compute would wait for the lock once for each of them.
        if self._to_end is not None:
            self._producer.poll(0)
            if not len(self._producer):
                self._end()
        return not self._answers.empty()

    def finish(self) -> None:
        if self._to_end is not None:
            self._end()
        try:
            self._wait()
        except KafkaException as error:
            self._abort(error.args[0])

    def _end(self) -> None:
        """Begin to end the transaction; `_wait` tells what becomes of it."""
        call, self._to_end = self._to_end, None
        assert call is not None
        self._aside(call)

    def _ending(self, positions: list[TopicPartition], end: Callable[[float], object]) -> Callable[[], None]:
        """Sends the offsets as the member that we are now, should another own these partitions by then; and ends."""
        producer, group = self._producer, self._consumer.consumer_group_metadata()

        def both() -> None:
            until = time.monotonic() + _TRANSACTION_S
            _retry(lambda left: producer.send_offsets_to_transaction(positions, group, left), until)
            _retry(end, until)

        return both

    def _begin(self, tp: TP) -> None:
        """Abort a transaction with an offset in it, once per seat.

        An offset that this name's last producer sent in the moment in which its transaction was ended by another can
        stay pending for good, and committed offsets are not told beside one (Kafka 4.3). The end of any later
        transaction of the same name ends it too. A marker that the broker skipped leaves the same (docs/adr/0015).
        """
        if not self._begun:
            self._guard(self._producer.begin_transaction)
            try:
                self._aside(self._ending([TopicPartition(*tp, 0)], self._producer.abort_transaction))
                self._wait()
            except KafkaException as error:
                try:
                    self._abort(error.args[0])
                except Fenced as others:  # the group changes: what we were given is not ours any more
                    raise LogUnavailable(str(others)) from others
            self._begun = True

    def _aside(self, call: Callable[[], None]) -> None:
        """Make a call in a thread of its own kind, for `_wait` to wait for. Whoever begins has time for other work, and
        sending offsets hangs for good, whatever time it is given, when the client lost its only broker meanwhile
        (librdkafka 2.16)."""
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._calls, self._answers), name="offsets", daemon=True).start()
        self._calls.put(call)

    def _wait(self) -> None:
        """What became of the call aside. One that does not come back costs the seat, and its thread is left behind: not
        before the call's own time is over, for one that still lives could meet its successor at the broker."""
        try:
            error = self._answers.get(timeout=_TRANSACTION_S + 2 * _REACH_S)
        except queue.Empty:
            raise MemberLost("the producer does not come back from the end of a transaction") from None
        if error is not None:
            raise error

    def _abort(self, error: KafkaError) -> None:
        """End a failed transaction and say whose fault it was. Never returns.

        Only when the group refused it, and all else went well, may this producer begin another one. Requests of a
        transaction that failed may still be under way, and what comes next has their epoch and their numbers: it could
        be taken for a repetition, or they for a part of it (before KIP-890, which librdkafka does not speak yet). A new
        seat's producer has an epoch of its own, and whatever the old one sent is refused.
        """
        if error.code() not in _OWNERSHIP_LOST or error.fatal() or error.retriable():
            raise MemberLost(f"transaction failed: {error.str()}")
        try:
            _retry(self._producer.abort_transaction)
        except KafkaException as failed:
            raise MemberLost(f"producer: {failed.args[0].str()}") from failed
        raise Fenced(error.str())

    def _guard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except KafkaException as error:
            cause = error.args[0]
            if cause.fatal() or not cause.retriable():
                raise MemberLost(f"no Kafka at {self._bootstrap}, or it refused: {cause.str()}") from error
            raise LogUnavailable(f"no Kafka at {self._bootstrap}: {cause.str()}") from error

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._calls is not None:
                self._calls.put(None)
            with suppress(KafkaException):  # one that failed for good does not leave in order
                self._consumer.close()


def _retry(call: Callable[[float], object], until: float | None = None) -> None:
    """Make a call, which takes the seconds it may last, until it succeeds or it is `until` (monotonic s)."""
    until = time.monotonic() + _TRANSACTION_S if until is None else until
    while True:
        try:
            call(max(_REACH_S, until - time.monotonic()))
            return
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > until:
                raise


def _serve(
    calls: queue.SimpleQueue[Callable[[], None] | None], answers: queue.SimpleQueue[BaseException | None]
) -> None:
    """Make each call and answer with what it raised, until there is none."""
    while (call := calls.get()) is not None:
        try:
            call()
        except BaseException as error:
            answers.put(error)
        else:
            answers.put(None)
