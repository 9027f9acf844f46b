"""The client, over HTTP on a whole embedded Segue and over a real Kafka."""

import time
import uuid
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import msgspec
import orjson
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from segue.client import Client, SeveralUndelivered, event
from segue.core.event import Event, Rejected, decode
from segue.core.partition import partition_of
from segue.errors import Refused, SettingsError, Undelivered
from segue.routing import NO_USABLE_IDENTIFIER, Routed, in_order, route
from segue.settings import Settings
from segue.topics import event_topic
from tests.support.stack import ApiServer, EmbeddedStack

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    with EmbeddedStack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def api(stack: EmbeddedStack) -> Iterator[str]:
    with ApiServer(stack.settings) as running:
        yield running.ready().url


class Deliveries:
    """What `on_delivery` was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Undelivered | None]] = []

    def __call__(self, event_id: str, error: Undelivered | None) -> None:
        self.told.append((event_id, error))

    @property
    def acknowledged(self) -> list[str]:
        return [event_id for event_id, error in self.told if error is None]


def who() -> str:
    return f"u-{uuid.uuid4().hex[:12]}"


def fields(user: str, **more: Any) -> dict[str, Any]:
    return {"type": "page.viewed", "channel": "web", "identifiers": {"user_id": user}, "time": NOW} | more


def entries(api: str, user: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{api}/v1/customers/user_id:{user}/timeline")
    found: list[dict[str, Any]] = answer.json()["entries"] if answer.status_code == 200 else []
    return found


# --- building events


def test_a_built_event_is_a_valid_cloudevent_with_everything_that_was_said() -> None:
    made = event(
        type="order.delayed",
        channel="web",
        identifiers=[{"type": "email", "value": "ana@example.com", "level": "verified"}],
        time=datetime(2026, 3, 1, 17, 30, tzinfo=timezone(timedelta(hours=8))),
        touchpoint="/orders",
        actor={"kind": "agent", "id": "a7"},
        item={"kind": "order", "id": "A1", "due_at": NOW},
        wait_ms=1200,
        sent_at=NOW,
        properties={"basket": 3},
        text=None,
    )
    read = decode(msgspec.json.encode(made))
    assert isinstance(read, Event)
    assert read.time == NOW
    assert uuid.UUID(read.id).version == 4
    assert read.data.item is not None
    assert read.data.item.due_at == NOW
    assert bytes(read.data.properties) == b'{"basket":3}'
    assert "text" not in made["data"]


def test_a_time_without_a_zone_is_refused_before_anything_is_built() -> None:
    with pytest.raises(Refused) as refused:
        event(**fields("u1", time=datetime(2026, 3, 1)))
    assert (refused.value.reason, refused.value.field) == ("time_without_zone", "$.time")


@pytest.mark.parametrize(
    ("wrong", "reason", "field"),
    [
        ({"channel": "fax"}, "unknown_channel", "$.channel"),
        ({"time": "2026-03-01T09:30:00"}, "time_without_zone", "$.time"),
        ({"identifiers": {}}, "missing_identifiers", "$.data.identifiers"),
        ({"identifiers": {"user_id": "null"}}, "missing_identifiers", "$.data.identifiers"),
        ({"wait_ms": "long"}, "schema", "$.data.wait_ms"),
        ({"colour": "red"}, "schema", "$.data.colour"),
        ({"properties": {"x": "y" * 300_000}}, "too_large", "$"),
        ({"properties": {"x": object()}}, "schema", "$"),
    ],
)
def test_a_wrong_event_is_refused_at_once_naming_the_field(
    api: str, wrong: dict[str, Any], reason: str, field: str
) -> None:
    deliveries = Deliveries()
    with Client(url=api, on_delivery=deliveries) as client, pytest.raises(Refused) as refused:
        client.send(**fields("u1", **wrong))
    assert (refused.value.reason, refused.value.field) == (reason, field)
    assert refused.value.detail
    assert deliveries.told == []


def test_the_client_wants_exactly_one_address() -> None:
    for wrong in ({}, {"kafka": "localhost:9092", "url": "http://localhost"}):
        with pytest.raises(SettingsError, match="give either kafka"):
            Client(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"no\.such\.option"):
        Client(kafka="localhost:9092", options={"no.such.option": "1"})


def test_the_routing_key_is_the_strongest_identifier_in_one_spelling() -> None:
    found = sent_with({"type": "device_id", "value": "d1"}, {"type": "email", "value": " Ana@Example.COM "})
    assert isinstance(found, Routed)
    assert found.names == ("email:ana@example.com", "device_id:d1")
    assert found.key == b"email:ana@example.com"
    number = {"type": "phone", "value": "138 0013 8000"}
    national = sent_with(number, region="CN")
    assert isinstance(national, Routed)
    assert national.names == ("phone:+8613800138000",)
    assert sent_with(number) == NO_USABLE_IDENTIFIER


def sent_with(*identifiers: dict[str, str], region: str | None = None) -> Routed | Rejected:
    """What becomes of an event with these identifiers."""
    event = {
        "specversion": "1.0", "id": "e1", "source": "/shop", "type": "page.viewed", "channel": "web",
        "time": "2026-03-01T09:00:00Z", "data": {"identifiers": identifiers},
    }  # fmt: skip
    return route(orjson.dumps(event), region)


def routed(channel: str, value: str, **identifiers: str) -> Routed:
    sent = event(type="page.viewed", channel=channel, identifiers=identifiers, time=datetime.now(UTC), id=value)
    found = route(msgspec.json.encode(sent))
    assert isinstance(found, Routed)
    return found


def test_a_customer_who_changes_channel_waits_for_what_came_before() -> None:
    sent = [
        routed("web", "1", user_id="a"),
        routed("chat", "2", user_id="b"),
        routed("web", "3", user_id="a"),
        routed("chat", "4", user_id="a"),
    ]
    assert [[msgspec.json.decode(output.value)["id"] for output in run] for run in in_order(sent)] == [
        ["1", "2", "3"],
        ["4"],
    ]
    assert list(in_order([])) == []


def test_a_visitor_who_signs_in_waits_for_what_came_before_though_the_key_is_another() -> None:
    sent = [routed("web", "1", anonymous_id="x"), routed("web", "2", user_id="a", anonymous_id="x")]
    assert len(list(in_order(sent))) == 2


# --- over HTTP


def test_what_was_sent_over_http_is_acknowledged_on_flush_and_readable(stack: EmbeddedStack, api: str) -> None:
    user, deliveries = who(), Deliveries()
    with Client(url=api, on_delivery=deliveries) as client:
        first = client.send(**fields(user))
        second = client.send(event(**fields(user, id=f"{user}-2")))
        assert deliveries.told == []
        client.flush()
        assert deliveries.acknowledged == [first, second]
        client.send(**fields(user))
    assert len(deliveries.acknowledged) == 3  # leaving the block flushes
    stack.drain()
    assert len(entries(api, user)) == 3


def test_a_batch_goes_out_by_itself_when_500_are_queued_or_a_megabyte(stack: EmbeddedStack, api: str) -> None:
    user, deliveries = who(), Deliveries()
    with Client(url=api, on_delivery=deliveries) as client:
        for _ in range(501):
            client.send(**fields(user))
        assert len(deliveries.acknowledged) == 500
        for _ in range(6):
            client.send(**fields(user, properties={"x": "y" * 200_000}))
        assert len(deliveries.acknowledged) == 506  # five of 200 KB fit into a megabyte, beside the 501st
    assert len(deliveries.acknowledged) == 507


def test_a_customers_next_channel_waits_for_the_last_one(api: str) -> None:
    user, deliveries = who(), Deliveries()
    with Client(url=api, on_delivery=deliveries) as client:
        web = client.send(**fields(user))
        client.send(**fields(who(), channel="chat"))
        assert deliveries.told == []
        client.send(**fields(user, channel="chat"))
        assert web in deliveries.acknowledged
        assert len(deliveries.told) == 2


def test_what_the_collector_refuses_is_told_by_id_and_the_rest_arrives(api: str) -> None:
    # The client reads national numbers, the deployment does not: its word counts.
    deliveries = Deliveries()
    with Client(url=api, phone_region="CN", on_delivery=deliveries) as client:
        good = client.send(**fields(who()))
        bad = client.send(**fields("", identifiers={"phone": "13800138000"}))
        with pytest.raises(Refused, match="missing_identifiers") as refused:
            client.flush()
        assert refused.value.field == "$.data.identifiers"
        assert deliveries.acknowledged == [good]
        assert isinstance(dict(deliveries.told)[bad], Refused)
        client.flush()  # told once


def test_several_refusals_come_together_with_their_ids(api: str) -> None:
    client = Client(url=api, phone_region="CN")
    ids = [client.send(**fields("", identifiers={"phone": f"1380013800{n}"})) for n in range(3)]
    with pytest.raises(SeveralUndelivered, match="3 events") as several:
        client.close()
    assert list(several.value.failures) == ids
    assert all(isinstance(error, Refused) for error in several.value.failures.values())


def test_with_nobody_at_the_address_the_error_names_it_and_comes_in_time() -> None:
    deliveries = Deliveries()
    client = Client(url="http://127.0.0.1:1", timeout_s=1, on_delivery=deliveries)
    sent = client.send(**fields("u1"))
    began = time.monotonic()
    with pytest.raises(Undelivered, match=r"1 events not acknowledged by Segue at http://127\.0\.0\.1:1"):
        client.flush()
    assert time.monotonic() - began < 2
    assert deliveries.told == []  # still queued
    with pytest.raises(Undelivered):
        client.close(0.1)
    assert [event_id for event_id, _ in deliveries.told] == [sent]
    assert isinstance(deliveries.told[0][1], Undelivered)


def test_an_address_that_is_not_a_collector_is_told_without_retries(api: str) -> None:
    client = Client(url=f"{api}/elsewhere", timeout_s=10)
    client.send(**fields("u1"))
    began = time.monotonic()
    with pytest.raises(Undelivered, match="404"):
        client.flush()
    assert time.monotonic() - began < 2
    with pytest.raises(Undelivered):
        client.close(0.1)


def test_events_queued_while_the_collector_cannot_take_them_arrive_when_it_can(tmp_path: Path) -> None:
    user, deliveries = who(), Deliveries()
    with ApiServer(Settings(data_dir=tmp_path)) as server:  # no topics yet: it answers 503
        client = Client(url=server.url, on_delivery=deliveries)
        client.send(**fields(user))
        with pytest.raises(Undelivered, match="503"):
            client.flush(0.5)
        with EmbeddedStack(tmp_path) as late:
            client.flush()
            client.close()
            late.drain()
            assert len(entries(server.ready().url, user)) == 1
    assert len(deliveries.acknowledged) == 1


def test_an_error_in_the_block_is_not_hidden_by_what_could_not_be_sent() -> None:
    def work() -> None:
        with Client(url="http://127.0.0.1:1", timeout_s=0.1) as client:
            client.send(**fields("u1"))
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError) as error:
        work()
    assert "not acknowledged" in error.value.__notes__[0]


# --- over Kafka


def make_topics(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    existing = admin.list_topics(timeout=10).topics
    names = [name for name in (event_topic("web"), event_topic("chat")) if name not in existing]
    if names:
        for done in admin.create_topics([NewTopic(name, 3, 1) for name in names]).values():
            done.result(15)


def records_of(bootstrap: str, topic: str, key: bytes) -> list[tuple[int, bytes]]:
    """Partition and value of every record with this key."""
    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    try:
        parts = list(reader.list_topics(topic, 10).topics[topic].partitions)
        found, left = [], 0
        for part in parts:
            left += reader.get_watermark_offsets(TopicPartition(topic, part), 10)[1]
        reader.assign([TopicPartition(topic, part, 0) for part in parts])
        until = time.monotonic() + 20
        while left > 0 and time.monotonic() < until:
            record = reader.poll(1)
            if record is not None and record.error() is None:
                left -= 1
                if record.key() == key:
                    found.append((record.partition(), record.value()))
        return found
    finally:
        reader.close()


def test_what_was_sent_over_kafka_stands_in_the_topic_under_the_collectors_key(kafka_bootstrap: str) -> None:
    make_topics(kafka_bootstrap)
    user, deliveries = who(), Deliveries()
    email = f"{user}@Example.COM"
    with Client(kafka=kafka_bootstrap, on_delivery=deliveries) as client:
        ids = [client.send(**fields("", identifiers={"device_id": "d1", "email": email})) for _ in range(20)]
        client.flush()
        assert deliveries.acknowledged == ids
    key = f"email:{user}@example.com".encode()
    found = records_of(kafka_bootstrap, event_topic("web"), key)
    assert len(found) == 20
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    partitions = len(admin.list_topics(timeout=10).topics[event_topic("web")].partitions)
    assert {partition for partition, _ in found} == {partition_of(key, partitions)}
    events = [decode(value) for _, value in found]
    assert [e.id for e in events if isinstance(e, Event)] == ids


def test_over_kafka_too_the_next_channel_waits_for_the_last_one(kafka_bootstrap: str) -> None:
    make_topics(kafka_bootstrap)
    user, deliveries = who(), Deliveries()
    with Client(kafka=kafka_bootstrap, on_delivery=deliveries) as client:
        web = client.send(**fields(user))
        client.send(**fields(user, channel="chat"))
        assert deliveries.acknowledged[:1] == [web]
    assert len(deliveries.acknowledged) == 2


@pytest.mark.parametrize("by", ["kafka", "url"])
def test_what_on_delivery_raises_comes_out_of_the_call_and_the_client_goes_on(
    kafka_bootstrap: str, api: str, by: str
) -> None:
    make_topics(kafka_bootstrap)
    told: list[str] = []
    known: dict[str, int] = {}

    def look_up(event_id: str, error: Undelivered | None) -> None:
        told.append(event_id)
        if len(told) == 1:
            known[event_id] += 1

    user = who()
    with Client(**{by: kafka_bootstrap if by == "kafka" else api}, on_delivery=look_up) as client:
        with pytest.raises(KeyError, match=r"^'.+'$"):
            deque(iter(lambda: client.send(**fields(user)), ""))  # until a call finds the first acknowledged
        count = len(told)
        client.send(**fields(user, channel="chat"))
    assert len(told) > count
    assert len(set(told)) == len(told)


def test_the_collector_and_the_client_put_a_customer_into_the_same_partition(
    kafka_bootstrap: str, tmp_path: Path
) -> None:
    make_topics(kafka_bootstrap)
    user = who()
    with ApiServer(Settings(data_dir=tmp_path, kafka=kafka_bootstrap)) as server:
        for client in (Client(url=server.url), Client(kafka=kafka_bootstrap)):
            with client:
                client.send(**fields(user))
    found = records_of(kafka_bootstrap, event_topic("web"), f"user_id:{user}".encode())
    assert len(found) == 2
    assert found[0][0] == found[1][0]


def test_without_a_broker_the_error_names_the_address_and_comes_in_time() -> None:
    deliveries = Deliveries()
    client = Client(kafka="127.0.0.1:1", timeout_s=1, on_delivery=deliveries)
    sent = client.send(**fields("u1"))
    began = time.monotonic()
    with pytest.raises(Undelivered, match=r"1 events not acknowledged by Kafka at 127\.0\.0\.1:1 within 1 s"):
        client.flush()
    with pytest.raises(Undelivered):
        client.close(0.1)
    assert time.monotonic() - began < 5
    assert [event_id for event_id, _ in deliveries.told] == [sent]
