"""Where Kafka's partitions end, and whether a consumer that was at their ends still is.

A consumer says once that it has read a partition to its end. That goes on to be true as long as new records come in
by themselves: not over a time in which the process was stopped, and not while the way to the broker brings nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from segue.log.port import TP

_ENDS_S, _IN_TIME_S = 1.0, 3.0
"""How long the broker may take to say where its partitions end: while it is waited for, and while it is not."""
_TRIES = 2

STILL_S, QUIET_S = 0.3, 1.0
"""Who was stopped for so long, or heard nothing for so long, may be behind without knowing it."""


class Ends:
    """The committed ends of partitions, as the broker tells them."""

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin
        self._question: dict[TopicPartition, Future[Any]] = {}
        self._certain = self._left = self._asked = time.monotonic()

    def now(self, tps: Collection[TP]) -> dict[TP, int]:
        """Ask and wait, 4 ms as a rule. Empty while nobody answers: then go on as the consumer sees it."""
        for _ in range(_TRIES):
            try:
                asked = self._ask(tps, _ENDS_S) if tps else {}
                return {(p.topic, p.partition): f.result(_ENDS_S).offset for p, f in asked.items()}
            except TimeoutError:
                break
            except KafkaException as error:
                self._refused(error.args[0])
        return {}

    def doubted(self, heard: bool, position: Mapping[TP, int]) -> tuple[list[TP], list[TP]]:
        """The partitions that are not, or perhaps not, at their end any more, and those that now surely are.

        To be called when a poll has heard something, or nothing; `position` is what comes next of each partition.
        While all is quiet the broker is asked in good time, and the answer is there at a later poll.
        """
        now, ends = time.monotonic(), dict[TP, int]()
        if now - self._left > STILL_S:  # or a long turn is behind us
            self._certain, self._question = now - 2 * QUIET_S, {}  # its answer may be from before
            ends = self.now(position)
        elif heard and now - self._certain <= QUIET_S:
            self._certain = now
        elif position and now - self._certain > QUIET_S / 2:
            said = self._answer(position)
            if said and now - self._certain <= QUIET_S:
                self._certain = self._asked
                return _beyond(position, said), []  # more may have come since it was asked
            if said:  # nobody is sure of anything: he who answers again is asked about now
                ends = self.now(position)
        if ends:
            self._certain = now
            behind = _beyond(position, ends)
            return behind, [tp for tp in ends if tp in position and tp not in behind]
        return (list(position) if now - self._certain > QUIET_S else []), []

    def left(self) -> None:
        """The poll is over: from now on whatever keeps this process from the next one is counted."""
        self._left = time.monotonic()

    def _ask(self, tps: Iterable[TP], timeout_s: float) -> dict[TopicPartition, Future[Any]]:
        wanted = {TopicPartition(*tp): OffsetSpec.latest() for tp in tps}
        found: dict[TopicPartition, Future[Any]] = self._admin.list_offsets(
            wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=timeout_s
        )
        return found

    def _answer(self, tps: Iterable[TP]) -> dict[TP, int]:
        """What the broker said to the question of an earlier call, or nothing yet."""
        if not self._question:
            self._asked = time.monotonic()
            self._question = self._ask(tps, _IN_TIME_S)
        if not all(future.done() for future in self._question.values()):
            return {}
        answered, self._question = self._question, {}
        try:
            return {(p.topic, p.partition): future.result().offset for p, future in answered.items()}
        except KafkaException as error:
            self._refused(error.args[0])
            return {}

    def _refused(self, error: KafkaError) -> None:
        """Find out who leads, when it was a broker that said no.

        A client that asks for nothing else goes by what it knows for five minutes, and after a restart of the broker
        is told so long that its "leader epoch is older than broker epoch" (librdkafka 2.16).
        """
        if error.code() > 0:  # what the client says itself, such as that there is no broker, is below
            with suppress(KafkaException):
                self._admin.list_topics(timeout=_ENDS_S)


def _beyond(position: Mapping[TP, int], ends: Mapping[TP, int]) -> list[TP]:
    return [tp for tp, at in position.items() if ends.get(tp, at) > at]
