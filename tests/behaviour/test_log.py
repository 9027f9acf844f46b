"""What `segue.log.port` promises, on both logs: the embedded one and Kafka."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from confluent_kafka.admin import AdminClient

from segue.core.partition import partition_of
from segue.errors import Fenced, LogUnavailable, SettingsError
from segue.log import sqlite
from segue.log.port import Output, Record
from segue.topics import Topic
from tests.behaviour.seats import SMALL, Place, Seat, open_log

T = TypeVar("T")


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    if request.param == "sqlite":
        monkeypatch.setattr(sqlite, "EXPIRY_MS", 2500)  # Kafka's is the session timeout of log/kafka_member.py
        found = Place(str(tmp_path / "log.sqlite"), unique, 2.5)
    else:
        found = Place(request.getfixturevalue("kafka_bootstrap"), unique, 10)
    yield found
    found.log.close()


def values(found: Iterator[Record] | list[Record]) -> list[bytes | None]:
    return [record.value() for record in found]


def of_one_partition(count: int, topic: str) -> list[Output]:
    return [Output(topic, b"k", b"%d" % number) for number in range(count)]


# --- topics


def test_topics_are_created_once_and_their_partitions_are_known(place: Place) -> None:
    name = f"{place.name}.new"
    assert place.log.partitions(name) == 0
    assert place.log.create_topics([Topic(name, 3, SMALL)]) == [name]
    assert place.log.create_topics([Topic(name, 3, SMALL)]) == []
    assert place.log.partitions(name) == 3


def test_another_number_of_partitions_than_there_are_is_refused_by_the_settings_name(place: Place) -> None:
    name = place.topic("t", 3)
    with pytest.raises(SettingsError, match="SEGUE_PARTITIONS"):
        place.log.create_topics([Topic(name, 4, SMALL)])
    assert place.log.partitions(name) == 3


def test_a_topic_keeps_its_id_and_another_has_another(place: Place) -> None:
    one, other = place.topic("one"), place.topic("other")
    with place.seat(one) as first, place.seat(other, instance="b") as second:
        ids = first.member.topic_ids([one, other])
        assert ids.keys() == {one, other}
        assert second.member.topic_ids([one]) == {one: ids[one]}
        assert ids[one] != ids[other]


@pytest.mark.kafka
def test_a_topic_made_anew_in_kafka_has_another_id(kafka_bootstrap: str, unique: str) -> None:
    place = Place(kafka_bootstrap, unique, 10)
    topic, other = place.topic("again"), place.topic("other")
    with place.seat(other) as seat:
        before = seat.member.topic_ids([topic])
        admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
        admin.delete_topics([topic])[topic].result(10)
        eventually(lambda: place.log.create_topics([Topic(topic, 1, SMALL)]))  # the deletion is still under way
        assert eventually(lambda: seat.member.topic_ids([topic])) != before


def eventually(call: Callable[[], T]) -> T:
    """The first answer of something that the cluster has yet to hear of everywhere."""
    give_up = time.monotonic() + 15
    while True:
        try:
            if (answer := call()) or time.monotonic() > give_up:
                return answer
        except LogUnavailable:
            if time.monotonic() > give_up:
                raise
        time.sleep(0.05)


# --- records


def test_a_record_with_a_key_goes_where_every_reader_computes_it_to_be(place: Place) -> None:
    topic = place.topic("t", 5)
    keys = [f"客户-{number}".encode() for number in range(50)]
    place.log.append(Output(topic, key, key) for key in keys)
    with place.seat(topic) as seat:
        seat.until_owned(5).commit(*(Output(topic, b"tx" + key, key) for key in keys), up_to={(topic, 0): 0})
    found = list(place.log.read(topic))
    assert len(found) == 100
    assert all(record.partition() == partition_of(record.key() or b"", 5) for record in found)


def test_a_named_partition_wins_over_the_key(place: Place) -> None:
    topic = place.topic("t", 5)
    key = b"k"
    named = (partition_of(key, 5) + 1) % 5
    place.log.append([Output(topic, key, b"v", named)])
    assert [record.partition() for record in place.log.read(topic)] == [named]


def test_a_partition_is_read_in_the_order_of_writing_and_offsets_only_grow(place: Place) -> None:
    topic = place.topic("t", 2)
    place.log.append(Output(topic, str(n % 7).encode(), b"%d" % n) for n in range(300))
    place.log.append(Output(topic, str(n % 7).encode(), b"%d" % n) for n in range(300, 400))
    by_partition: dict[int, list[Record]] = defaultdict(list)
    for record in place.log.read(topic):
        by_partition[record.partition()].append(record)
    assert len(by_partition) == 2
    for found in by_partition.values():
        numbers = [int(record.value() or b"") for record in found]
        offsets = [record.offset() for record in found]
        assert numbers == sorted(numbers)
        assert offsets == sorted(set(offsets))


ANY: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]] | None]] = [
    (b"k", b"v", [("segue.err.code", b"schema"), ("binary", bytes(range(256))), ("empty", b"")]),
    (b"k", b"v", [("twice", b"1"), ("twice", b"2")]),
    (None, b"v", None),
    (b"k", None, None),
    (b"", b"", None),
    ("键".encode(), "值".encode(), [("来源", "门店".encode())]),
    (b"k", b"x" * 2 * 1024 * 1024, None),
]


def test_any_record_comes_back_as_it_was_written(place: Place) -> None:
    """Headers of any bytes, no key, no value, nothing at all, two megabytes."""
    topic, out = place.topic("t"), place.topic("out")
    before = time.time_ns() // 1_000_000
    place.log.append(Output(topic, key, value, 0, headers) for key, value, headers in ANY)
    with place.seat(topic) as seat:
        seat.until_read(len(ANY)).commit(*(Output(out, key, value, 0, headers) for key, value, headers in ANY))
    after = time.time_ns() // 1_000_000
    for found in (seat.records, list(place.log.read(out))):
        for record, (key, value, headers) in zip(found, ANY, strict=True):
            assert (record.key(), record.value()) == (key, value)
            assert list(record.headers() or []) == (headers or [])
            assert before - 5 <= record.timestamp()[1] <= after + 5


def test_what_was_acknowledged_is_there_for_whoever_opens_the_log_next(place: Place) -> None:
    topic = place.topic("t")
    place.log.append([Output(topic, b"k", b"v")])
    place.log.close()
    place.log = open_log(place.address)
    assert place.values(topic) == [b"v"]


def test_a_reader_in_no_group_reads_from_any_offset_and_moves_nobody(place: Place) -> None:
    topic = place.topic("t", 2)
    place.log.append([Output(topic, b"k", b"%d" % n, 1) for n in range(5)])
    with place.seat(topic) as seat:
        seat.until_read(5).commit(up_to={(topic, 1): 2})
        reader = place.log.reader()
        found: list[Record] = []
        ended: list[tuple[str, int]] = []

        def read(until: int) -> bool:
            polled = reader.poll(100, 0.1)
            found.extend(polled.records.get((topic, 1), ()))
            ended.extend(polled.ended)
            return len(found) >= until and (topic, 1) in ended

        reader.start((topic, 1), 3)
        eventually(lambda: read(2))
        assert values(found) == [b"3", b"4"]
        reader.pause((topic, 1))
        ended.clear()
        reader.start((topic, 1), None)
        eventually(lambda: read(7))
        assert values(found)[2:] == [b"0", b"1", b"2", b"3", b"4"]
        assert seat.member.committed([(topic, 1)]) == {(topic, 1): 2}
        assert reader.topic_ids([topic]) == seat.member.topic_ids([topic])
        reader.close()


def test_the_bounds_of_a_topic_are_what_is_kept_and_what_is_committed(place: Place) -> None:
    topic, out = place.topic("t", 2), place.topic("out")
    assert place.log.bounds(topic) == {0: (0, 0), 1: (0, 0)}
    place.log.append([Output(topic, b"k", b"%d" % n, 1) for n in range(5)])
    assert place.log.bounds(topic) == {0: (0, 0), 1: (0, 5)}
    with place.seat(topic) as seat:
        seat.until_read(5).commit(Output(out, b"k", b"v"))
    ends = place.log.bounds(out, settled=True)[0]
    assert ends[0] == 0
    assert ends[1] in (1, 2)  # the broker's own mark may end the transaction


def test_the_members_of_a_group_are_known_and_gone_when_they_left(place: Place) -> None:
    topic = place.topic("t", 2)
    group = f"{place.name}.group"
    assert place.log.members(group) == []
    with place.seat(topic) as one:
        one.until_owned(2)
        with place.seat(topic, instance="b") as two:
            eventually(lambda: (one.poll(), two.poll(), len(two.owned) == 1)[-1])
            assert place.log.members(group) == [f"{place.name}.a", f"{place.name}.b"]
        one.poll()
        assert place.log.members(group) == [f"{place.name}.a"]
    assert place.log.members(group) == []


def test_the_offsets_of_a_group_without_members_can_be_set(place: Place) -> None:
    topic = place.topic("t", 2)
    group, tps = f"{place.name}.group", [(topic, 0), (topic, 1)]
    place.log.append([Output(topic, b"k", b"%d" % n, 1) for n in range(5)])
    assert place.log.offsets(group, tps) == {}
    with place.seat(topic) as seat:
        seat.until_read(5).commit(up_to={(topic, 1): 2})
    assert place.log.offsets(group, tps) == {(topic, 1): 2}
    place.log.set_offsets(group, {(topic, 1): 4})
    assert place.log.offsets(group, tps) == {(topic, 1): 4}
    with place.seat(topic) as seat:
        assert seat.until_read(1).values() == [b"4"]


def test_an_empty_topic_reads_as_nothing(place: Place) -> None:
    assert list(place.log.read(place.topic("t", 2))) == []


# --- a group's position


def test_a_group_that_never_committed_has_no_offsets(place: Place) -> None:
    topic = place.topic("t", 2)
    with place.seat(topic) as seat:
        seat.until_owned(2)
        assert seat.member.committed([(topic, 0), (topic, 1)]) == {(topic, 0): None, (topic, 1): None}


def test_a_group_goes_on_where_it_committed_and_another_group_begins_at_the_beginning(place: Place) -> None:
    topic = place.topic("t")
    place.log.append(of_one_partition(5, topic))
    with place.seat(topic) as seat:
        seat.until_read(5).commit(up_to={(topic, 0): 3})
    with place.seat(topic, instance="b") as seat:
        assert seat.until_read(2).values() == [b"3", b"4"]
        assert seat.member.committed([(topic, 0)]) == {(topic, 0): 3}
    with place.seat(topic, group="other") as seat:
        assert seat.until_read(5).values() == [b"0", b"1", b"2", b"3", b"4"]


def test_a_member_is_told_where_partitions_end_and_comes_there_by_reading(place: Place) -> None:
    topic, out = place.topic("t", 2), place.topic("out")
    place.log.append(of_one_partition(3, topic))
    with place.seat(topic) as seat:
        seat.until_read(3)
        read = {(record.topic(), record.partition()): record.offset() + 1 for record in seat.records}
        assert seat.member.ends([(topic, 0), (topic, 1)]) == {(topic, 0): 0, (topic, 1): 0} | read
        seat.commit(*of_one_partition(2, out))
        # Kafka says that it is committed a moment before readers get it.
        before = eventually(lambda: seat.member.ends([(out, 0)])[out, 0])
        place.log.append(of_one_partition(1, out))
        last = max(record.offset() for record in place.log.read(out))
        assert last == before, "what was committed lies before it, and what comes later does not"
        assert seat.member.ends([]) == {}


def test_nothing_is_delivered_before_start_and_the_partition_is_ours_all_the_same(place: Place) -> None:
    topic = place.topic("t")
    place.log.append(of_one_partition(2, topic))
    with place.seat(topic) as seat:
        seat.starts = False
        seat.until_owned(1)
        for _ in range(3):
            seat.poll()
        assert (seat.records, seat.ended) == ([], [])
        seat.member.start((topic, 0), 1)
        assert seat.until_read(1).values() == [b"1"]


def test_start_rewinds_a_partition_that_is_being_read(place: Place) -> None:
    topic = place.topic("t")
    place.log.append(of_one_partition(3, topic))
    with place.seat(topic) as seat:
        seat.until_read(3)
        seat.member.start((topic, 0), 1)
        assert seat.until_read(5).values()[3:] == [b"1", b"2"]
        seat.member.start((topic, 0), None)
        assert seat.until_read(8).values()[5:] == [b"0", b"1", b"2"]


def test_a_paused_partition_delivers_nothing_until_it_is_started(place: Place) -> None:
    topic = place.topic("t", 2)
    with place.seat(topic) as seat:
        seat.until_owned(2)
        seat.member.pause((topic, 0))
        place.log.append([Output(topic, None, b"of 0", 0), Output(topic, None, b"of 1", 1)])
        assert seat.until_read(1).values() == [b"of 1"]
        seat.poll()
        seat.poll()
        assert seat.values() == [b"of 1"]
        seat.member.start((topic, 0), 0)
        assert seat.until_read(2).values() == [b"of 1", b"of 0"]


def test_the_end_of_each_partition_is_told_also_of_an_empty_one_and_again_after_more(place: Place) -> None:
    topic = place.topic("t", 2)
    place.log.append([Output(topic, None, b"1", 0)])
    with place.seat(topic) as seat:
        seat.until(lambda: {(topic, 0), (topic, 1)} <= set(seat.ended))
        assert values(seat.records) == [b"1"]
        seat.ended.clear()
        place.log.append([Output(topic, None, b"2", 0)])
        seat.until(lambda: (topic, 0) in seat.ended)
        assert values(seat.records) == [b"1", b"2"]


def test_a_seat_reads_all_topics_it_asked_for(place: Place) -> None:
    one, other = place.topic("one"), place.topic("other", 2)
    place.log.append([Output(one, b"k", b"1"), Output(other, b"k", b"2")])
    with place.seat(one, other) as seat:
        seat.until_read(2)
        assert seat.owned == {(one, 0), (other, 0), (other, 1)}
        assert {(record.topic(), record.value()) for record in seat.records} == {(one, b"1"), (other, b"2")}


# --- commits


def test_outputs_and_offsets_become_visible_together(place: Place) -> None:
    topic, out, more = place.topic("t"), place.topic("out"), place.topic("more", 3)
    place.log.append(of_one_partition(3, topic))
    with place.seat(topic) as seat:
        seat.until_read(3)
        assert seat.member.committed([(topic, 0)]) == {(topic, 0): None}
        seat.commit(Output(out, b"k", b"a"), Output(more, b"k", b"b", 2), Output(out, b"k", b"c"))
        assert seat.member.committed([(topic, 0)]) == {(topic, 0): 3}
    assert place.values(out) == [b"a", b"c"]
    assert place.values(more) == [b"b"]


def test_a_commit_without_outputs_moves_the_offsets(place: Place) -> None:
    topic = place.topic("t")
    with place.seat(topic) as seat:
        seat.until_owned(1).commit(up_to={(topic, 0): 0})
        assert seat.member.committed([(topic, 0)]) == {(topic, 0): 0}


def test_a_commit_that_breaks_off_leaves_nothing_behind_and_the_seat_goes_on(place: Place) -> None:
    topic, out = place.topic("t"), place.topic("out")
    place.log.append(of_one_partition(1, topic))

    def broken() -> Iterator[Output]:
        yield Output(out, b"k", b"half")
        raise ValueError("a bug in a processor")

    with place.seat(topic) as seat:
        seat.until_read(1)
        with pytest.raises(ValueError, match="a bug"):
            seat.member.commit(broken(), {(topic, 0): 1})
        assert seat.member.committed([(topic, 0)]) == {(topic, 0): None}
        seat.commit(Output(out, b"k", b"whole"))
    assert place.values(out) == [b"whole"]


def test_a_commit_that_was_begun_is_whole_once_it_has_finished(place: Place) -> None:
    topic, out = place.topic("t"), place.topic("out")
    place.log.append(of_one_partition(2, topic))
    with place.seat(topic) as seat:
        seat.until_read(2)
        for number in (1, 2):
            seat.member.begin([Output(out, b"k", b"%d" % number)], {(topic, 0): number})
            seat.until(seat.member.finished)
            seat.member.finish()
            assert seat.member.committed([(topic, 0)]) == {(topic, 0): number}
            assert place.values(out) == [b"1", b"2"][:number]


def test_a_reader_sees_a_commit_whole_or_not_at_all(place: Place) -> None:
    topic, out = place.topic("t"), place.topic("out", 2)
    seen_meanwhile: list[bytes | None] = []

    def outputs() -> Iterator[Output]:
        yield from (Output(out, None, b"first", p % 2) for p in range(100))
        seen_meanwhile.extend(values(place.log.read(out)))
        yield from (Output(out, None, b"second", p % 2) for p in range(100))

    with place.seat(topic) as writer:
        writer.until_owned(1).member.commit(outputs(), {(topic, 0): 0})
    assert seen_meanwhile == []
    assert values(place.log.read(out)) == ([b"first"] * 50 + [b"second"] * 50) * 2


# --- sharing


def test_two_members_share_the_partitions_and_each_has_one_owner(place: Place) -> None:
    topic = place.topic("t", 4)
    with place.seat(topic, instance="a") as first:
        first.until_owned(4)
        with place.seat(topic, instance="b") as second:
            shared(first, second)
            assert first.owned | second.owned == {(topic, p) for p in range(4)}
            place.log.append(Output(topic, None, b"%d" % p, p) for p in range(4))
            together(first, second, lambda: len(first.records) + len(second.records) >= 4)
            for seat in (first, second):
                assert {(topic, record.partition()) for record in seat.records} == seat.owned


def test_who_has_passed_a_partition_on_cannot_commit_it(place: Place) -> None:
    topic, out = place.topic("t", 2), place.topic("out")
    with place.seat(topic, instance="a") as first:
        first.until_owned(2)
        with place.seat(topic, instance="b") as second:
            shared(first, second)
            (passed_on,) = second.owned
            with pytest.raises(Fenced):
                first.commit(Output(out, b"k", b"not mine"), up_to={passed_on: 7})
            first.commit(Output(out, b"k", b"mine"), up_to=dict.fromkeys(first.owned, 0))
            assert second.member.committed([passed_on]) == {passed_on: None}
    assert place.values(out) == [b"mine"]


def test_the_others_take_over_at_once_when_a_member_leaves_in_order(place: Place) -> None:
    topic = place.topic("t", 2)
    place.log.append([Output(topic, None, b"1", 0), Output(topic, None, b"2", 0)])
    with place.seat(topic, instance="a") as first:
        first.until_read(2).commit(up_to={(topic, 0): 1})
    began = time.monotonic()
    with place.seat(topic, instance="b") as second:
        assert second.until_owned(2).until_read(1).values() == [b"2"]
    assert time.monotonic() - began < place.expiry_s


def test_a_member_that_dies_is_succeeded_and_one_that_slept_meanwhile_cannot_commit(place: Place) -> None:
    """One owner is killed, one stopped in the middle of a batch, as by a long pause of its machine."""
    topic, out = place.topic("t", 2), place.topic("out")
    place.log.append(Output(topic, None, b"%d" % p, p) for p in range(2))
    with place.owner(topic, out, "killed") as killed, place.owner(topic, out, "stopped") as stopped:
        assert (killed.says(), stopped.says()) == ("owns", "owns")
        assert stopped.told("hold") == "done"
        stopped.process.send_signal(signal.SIGSTOP)
        killed.process.kill()
        with place.seat(topic, instance="successor") as successor:
            successor.until(lambda: len(successor.owned) == 2, place.expiry_s + 20).until_read(2)
            successor.commit(Output(out, b"k", b"successor"))
            stopped.process.send_signal(signal.SIGCONT)
            assert stopped.told("commit") in ("Fenced", "MemberLost")
            time.sleep(2)  # by now its client has heard what happened
            assert stopped.told("commit") in ("Fenced", "MemberLost")
            assert successor.member.committed([(topic, 0), (topic, 1)]) == {(topic, 0): 1, (topic, 1): 1}
    assert place.values(out) == [b"successor"]


def shared(first: Seat, second: Seat) -> None:
    """Poll both until they share the partitions evenly."""
    total = len(first.owned)
    together(first, second, lambda: len(first.owned) == len(second.owned) == total // 2)


def together(first: Seat, second: Seat, done: Callable[[], object]) -> None:
    """Poll both, in turns, until something holds."""
    give_up = time.monotonic() + 30
    while not done():
        assert time.monotonic() < give_up, f"{first.owned} and {second.owned}"
        first.poll(0.05)
        second.poll(0.05)
