"""A seat in a Kafka consumer group, with the right to commit outputs and offsets: by `log.kafka_transactions`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from segue.errors import Fenced, LogUnavailable, MemberLost
from segue.log.kafka_ends import Ends
from segue.log.kafka_transactions import TRANSACTION_S, Transactions
from segue.log.port import TP, Output, Polled, Record
from segue.topics import MAX_RECORD_BYTES

_SEAT_LOST = {KafkaError._MAX_POLL_EXCEEDED, KafkaError._FATAL}
"""From then on a consumer gives nothing more. `_FATAL` is what another's taking of the seat's name comes as."""

_SETTLE_S = 0.002
"""A small fetch is taken apart partition by partition within this time; then all of it is there to be ordered."""

_MANY = 500
"""From so many records on it may not be; then the broker is asked, which costs 4 ms and is shared by all of them."""

_KNOWN_S = 3.0
"""How long the nodes of the cluster that a client knows may take to answer, before another client asks."""
_SILENCE_S, _REACH_S, _GIVE_UP_S = 2.0, 1.0, 4.0
"""After so long without anything from the broker it is asked for a sign; so long at a time; and so long in all."""


def topic_ids(admin: AdminClient, common: dict[str, Any], topics: Iterable[str]) -> dict[str, str]:
    """The broker's ids of topics, by one request: a processor may read twenty. Raises LogUnavailable."""
    try:
        return _topic_ids(admin, topics, _KNOWN_S)
    except (KafkaException, TimeoutError):
        pass  # it may go on to wait for a node that has left the cluster; a new client knows of none
    try:
        return _topic_ids(AdminClient(common), topics, TRANSACTION_S)
    except KafkaException as error:
        raise LogUnavailable(f"ids of topics: {error.args[0].str()}") from error
    except TimeoutError as error:
        raise LogUnavailable("ids of topics: no answer") from error


def _topic_ids(admin: AdminClient, topics: Iterable[str], timeout_s: float) -> dict[str, str]:
    described = admin.describe_topics(TopicCollection(list(topics)), request_timeout=timeout_s)
    return {topic: str(found.result(timeout_s + _REACH_S).topic_id) for topic, found in described.items()}


class KafkaMember:
    """`port.Member`: a consumer in a group, and the transactions of its name."""

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
        self._transactions = Transactions(common, bootstrap, f"{group}.{instance}")
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
        if not self._begun:  # once per seat
            self._transactions.end_what_is_left(TopicPartition(*tps[0], 0), self._consumer.consumer_group_metadata())
            self._begun = True
        try:
            found = self._consumer.committed([TopicPartition(*tp) for tp in tps], timeout=TRANSACTION_S)
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
        positions = [TopicPartition(*tp, offset, self._topic_ids.get(tp, "")) for tp, offset in offsets.items()]
        self._transactions.begin(outputs, positions, self._consumer.consumer_group_metadata())

    def finished(self) -> bool:
        return self._transactions.finished()

    def finish(self) -> None:
        self._transactions.finish()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._transactions.close()
            with suppress(KafkaException):  # one that failed for good does not leave in order
                self._consumer.close()
