"""The transactions of a seat in a Kafka consumer group: outputs and offsets, together or not at all.

Exactly once between topics rests on KIP-447: one transactional producer per process, and the group's
metadata sent with the offsets, so that the broker refuses the commit of a member that lost its partitions.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from segue.errors import Fenced, LogUnavailable, MemberLost
from segue.log.port import TP, Output
from segue.topics import PRODUCER

Group = Any
"""What `Consumer.consumer_group_metadata` returns: who the member is, and of which generation."""

_OWNERSHIP_LOST = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
}
TRANSACTION_S = 10.0
"""How long the end of a transaction may be retried before it is given up: the broker's own limit for all of it."""

_JOIN_S = 10.0

_IDLE_MS = 2000
"""When the node that coordinated the group is gone from the cluster, sending offsets waits for it, and looks again only
when the state of some other connection changes (librdkafka 2.16, its issue 5511): closing idle ones does that. An
answer takes less, or no transaction would end in time."""
_REACH_S = 1.0
"""The least that a call is given."""


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


class Transactions:
    """One transaction at a time. Its end is a call in a thread aside, so that who begins it can go on."""

    def __init__(self, common: dict[str, Any], bootstrap: str, name: str) -> None:
        """`name` is the transactional id: whoever takes it next ends what its last producer left."""
        self._bootstrap = bootstrap
        self._calls: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._to_end: Callable[[], None] | None = None
        """Ends the transaction under way; it has not been called yet."""
        self._lacking = ""
        """Why a record of the transaction under way is not in the log; empty while all may be."""
        self._producer = Producer(
            common
            | PRODUCER
            | {
                "transactional.id": name,
                "transaction.timeout.ms": 10_000,
                # A request is of one partition: with one at a time, as other producers have it, a transaction would
                # take as many ways to the broker and back. What that one is for, `_delivered` sees to (docs/adr/0020).
                "max.in.flight.requests.per.connection": 5,
                "linger.ms": 0,  # all of it is flushed anyway
                "connections.max.idle.ms": _IDLE_MS,
                # A transaction that follows at once finds the last one still being completed; ask again soon.
                "retry.backoff.ms": 2,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._guard(lambda: self._producer.init_transactions(_JOIN_S))

    def begin(self, outputs: Iterable[Output], positions: list[TopicPartition], group: Group) -> None:
        """Hand over outputs, and the offsets to commit with them. `group` is the member as it is now: should another
        own these partitions by then, it is of an older generation, and is refused. Raises as `Member.begin`."""
        producer, asked = self._producer, set[TP]()
        self._guard(producer.begin_transaction)
        self._lacking = ""
        try:
            send, told = producer.produce, self._delivered
            for output in outputs:
                if output.headers is None:  # nearly always, so without another call
                    place = output.topic, output.partition
                    try:
                        if place in asked:
                            send(output.topic, output.value, output.key, output.partition)
                        else:
                            send(output.topic, output.value, output.key, output.partition, on_delivery=told)
                            if output.partition >= 0:
                                asked.add(place)
                        continue
                    except BufferError:
                        pass
                produce(producer, output, told)
            self._to_end = self._ending(positions, group, producer.commit_transaction)
        except KafkaException as error:
            self._abort(error.args[0])
        except BaseException:  # whoever makes the outputs failed
            self._answered(time.monotonic() + TRANSACTION_S)
            self._guard(lambda: _retry(producer.abort_transaction))
            raise

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        """Told of the first record of each partition, and of all whose partition the client finds by their key.

        While a leader is being made, a producer's first request for a partition may be refused and its next be taken.
        The first one repeated is "a duplicate", which the client takes for an acknowledgement though it is not in the
        log (librdkafka 2.16). Such a one says no offset, and what is lost begins with the first record.
        """
        if error is not None:
            self._lacking = error.str()
        elif message.offset() is None:
            self._lacking = "a record was acknowledged that is not in the log"

    def finished(self) -> bool:
        """Whether `finish` would answer at once. To be asked now and then: it takes part in the work."""
        # The client reports each delivered record under Python's lock. Here, where the lock is at hand, that is quick;
        # a thread that ends the transaction while others compute would wait for the lock once for each of them.
        if self._to_end is not None:
            self._producer.poll(0)
            if not len(self._producer):
                self._end()
        return not self._answers.empty()

    def finish(self) -> None:
        """Wait for the end of what was begun. Raises as `Member.finish` does."""
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

    def _ending(
        self, positions: list[TopicPartition], group: Group, end: Callable[[float], object]
    ) -> Callable[[], None]:
        def both() -> None:
            until = time.monotonic() + TRANSACTION_S
            self._answered(until)
            _retry(lambda left: self._producer.send_offsets_to_transaction(positions, group, left), until)
            _retry(end, until)

        return both

    def end_what_is_left(self, position: TopicPartition, group: Group) -> None:
        """Abort a transaction with an offset in it: each seat begins with that. Raises LogUnavailable, MemberLost.

        An offset that this name's last producer sent in the moment in which its transaction was ended by another can
        stay pending for good, and committed offsets are not told beside one (Kafka 4.3). The end of any later
        transaction of the same name ends it too. A marker that the broker skipped leaves the same (docs/adr/0015).
        """
        self._guard(self._producer.begin_transaction)
        try:
            self._aside(self._ending([position], group, self._producer.abort_transaction))
            self._wait()
        except KafkaException as error:
            try:
                self._abort(error.args[0])
            except Fenced as others:  # the group changes: what we were given is not ours any more
                raise LogUnavailable(str(others)) from others

    def _answered(self, until: float) -> None:
        """Wait for every record's acknowledgement, until then (monotonic s): before the offsets are sent, which is when
        the group may refuse, and before an abort. Raises MemberLost without them.

        What waits to be sent when a transaction fails the client throws away, with the numbers it had given it. The
        broker misses these at the next transaction and refuses that one too, "skipped sequence numbers" (before
        KIP-890, which librdkafka does not speak yet).
        """
        if self._producer.flush(max(_REACH_S, until - time.monotonic())):
            raise MemberLost("transaction failed: records are not acknowledged")
        if self._lacking:
            raise MemberLost(f"transaction failed: {self._lacking}")

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
            error = self._answers.get(timeout=TRANSACTION_S + 2 * _REACH_S)
        except queue.Empty:
            raise MemberLost("the producer does not come back from the end of a transaction") from None
        if error is not None:
            raise error

    def _abort(self, error: KafkaError) -> None:
        """End a failed transaction and say whose fault it was. Never returns.

        Only when the group refused it may this producer begin another one: by then every record is answered
        (`_answered`). A new seat's producer has an epoch of its own, and whatever the old one sent is refused.
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
        """Let the thread end; what is under way goes on until it ends by itself."""
        if self._calls is not None:
            self._calls.put(None)


def _retry(call: Callable[[float], object], until: float | None = None) -> None:
    """Make a call, which takes the seconds it may last, until it succeeds or it is `until` (monotonic s)."""
    until = time.monotonic() + TRANSACTION_S if until is None else until
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
