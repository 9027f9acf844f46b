"""The same processor without its guarantee, to see what that costs. For measurements only: it loses events, or
counts them twice.

Without the transaction, outputs go out by an idempotent producer and are acknowledged before Redis is written;
offsets are committed after them. Without the fence, Redis is written by a plain pipeline, unconditionally.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka import Producer, TopicPartition

from segue.log import kafka
from segue.log.kafka_member import KafkaMember
from segue.log.kafka_transactions import produce
from segue.log.port import TP, Output
from segue.store.resp import command, sent
from segue.store.shards import ShardStore, _UnderWay
from segue.topics import MAX_RECORD_BYTES


class PlainMember(KafkaMember):
    """A group seat whose commit is three things one after another, of which any can fail."""

    def __init__(self, common: dict[str, Any], bootstrap: str, *rest: Any) -> None:
        super().__init__(common, bootstrap, *rest)
        self._plain = Producer(
            common
            | {
                "enable.idempotence": True,
                "linger.ms": 0,
                "partitioner": "murmur2_random",
                "message.max.bytes": MAX_RECORD_BYTES,
                "queue.buffering.max.messages": 1_000_000,
            }
        )

    def begin(self, outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
        for output in outputs:
            produce(self._plain, output)
        self._plain.flush()
        self._consumer.commit(offsets=[TopicPartition(*tp, at) for tp, at in offsets.items()], asynchronous=True)

    def finished(self) -> bool:
        return True

    def finish(self) -> None:
        """Nothing is waited for."""


def plain_send(store: ShardStore, under_way: _UnderWay) -> None:
    """Send the writes with no condition and no MULTI, in one round trip."""
    commands = [raw for write in under_way.writes for raw in store._commands(write)]
    fences = [store.layout.fence(write.shard, store.processor) for write in under_way.writes]
    under_way.commands = sent(under_way.connection, [*commands, command("MGET", *fences)])  # a list is awaited last


def take_away(parts: Iterable[str]) -> None:
    """Switch off `transaction` or `fence` in this process."""
    for part in parts:
        if part == "transaction":
            kafka.KafkaMember = PlainMember  # type: ignore[misc]
        elif part == "fence":
            ShardStore._send = plain_send  # type: ignore[method-assign]
        else:
            raise ValueError(f"no such part of the guarantee: {part}")
