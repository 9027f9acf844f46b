"""What only Kafka's adapter can meet: a seat whose name another takes, a transaction given up, a call that hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from segue.errors import Fenced, MemberLost
from segue.log import kafka_ends, kafka_transactions
from segue.log.kafka import KafkaLog
from segue.log.kafka_ends import Ends
from segue.log.kafka_member import KafkaMember
from segue.log.kafka_transactions import Transactions
from segue.log.port import TP, Output
from segue.topics import Topic
from tests.support.kafka_broker import KafkaBroker, free_ports
from tests.support.kafka_cluster import advertised, listener
from tests.support.proxy import Proxy
from tests.support.stack import eventually


@pytest.fixture(autouse=True)
def every_seat_is_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of a test that failed too: a client left open spins, and those that follow take minutes."""
    join, seats = KafkaLog.join, list[KafkaMember]()

    def joined(log: KafkaLog, group: str, topics: Sequence[str], instance: str) -> KafkaMember:
        seats.append(join(log, group, topics, instance))
        return seats[-1]

    monkeypatch.setattr(KafkaLog, "join", joined)
    yield
    for seat in seats:
        seat.close()


def polled(member: KafkaMember, what: Callable[[], bool]) -> Callable[[], bool]:
    def poll() -> bool:
        member.poll(10, 0.1)
        return what()

    return poll


def test_a_seat_whose_name_another_process_takes_is_lost_and_says_so(kafka_bootstrap: str, unique: str) -> None:
    log = KafkaLog(kafka_bootstrap, keeps_names=True)
    log.create_topics([Topic(unique, 2, {})])
    first = log.join(f"g{unique}", [unique], "one")
    eventually(polled(first, lambda: bool(first._owned)), 30, "the first's partitions")
    second = log.join(f"g{unique}", [unique], "one")
    with pytest.raises(MemberLost):
        eventually(polled(first, polled(second, lambda: False)), 60)
    first.close()
    eventually(polled(second, lambda: len(second._owned) == 2), 30, "the second's partitions")
    second.close()


def test_a_seat_whose_broker_gives_no_sign_is_lost_and_the_next_one_works(
    kafka_broker: KafkaBroker, unique: str
) -> None:
    """A client that was told of no broker has none to ask for good; who would say so is silent too."""
    log = KafkaLog(kafka_broker.bootstrap)
    log.create_topics([Topic(unique, 1, {})])
    member = log.join(f"g{unique}", [unique], "one")
    eventually(polled(member, lambda: bool(member._owned)), 30, "its partition")
    kafka_broker.pause()
    with pytest.raises(MemberLost):
        eventually(polled(member, lambda: False), 60)
    kafka_broker.resume()
    member.close()
    after = log.join(f"g{unique}", [unique], "one")
    eventually(polled(after, lambda: bool(after._owned)), 60, "its partition")
    after.close()


def test_who_hears_nothing_of_its_broker_is_not_at_the_end_of_its_partitions(
    kafka_broker: KafkaBroker, unique: str
) -> None:
    log = KafkaLog(kafka_broker.bootstrap)
    log.create_topics([Topic(unique, 1, {})])
    member, tp = log.join(f"g{unique}", [unique], "one"), (unique, 0)
    eventually(polled(member, lambda: bool(member._owned)), 30, "its partition")
    member.start(tp, 0)
    eventually(lambda: tp in member.poll(10, 0.1).ended, 30, "its end")
    kafka_broker.pause()
    eventually(lambda: tp in member.poll(10, 0.1).behind, 30, "a doubt")
    kafka_broker.resume()
    eventually(lambda: tp in member.poll(10, 0.1).ended, 30, "its end again")
    member.close()


def test_who_was_stopped_is_at_no_end_before_the_broker_says_so(
    kafka_bootstrap: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came meanwhile may not have been fetched when the first poll returns."""
    log, tp = KafkaLog(kafka_bootstrap), (unique, 0)
    log.create_topics([Topic(unique, 1, {})])
    log.append([Output(unique, b"k", b"v")])
    ends = Ends(AdminClient({"bootstrap.servers": kafka_bootstrap}))
    assert ends.doubted(True, {tp: 0}) == ([], [])
    monkeypatch.setattr(kafka_ends, "STILL_S", 0.0)  # for however long
    assert ends.doubted(False, {tp: 0}) == ([tp], [])
    assert ends.doubted(False, {tp: 1}) == ([], [tp])


def test_what_was_said_before_a_record_came_makes_no_end_of_now(kafka_bootstrap: str, unique: str) -> None:
    log, tp = KafkaLog(kafka_bootstrap), (unique, 0)
    log.create_topics([Topic(unique, 1, {})])
    ends = Ends(AdminClient({"bootstrap.servers": kafka_bootstrap}))

    def quietly(at: int) -> tuple[list[TP], list[TP]]:
        ends.left()
        return ends.doubted(False, {tp: at})

    def told() -> bool:
        return bool(ends._question) and all(future.done() for future in ends._question.values())

    eventually(lambda: told() or (quietly(0), told())[1], 30, "a question and what is said to it")
    log.append([Output(unique, b"k", b"v")])
    assert tp not in quietly(0)[1]
    eventually(lambda: quietly(0) == ([tp], []), 30, "the end as it is now")
    log.close()


def test_an_end_is_told_once(kafka_bootstrap: str, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told again would be of before: more may have come by then."""
    monkeypatch.setattr(kafka_ends, "STILL_S", 60.0)
    monkeypatch.setattr(kafka_ends, "QUIET_S", 60.0)
    log, tp = KafkaLog(kafka_bootstrap), (unique, 0)
    log.create_topics([Topic(unique, 1, {})])
    log.append([Output(unique, b"k", b"v")])
    member = log.join(f"g{unique}", [unique], "one")
    eventually(polled(member, lambda: bool(member._owned)), 30, "its partition")
    member.start(tp, 0)
    eventually(lambda: tp in member.poll(10, 0.1).ended, 30, "its end")
    assert [member.poll(10, 0.1).ended for _ in range(10)] == [[]] * 10
    member.start(tp, 0)
    eventually(lambda: tp in member.poll(10, 0.1).ended, 30, "its end, read again")
    member.close()
    log.close()


def test_who_outlives_a_restart_of_the_broker_is_told_where_its_partitions_end(
    kafka_broker: KafkaBroker, unique: str
) -> None:
    """A client that asks for nothing else keeps the leaders of before for five minutes, and is refused."""
    log, tp = KafkaLog(kafka_broker.bootstrap), (unique, 0)
    log.create_topics([Topic(unique, 1, {})])
    log.append([Output(unique, b"k", b"v")])
    waiting, quiet = (Ends(AdminClient({"bootstrap.servers": kafka_broker.bootstrap, "log_level": 0})) for _ in "ab")
    for ends in (waiting, quiet):  # a new client has to find the broker first, and `now` waits for nobody
        eventually(lambda ends=ends: ends.now([tp]) == {tp: 1}, 30, "a first answer")
    kafka_broker.restart()
    eventually(lambda: waiting.now([tp]) == {tp: 1}, 60, "an answer that is waited for")
    quiet.left()
    time.sleep(kafka_ends.QUIET_S)  # so long is it believed that nothing came

    def surely() -> bool:
        quiet.left()
        return quiet.doubted(False, {tp: 1}) == ([], [tp])

    eventually(surely, 60, "an answer that comes later")
    log.close()


def test_a_seat_that_is_not_told_its_offsets_is_lost(kafka_broker: KafkaBroker, unique: str) -> None:
    """Seen after a broker's restart: the client reaches the broker and never finds the group's coordinator again."""
    log = KafkaLog(kafka_broker.bootstrap)
    log.create_topics([Topic(unique, 1, {})])
    member = log.join(f"g{unique}", [unique], "one")
    eventually(polled(member, lambda: bool(member._owned)), 30, "its partition")
    kafka_broker.pause()
    with pytest.raises(MemberLost):
        member.committed([(unique, 0)])
    kafka_broker.resume()
    member.close()


def test_an_offset_of_a_topic_that_is_no_more_is_none_of_its_successor(kafka_bootstrap: str, unique: str) -> None:
    """Whoever was at work while it was made anew commits once more where it stood."""
    log, tp = KafkaLog(kafka_bootstrap), (unique, 0)
    log.create_topics([Topic(unique, 1, {})])
    member = log.join(f"g{unique}", [unique], "one")
    eventually(polled(member, lambda: tp in member._owned), 30, "its partition")
    assert member.committed([tp]) == {tp: None}
    member.commit((), {tp: 7})
    assert member.committed([tp]) == {tp: 7}
    stale = dict(member._topic_ids)
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    admin.delete_topics([unique])[unique].result(10)
    eventually(lambda: log.partitions(unique) == 0, 30, "its end")
    log.create_topics([Topic(unique, 1, {})])
    eventually(polled(member, lambda: log.partitions(unique) == 1 and tp in member._owned), 30, "its successor")
    member._topic_ids = stale
    member.commit((), {tp: 7})
    assert member.committed([tp]) == {tp: None}
    member.close()


def test_a_transaction_that_was_given_up_half_way_costs_the_seat() -> None:
    """Its producer would take nothing but the same call again."""
    transactions = Transactions.__new__(Transactions)
    with pytest.raises(MemberLost):
        transactions._abort(KafkaError(KafkaError._TIMED_OUT, "commit timed out", False, True))


def test_an_abort_that_was_given_up_half_way_costs_the_seat_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def abort_transaction(self, timeout: float) -> None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "abort timed out", False, True))

    monkeypatch.setattr(kafka_transactions, "TRANSACTION_S", 0.0)
    transactions = Transactions.__new__(Transactions)
    transactions._producer = Stuck()
    with pytest.raises(MemberLost):
        transactions._abort(KafkaError(KafkaError._TRANSPORT, "no broker", False, False))


def test_a_partition_that_ends_with_a_transactions_mark_is_read_to_its_end(
    kafka_bootstrap: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last record lies the mark, where no record will ever be; both may come with one poll."""
    log = KafkaLog(kafka_bootstrap)
    log.create_topics([Topic(unique, 1, {})])
    writer = log.join(f"w{unique}", [unique], "one")
    writer.commit([Output(unique, b"k", b"v") for _ in range(3)], {})
    writer.close()
    reader = log.join(f"g{unique}", [unique], "one")
    eventually(polled(reader, lambda: bool(reader._owned)), 30, "its partition")
    reader.start((unique, 0), 0)
    time.sleep(2)  # until the records and the end are both there to be polled
    records = reader.poll(10, 1).records
    assert len(records[unique, 0]) == 3
    monkeypatch.setattr(kafka_ends, "STILL_S", -1.0)  # from now on what was read before is not enough
    eventually(lambda: (unique, 0) in reader.poll(10, 0.1).ended, 20, "the partition's end")
    reader.close()


def slowly(topic: str, named: bool = False) -> Iterator[Output]:
    """Records in so many requests that several are under way while the topic's leaders are still being made."""
    for number in range(200):
        yield Output(topic, b"k%d" % (number % 60), b"%d" % number, number % 6 if named else -1)
        if number % 5 == 0:
            time.sleep(0.001)


def missing(log: KafkaLog, topic: str) -> list[bytes]:
    found = {record.value() for record in log.read(topic)}
    return [output.value for output in slowly(topic) if output.value is not None and output.value not in found]


def test_what_is_acknowledged_is_in_the_log_of_a_topic_that_was_only_just_made(
    kafka_bootstrap: str, unique: str
) -> None:
    """With several requests under way the broker lost records of about every third such topic (docs/adr/0014)."""
    log = KafkaLog(kafka_bootstrap)
    lost = {}
    for number in range(15):
        topic = f"{unique}.{number}"
        log.create_topics([Topic(topic, 6, {})])
        log.append(slowly(topic))
        lost[topic] = missing(log, topic)
    log.close()
    assert not any(lost.values()), lost


@pytest.mark.parametrize("named", [False, True], ids=["by key", "by partition"])
def test_a_transaction_that_lacks_what_was_acknowledged_ends_with_its_seat(
    kafka_bootstrap: str, unique: str, named: bool
) -> None:
    """It has several requests under way, and looks before it ends (docs/adr/0020)."""
    log = KafkaLog(kafka_bootstrap)
    log.create_topics([Topic(f"{unique}.in", 1, {})])
    seats = [log.join(f"g{unique}", [f"{unique}.in"], "one")]
    lost = {}
    for number in range(15):
        topic = f"{unique}.{number}"
        log.create_topics([Topic(topic, 6, {})])
        try:
            seats[-1].commit(slowly(topic, named), {})
        except MemberLost:
            seats[-1].close()
            seats.append(log.join(f"g{unique}", [f"{unique}.in"], "one"))
            seats[-1].commit(slowly(topic, named), {})
        lost[topic] = missing(log, topic)
    seats[-1].close()
    log.close()
    assert not any(lost.values()), lost


def test_who_loses_a_partition_between_the_two_ends_of_a_commit_is_refused(kafka_bootstrap: str, unique: str) -> None:
    """By then it is of the group's newer generation, and the broker does not ask whose the partitions are."""
    log = KafkaLog(kafka_bootstrap)
    log.create_topics([Topic(unique, 2, {}), Topic(f"{unique}.out", 1, {})])
    first = log.join(f"g{unique}", [unique], "one")
    eventually(polled(first, lambda: len(first._owned) == 2), 30, "its partitions")
    first.begin([Output(f"{unique}.out", b"k", b"not mine any more")], {(unique, 0): 1, (unique, 1): 1})
    second = log.join(f"g{unique}", [unique], "two")
    eventually(polled(first, polled(second, lambda: len(second._owned) == 1 == len(first._owned))), 30, "one each")
    with pytest.raises(Fenced):
        first.finish()
    (mine,) = first._owned
    first.commit([Output(f"{unique}.out", b"k", b"mine")], {mine: 1})
    assert [record.value() for record in log.read(f"{unique}.out")] == [b"mine"]
    assert first.committed([mine]) == {mine: 1}
    first.close()
    second.close()


def test_a_transaction_that_is_refused_over_a_slow_way_has_nothing_under_way_and_the_next_one_ends(
    unique: str,
) -> None:
    """Requests that were thrown away with the first would be missed at the second, and cost the seat."""
    port, second, by = free_ports(3)
    properties = advertised(port, by)
    with (
        KafkaBroker(port=port, properties=properties, more_listeners=listener(second)) as broker,
        Proxy(("127.0.0.1", second), port=by) as proxy,
    ):
        near, far = KafkaLog(broker.bootstrap), KafkaLog(f"127.0.0.1:{by}")
        near.create_topics([Topic(unique, 2, {}), Topic(f"{unique}.out", 12, {})])
        first = far.join(f"g{unique}", [unique], "one")
        eventually(polled(first, lambda: len(first._owned) == 2), 30, "its partitions")
        first.commit([Output(f"{unique}.out", b"k", b"before", number % 12) for number in range(24)], {})
        stale = first._consumer.consumer_group_metadata()
        other = near.join(f"g{unique}", [unique], "two")
        eventually(polled(first, polled(other, lambda: len(other._owned) == 1 == len(first._owned))), 30, "one each")
        again = [Output(f"{unique}.out", b"k", b"%d" % number, number % 12) for number in range(240)]
        proxy.delay_s = 0.2  # the offsets are refused while the records are still on their way
        first._transactions.begin(again, [TopicPartition(unique, 0, 1)], stale)
        with pytest.raises(Fenced):
            first.finish()
        (mine,) = first._owned
        first.commit(again, {mine: 1})
        proxy.delay_s = 0.0
        found = Counter(record.value() for record in near.read(f"{unique}.out"))
        assert found == Counter({b"before": 24} | {output.value: 1 for output in again})
        first.close()
        other.close()


def test_a_transaction_ends_though_its_process_computes_without_a_pause(kafka_bootstrap: str, unique: str) -> None:
    """The client takes Python's lock for each delivered record. Whoever ends the transaction in another thread got it
    once in 5 ms, and not at all while others let go of it for a moment again and again."""
    log = KafkaLog(kafka_bootstrap)
    log.create_topics([Topic(unique, 1, {})])
    member = log.join(f"g{unique}", [unique], "one")
    eventually(polled(member, lambda: bool(member._owned)), 30, "its partition")
    member.begin((Output(unique, b"k", b"v" * 100) for _ in range(60_000)), {(unique, 0): 0})
    until = time.monotonic() + 8
    while not member.finished():
        for _ in range(20_000):  # half a millisecond of work
            pass
        assert time.monotonic() < until, "60,000 times 5 ms"
    member.finish()
    assert sum(1 for _ in log.read(unique)) == 60_000
    member.close()


def test_a_process_that_stands_still_says_where_and_ends() -> None:
    stuck = """
import time
from segue import runtime
runtime.STUCK_S = 0.5
runtime.watched(lambda: False)()
def a_call_that_never_returns(): time.sleep(60)
a_call_that_never_returns()
"""
    done = subprocess.run([sys.executable, "-c", stuck], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "a_call_that_never_returns" in done.stderr
