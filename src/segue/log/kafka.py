"""The log on Apache Kafka, by confluent-kafka.

`log.kafka_member` holds the group seat, on which exactly once rests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from segue.errors import LogUnavailable, SettingsError
from segue.log.kafka_member import KafkaMember
from segue.log.kafka_reader import KafkaReader
from segue.log.kafka_transactions import produce
from segue.log.port import TP, Output, Record
from segue.topics import PRODUCER, Topic

_DELIVERY_S = 30.0
_T = TypeVar("_T")

_ASK_S = 10.0
"""How long the broker may take to answer."""
_MOVING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
}
_SETTLE_S = 60.0
"""How long an open transaction is waited for; the broker ends one that nobody goes on with after about 20 s."""


class KafkaLog:
    """`port.Log` on a Kafka cluster. `options` are librdkafka's names, for all clients (security and so on).

    With `keeps_names` the instance names given to `join` survive a restart, and a member's seat does too.
    """

    def __init__(
        self,
        bootstrap: str,
        options: dict[str, str] | None = None,
        replication: int = 1,
        keeps_names: bool = False,
    ) -> None:
        self._common: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "error_cb": lambda _error: None,  # librdkafka goes on by itself; calls report what matters
            "log_level": 2,
            "reconnect.backoff.max.ms": 1000,
            "socket.nagle.disable": True,  # a transaction is several small requests; halves its 95th percentile
            **(options or {}),
        }
        self._bootstrap = bootstrap
        self._replication = replication
        self._keeps_names = keeps_names
        self._producer: Producer | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def create_topics(self, topics: Sequence[Topic]) -> list[str]:
        admin = AdminClient(self._common)
        existing = self._metadata(admin)
        new = [
            NewTopic(t.name, t.partitions, replication_factor=self._replication, config=self._config(t))
            for t in topics
            if t.name not in existing
        ]
        for topic in topics:
            have = existing.get(topic.name, topic.partitions)
            if have != topic.partitions:
                raise SettingsError(
                    f"SEGUE_PARTITIONS or SEGUE_EVENT_PARTITIONS: topic {topic.name} has {have} partitions, "
                    f"the settings say {topic.partitions}"
                )
        created = []
        for name, done in (admin.create_topics(new) if new else {}).items():
            try:
                done.result(30)
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise LogUnavailable(f"cannot create topic {name}: {error.args[0].str()}") from error
        return created

    def _config(self, topic: Topic) -> dict[str, str]:
        return topic.config | ({"min.insync.replicas": "2"} if self._replication > 2 else {})

    def _metadata(self, admin: AdminClient) -> dict[str, int]:
        try:
            found = admin.list_topics(timeout=5).topics
        except KafkaException as error:
            raise LogUnavailable(f"no Kafka at {self._bootstrap}: {error.args[0].str()}") from error
        return {name: len(topic.partitions) for name, topic in found.items()}

    def partitions(self, topic: str) -> int:
        return self._metadata(AdminClient(self._common)).get(topic, 0)

    def append(self, outputs: Iterable[Output]) -> None:
        producer = self._shared_producer()
        failed: list[KafkaError] = []
        done = threading.Event()
        waiting = _Countdown(done)

        def delivered(error: KafkaError | None, _message: Any) -> None:
            if error is not None:
                failed.append(error)
            waiting.one_less()

        for output in outputs:
            waiting.one_more()
            produce(producer, output, delivered)
        waiting.one_less()
        if not done.wait(_DELIVERY_S + 5):  # librdkafka gives up before that
            raise LogUnavailable(f"Kafka at {self._bootstrap} did not acknowledge within {_DELIVERY_S:g} s")
        if failed:
            raise LogUnavailable(f"Kafka at {self._bootstrap} did not acknowledge: {failed[0].str()}")

    def _shared_producer(self) -> Producer:
        with self._lock:
            if self._producer is None:
                # One thread serves the deliveries of all: callers that polled would take each other's.
                threading.Thread(target=self._serve, name="kafka deliveries", daemon=True).start()
                self._producer = Producer(
                    self._common | PRODUCER | {"linger.ms": 2, "delivery.timeout.ms": int(_DELIVERY_S * 1000)}
                )
            return self._producer

    def _serve(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                producer = self._producer
            if producer is not None:
                producer.poll(0.1)

    def read(self, topic: str) -> Iterator[Record]:
        consumer = Consumer(
            self._common
            | {
                "group.id": "segue.reader",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            }
        )
        try:
            left = set(range(self.partitions(topic)))
            consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in left])
            while left:
                for message in consumer.consume(1000, 0.5):
                    error = message.error()
                    if error is None:
                        yield message
                    elif error.code() == KafkaError._PARTITION_EOF:
                        left.discard(message.partition())
                    elif not error.retriable():
                        raise LogUnavailable(f"cannot read {topic}: {error.str()}")
        finally:
            consumer.close()

    def bounds(self, topic: str, settled: bool = False) -> dict[int, tuple[int, int]]:
        tps = [TopicPartition(topic, partition) for partition in range(self.partitions(topic))]
        until = time.monotonic() + _SETTLE_S
        first = self._offsets(tps, OffsetSpec.earliest(), IsolationLevel.READ_COMMITTED)
        while True:
            # In this order: when they agree, no transaction was open at the first look.
            stable = self._offsets(tps, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)
            if not settled or stable == self._offsets(tps, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED):
                return {partition: (first[partition], end) for partition, end in stable.items()}
            if time.monotonic() > until:
                raise LogUnavailable(f"a transaction on {topic} stays open")
            time.sleep(0.05)

    def _offsets(self, tps: list[TopicPartition], spec: OffsetSpec, level: IsolationLevel) -> dict[int, int]:
        def asked() -> dict[int, int]:
            admin = AdminClient(self._common)  # one that knew the leaders of before would be refused again
            found = admin.list_offsets(dict.fromkeys(tps, spec), isolation_level=level, request_timeout=_ASK_S)
            return {tp.partition: future.result(2 * _ASK_S).offset for tp, future in found.items()}

        return self._answer(f"offsets of {tps[0].topic if tps else 'no topic'}", asked)

    def reader(self) -> KafkaReader:
        return KafkaReader(self._common)

    def members(self, group: str) -> list[str]:
        found = self._of_group(group, lambda admin: admin.describe_consumer_groups([group], request_timeout=_ASK_S))
        members = [] if found is None else found.members
        return sorted(member.client_id.removeprefix(f"{group}.") for member in members)

    def offsets(self, group: str, tps: Sequence[TP]) -> dict[TP, int]:
        wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(*tp) for tp in tps])
        found = self._of_group(
            group,
            lambda admin: admin.list_consumer_group_offsets([wanted], require_stable=True, request_timeout=_ASK_S),
        )
        positions = [] if found is None else found.topic_partitions
        return {(tp.topic, tp.partition): tp.offset for tp in positions if tp.error is None and tp.offset >= 0}

    def set_offsets(self, group: str, offsets: dict[TP, int]) -> None:
        wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(*tp, at) for tp, at in offsets.items()])
        found = self._of_group(
            group, lambda admin: admin.alter_consumer_group_offsets([wanted], request_timeout=_ASK_S)
        )
        wrong = next((tp.error for tp in found.topic_partitions if tp.error is not None), None)
        if wrong is not None:
            raise LogUnavailable(f"offsets of group {group}: {wrong.str()}")

    def _of_group(self, group: str, ask: Callable[[AdminClient], dict[str, Any]]) -> Any:
        """What the group's coordinator says. None when there is no such group."""
        admin = AdminClient(self._common)

        def asked() -> Any:
            (found,) = ask(admin).values()
            try:
                return found.result(2 * _ASK_S)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return None
                raise

        return self._answer(f"group {group}", asked)

    def _answer(self, what: str, ask: Callable[[], _T]) -> _T:
        """Ask again while the broker that knows is being found: a topic just made has no leader for a moment."""
        until = time.monotonic() + _SETTLE_S
        while True:
            try:
                return ask()
            except TimeoutError as error:
                raise LogUnavailable(f"no Kafka at {self._bootstrap}: no answer about {what}") from error
            except KafkaException as error:
                cause = error.args[0]
                if cause.code() not in _MOVING or time.monotonic() > until:
                    raise LogUnavailable(f"{what} at {self._bootstrap}: {cause.str()}") from error
            time.sleep(0.1)

    def join(self, group: str, topics: Sequence[str], instance: str) -> KafkaMember:
        return KafkaMember(self._common, self._bootstrap, group, topics, instance, self._keeps_names)

    def close(self) -> None:
        if self._producer is not None and self._producer.flush(5):
            self._producer.purge()  # who waits for these is told now that they will not arrive
            self._producer.flush(1)
        self._closed.set()


class _Countdown:
    """Sets an event when as many were counted down as up; starts at one, so it can't end early."""

    def __init__(self, done: threading.Event) -> None:
        self._left, self._done, self._lock = 1, done, threading.Lock()

    def one_more(self) -> None:
        with self._lock:
            self._left += 1

    def one_less(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._done.set()
