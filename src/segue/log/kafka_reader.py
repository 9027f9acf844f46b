"""Reading partitions of Kafka in no group: what is read moves no offset and disturbs no member."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from segue.errors import LogUnavailable
from segue.log.kafka_member import topic_ids
from segue.log.port import TP, Polled, Record
from segue.topics import MAX_RECORD_BYTES


class KafkaReader:
    """`port.Reader`: a consumer that is assigned what it is told to read."""

    def __init__(self, common: dict[str, Any]) -> None:
        self._common, self._admin = common, AdminClient(common)
        self._active: set[TP] = set()
        self._consumer = Consumer(
            common
            | {
                "group.id": "segue.reader",  # librdkafka wants a name; nothing is committed under it
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "error",  # what retention took away meanwhile must not be skipped
                "queued.max.messages.kbytes": 65_536,
                "fetch.message.max.bytes": MAX_RECORD_BYTES,
            }
        )

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        # consume() waits for a full batch; so wait for one record, then take what is there already.
        first = self._consumer.poll(timeout_s)
        messages = [] if first is None else [first, *self._consumer.consume(max_records, 0)]
        records: dict[TP, list[Record]] = {}
        ended: list[TP] = []
        for message in messages:
            tp = (message.topic(), message.partition())
            error = message.error()
            if tp not in self._active:
                continue
            if error is None:
                records.setdefault(tp, []).append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.append(tp)
            elif error.fatal() or error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise LogUnavailable(f"cannot read {tp[0]}: {error.str()}")
        return Polled(records, [], [], ended)

    def start(self, tp: TP, offset: int | None) -> None:
        self.pause(tp)
        self._consumer.incremental_assign([TopicPartition(*tp, OFFSET_BEGINNING if offset is None else offset)])
        self._active.add(tp)

    def pause(self, tp: TP) -> None:
        if tp in self._active:
            self._consumer.incremental_unassign([TopicPartition(*tp)])
            self._active.discard(tp)

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        return topic_ids(self._admin, self._common, topics)

    def close(self) -> None:
        self._consumer.close()
