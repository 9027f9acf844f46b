"""Redis, the broker or a processor goes away, at the start or in flight: waited out, nothing lost or doubled.

The oracle counts what was sent, per customer and per answer; it shares no code with Segue.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import redis
from confluent_kafka.admin import AdminClient

from segue import runtime
from segue.embedded.valkey import EmbeddedValkey
from segue.log.port import Output
from segue.settings import Settings
from segue.topics import INTERACTIONS, JOURNEY_STEPS, SIGNALS
from tests.support.kafka_broker import KafkaBroker, free_ports
from tests.support.processes import Processes, without_topics
from tests.support.stack import eventually

CUSTOMERS = 40


class Sender(threading.Thread):
    """Sends numbered events at a steady pace until told to stop; every tenth is a poor survey answer."""

    def __init__(self, settings: Settings, per_s: int = 200) -> None:
        super().__init__(daemon=True)
        self._log, self._per_s = runtime.open_log(settings), per_s
        self._done = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self._done.is_set():
            chunk = self._per_s // 10
            self._log.append([event(n) for n in range(self.sent, self.sent + chunk)])
            self.sent += chunk
            time.sleep(0.1)

    def stop(self) -> int:
        self._done.set()
        self.join(60)
        assert not self.is_alive(), "the sender hangs"
        return self.sent


def event(n: int) -> Output:
    channel = ("web", "app")[n % 2]
    data: dict[str, object] = {"identifiers": [{"type": "user_id", "value": f"u{n % CUSTOMERS}"}]}
    if n % 10 == 0:
        data["survey"] = {"metric": "csat", "score": 1}
    body = {
        "specversion": "1.0", "id": f"e{n}", "source": "/test", "type": "page.viewed", "channel": channel,
        "time": f"2026-01-05T{8 + n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z", "data": data,
    }  # fmt: skip
    return Output(f"segue.events.{channel}", f"u{n % CUSTOMERS}".encode(), orjson.dumps(body))


def applied(client: redis.Redis) -> int:
    """Interactions in all contexts together."""
    documents = [orjson.loads(client.get(key)) for key in client.keys("*:ctx:*")]  # type: ignore[union-attr, arg-type]
    return sum(sum(document["channels"].values()) for document in documents)


def assert_exactly_once(settings: Settings, client: redis.Redis, sent: int) -> None:
    def caught_up() -> bool:
        try:
            return applied(client) >= sent
        except redis.RedisError:
            return False

    eventually(caught_up, 60, f"{sent} applied interactions")
    want = Counter(f"u{n % CUSTOMERS}" for n in range(sent))
    stored = [orjson.loads(client.get(key)) for key in client.keys("*:ctx:*")]  # type: ignore[union-attr, arg-type]
    assert {d["identifiers"][0]["value"]: sum(d["channels"].values()) for d in stored} == want
    assert all(d["revision"] == sum(d["channels"].values()) for d in stored)
    log = runtime.open_log(settings)
    resolved = Counter(orjson.loads(r.value() or b"")["entry"]["id"] for r in log.read(INTERACTIONS))
    assert resolved == Counter({f"e{n}": 1 for n in range(sent)})
    stepped = Counter(orjson.loads(r.value() or b"")["entry"]["id"] for r in log.read(JOURNEY_STEPS))
    assert stepped == resolved
    poor = Counter({f"e{n}": 1 for n in range(0, sent, 10)})

    def signalled() -> Counter[str]:
        return Counter(orjson.loads(r.value() or b"")["evidence"][0] for r in log.read(SIGNALS))

    eventually(lambda: signalled() == poor, 30, "one signal per poor answer")


@pytest.fixture(params=["embedded", "kafka"])
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Settings, EmbeddedValkey]]:
    """Settings of a fresh stack whose Valkey does not run yet."""
    kafka = None
    if request.param == "kafka":
        kafka = without_topics(request.getfixturevalue("kafka_broker").bootstrap)
    port = free_ports(1)[0]
    valkey = EmbeddedValkey(tmp_path / "valkey", port=port)
    url = f"redis://127.0.0.1:{port}/0"
    settings = Settings(data_dir=tmp_path, redis=url, kafka=kafka, partitions=4, event_partitions=2)
    runtime.open_log(settings).create_topics(runtime.all_topics(settings))
    try:
        yield settings, valkey
    finally:
        valkey.stop()


def says(processes: Processes, name: str, words: str) -> Callable[[], bool]:
    return lambda: words in processes.log_of(name).read_text()


def test_redis_away_at_start_is_waited_for_with_a_clear_message(outage: tuple[Settings, EmbeddedValkey]) -> None:
    settings, valkey = outage
    with Processes(settings) as processes:
        processes.start()
        runtime.open_log(settings).append([event(n) for n in range(100)])
        eventually(says(processes, "context", "Redis cannot be reached"), 20, "the message")
        with valkey, redis.Redis.from_url(settings.redis or "") as client:
            assert_exactly_once(settings, client, 100)
            assert processes.stop("context") == 0


def test_redis_and_processors_killed_in_flight_lose_and_double_nothing(
    outage: tuple[Settings, EmbeddedValkey],
) -> None:
    settings, valkey = outage
    with valkey, Processes(settings) as processes, redis.Redis.from_url(settings.redis or "") as client:
        processes.start()
        sender = Sender(settings)
        sender.start()
        for name in runtime.PROCESSORS:
            time.sleep(1)
            processes.kill(name)
            processes.start(name)
        time.sleep(1)
        valkey.kill()
        time.sleep(1)
        valkey.start()
        time.sleep(1)
        assert_exactly_once(settings, client, sender.stop())


def test_the_broker_killed_in_flight_loses_and_doubles_nothing(kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    bootstrap = without_topics(kafka_broker.bootstrap)
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings = Settings(data_dir=tmp_path, redis=valkey.url, kafka=bootstrap, partitions=4, event_partitions=2)
        runtime.open_log(settings).create_topics(runtime.all_topics(settings))
        with Processes(settings) as processes, redis.Redis.from_url(valkey.url) as client:
            processes.start()
            sender = Sender(settings)
            sender.start()
            eventually(lambda: applied(client) > 100, 30, "the first events")
            kafka_broker.kill()
            time.sleep(2)
            kafka_broker.start()
            assert_exactly_once(settings, client, sender.stop())


def test_the_broker_away_at_start_is_waited_for(kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    bootstrap = without_topics(kafka_broker.bootstrap)
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings = Settings(data_dir=tmp_path, redis=valkey.url, kafka=bootstrap, partitions=4, event_partitions=2)
        kafka_broker.stop()
        with Processes(settings) as processes, redis.Redis.from_url(valkey.url) as client:
            processes.start()
            eventually(says(processes, "resolve", f"no Kafka at {bootstrap}"), 30, "the message")
            kafka_broker.start()
            eventually(lambda: runtime.open_log(settings).partitions(SIGNALS), 30, "the topics")
            runtime.open_log(settings).append([event(n) for n in range(100)])
            assert_exactly_once(settings, client, 100)


def test_a_process_with_a_name_takes_its_seat_again_after_a_kill(kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    """One with a new name would wait until the broker gives its dead predecessor up."""
    bootstrap = without_topics(kafka_broker.bootstrap)
    admin = AdminClient({"bootstrap.servers": bootstrap})

    def seats() -> list[str | None]:
        group = admin.describe_consumer_groups(["segue.context"])["segue.context"].result(10)
        return [member.group_instance_id for member in group.members if member.assignment.topic_partitions]

    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        settings = Settings(data_dir=tmp_path, redis=valkey.url, kafka=bootstrap, partitions=4, event_partitions=2)
        with Processes(settings) as processes, redis.Redis.from_url(valkey.url) as client:
            processes.start("resolve", "context.1", "signals")
            eventually(lambda: seats() == ["1"], 60, "a seat by name")
            processes.kill("context.1")
            processes.start("context.1")
            runtime.open_log(settings).append([event(n) for n in range(100)])
            assert_exactly_once(settings, client, 100)
            assert seats() == ["1"]
