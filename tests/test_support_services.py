"""The services that other tests lean on are what they say they are."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from segue.embedded.valkey import EmbeddedValkey, EmbeddedValkeyError
from tests.support.kafka_broker import KafkaBroker, wait_for_kafka
from tests.support.kafka_jars import kafka_version

ROOT = Path(__file__).parents[1]


def create_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, num_partitions=1)])[topic].result(10)


def values_of(bootstrap: str, topic: str, isolation: str = "read_committed") -> list[bytes]:
    """All that a reader sees from the start to the end of partition 0."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": topic,
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    reader.assign([TopicPartition(topic, 0, 0)])
    values: list[bytes] = []
    try:
        while True:
            record = reader.poll(15)
            assert record is not None, "neither a record nor the end of the partition in 15 s"
            if record.error():
                assert record.error().name() == "_PARTITION_EOF", record.error()
                return values
            values.append(record.value())
    finally:
        reader.close()


def produce(bootstrap: str, topic: str, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(15) == 0


def test_what_is_produced_is_consumed_in_order(kafka_bootstrap: str, unique: str) -> None:
    create_topic(kafka_bootstrap, unique)
    produce(kafka_bootstrap, unique, b"1", b"2", b"3")
    assert values_of(kafka_bootstrap, unique) == [b"1", b"2", b"3"]


def test_read_committed_hides_an_aborted_transaction(kafka_bootstrap: str, unique: str) -> None:
    create_topic(kafka_bootstrap, unique)
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "transactional.id": unique})
    producer.init_transactions(15)
    for value, finish in [
        (b"kept", producer.commit_transaction),
        (b"dropped", producer.abort_transaction),
        (b"kept too", producer.commit_transaction),
    ]:
        producer.begin_transaction()
        producer.produce(unique, value)
        producer.flush(15)  # so that the aborted record is in the log, not merely in the client
        finish(15)
    everything = values_of(kafka_bootstrap, unique, "read_uncommitted")
    assert everything == [b"kept", b"dropped", b"kept too"]
    assert values_of(kafka_bootstrap, unique) == [b"kept", b"kept too"]


def test_a_zombie_producer_is_fenced(kafka_bootstrap: str, unique: str) -> None:
    create_topic(kafka_bootstrap, unique)
    settings = {"bootstrap.servers": kafka_bootstrap, "transactional.id": unique}
    zombie, successor = Producer(settings), Producer(settings)
    zombie.init_transactions(15)
    zombie.begin_transaction()
    zombie.produce(unique, b"too late")
    successor.init_transactions(15)
    with pytest.raises(KafkaException) as refused:
        zombie.commit_transaction(15)
    assert refused.value.args[0].fatal()
    assert values_of(kafka_bootstrap, unique) == []


def test_an_undeclared_topic_does_not_come_into_being(kafka_broker: KafkaBroker, unique: str) -> None:
    producer = Producer({"bootstrap.servers": kafka_broker.bootstrap, "message.timeout.ms": 2000})
    producer.produce(unique, b"lost?")
    producer.flush(10)
    admin = AdminClient({"bootstrap.servers": kafka_broker.bootstrap})
    assert unique not in admin.list_topics(timeout=10).topics


def test_the_broker_takes_records_of_eight_mebibytes(kafka_broker: KafkaBroker) -> None:
    resource = ConfigResource(ResourceType.BROKER, "1")
    admin = AdminClient({"bootstrap.servers": kafka_broker.bootstrap})
    settings = admin.describe_configs([resource])[resource].result(10)
    assert settings["message.max.bytes"].value == str(8 * 1024 * 1024)


def test_a_killed_broker_comes_back_with_its_records_at_the_same_address(
    kafka_broker: KafkaBroker, unique: str
) -> None:
    address = kafka_broker.bootstrap
    create_topic(address, unique)
    produce(address, unique, b"before")
    kafka_broker.kill()
    assert not wait_for_kafka(address, 0.5)
    kafka_broker.start()
    assert kafka_broker.bootstrap == address
    produce(address, unique, b"after")
    assert values_of(address, unique) == [b"before", b"after"]


def test_a_paused_broker_is_silent_until_it_is_resumed(kafka_broker: KafkaBroker) -> None:
    kafka_broker.pause()
    assert not wait_for_kafka(kafka_broker.bootstrap, 1)
    kafka_broker.resume()
    assert wait_for_kafka(kafka_broker.bootstrap, 15)


def test_compose_runs_the_version_of_kafka_that_is_tested() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    assert re.findall(r"apache/kafka:(\S+)", compose) == [kafka_version()]


def test_each_test_gets_an_empty_database_that_is_not_the_default_one(
    redis_client: redis.Redis,
) -> None:
    assert redis_client.dbsize() == 0
    assert redis_client.connection_pool.connection_kwargs["db"] != 0


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path) as server:
        yield server


def client_of(server: EmbeddedValkey) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def test_valkey_never_evicts_and_appends_every_write_to_a_file(valkey: EmbeddedValkey) -> None:
    settings = client_of(valkey).config_get("maxmemory-policy", "append*", "save")
    expected = {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
    }
    assert settings.items() >= expected.items()


def test_valkey_keeps_every_answered_write_over_kill_9(valkey: EmbeddedValkey) -> None:
    client = client_of(valkey)
    for number in range(2000):
        client.set(f"key:{number}", number)
    valkey.kill()
    valkey.start()
    assert client_of(valkey).dbsize() == 2000


def test_a_second_valkey_in_the_same_directory_is_refused(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedValkeyError, match="another Valkey is running"):
        EmbeddedValkey(tmp_path).start()
    assert client_of(valkey).ping()


def test_valkey_listens_where_the_directory_is_too_deep_for_a_socket(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / ("deep" * 30)) as server:
        assert server.url.startswith("unix://")
        assert client_of(server).ping()


def test_valkey_keeps_its_port_over_restarts(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path, port=0) as server:
        url = server.url
        server.stop()
        server.start()
        assert server.url == url
        assert client_of(server).ping()


def test_a_failed_start_tells_what_valkey_said(tmp_path: Path) -> None:
    manifest = tmp_path / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir()
    manifest.write_text("not a manifest\n")
    with pytest.raises(EmbeddedValkeyError, match="Invalid AOF manifest file format"):
        EmbeddedValkey(tmp_path).start()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child")
def test_valkey_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from segue.embedded.valkey import EmbeddedValkey\n"
        "print(EmbeddedValkey(sys.argv[1]).start().pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
