"""The cluster that `make chaos ARGS="--brokers 3"` runs on goes on without any one of its nodes."""

from __future__ import annotations

import time
from contextlib import suppress

from confluent_kafka import KafkaError, KafkaException, Message, Node, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from segue.log.kafka import KafkaLog
from segue.log.port import Output
from segue.topics import Topic
from tests.support.kafka_broker import KafkaBroker
from tests.support.kafka_cluster import KafkaCluster
from tests.support.stack import eventually
from tests.test_support_services import values_of


def test_a_cluster_takes_records_without_one_node_and_is_in_sync_when_it_is_back(
    kafka_cluster: KafkaCluster, unique: str
) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_cluster.bootstrap, "log_level": 0})
    nodes = len(kafka_cluster.nodes)
    admin.create_topics([NewTopic(unique, nodes)])[unique].result(30)  # each leads one
    producer = Producer(
        {
            "bootstrap.servers": kafka_cluster.bootstrap,
            "log_level": 0,
            "acks": "all",
            "transactional.id": unique,
            "delivery.timeout.ms": 60_000,
        }
    )
    producer.init_transactions(30)
    send(producer, unique, nodes, b"all")
    assert replicas(admin, unique) == replicas(admin, "__transaction_state") == {(3, 3)}
    assert at_least_in_sync(admin, unique) == "2"

    kafka_cluster.kill()
    assert not kafka_cluster.running
    send(producer, unique, nodes, b"without one")
    eventually(lambda: replicas(admin, unique) == {(3, 2)}, 30, "the dead one's leave")

    kafka_cluster.start()
    assert kafka_cluster.running
    assert replicas(admin, unique) == {(3, 3)}
    assert values_of(kafka_cluster.bootstrap, unique) == [b"all", b"without one"]


def send(producer: Producer, topic: str, partitions: int, value: bytes) -> None:
    """One record to each partition, in a transaction that is committed."""
    failed: list[str] = []

    def told(error: KafkaError | None, _message: Message) -> None:
        failed.extend([] if error is None else [error.str()])

    producer.begin_transaction()
    for partition in range(partitions):
        producer.produce(topic, value, partition=partition, on_delivery=told)
    assert producer.flush(60) == 0
    assert not failed
    producer.commit_transaction(60)


def replicas(admin: AdminClient, topic: str) -> set[tuple[int, int]]:
    """How many replicas the partitions have, and how many of them are in sync."""
    partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions.values()
    return {(len(partition.replicas), len(partition.isrs)) for partition in partitions}


def at_least_in_sync(admin: AdminClient, topic: str) -> str:
    """The replicas without which nothing is acknowledged."""
    of = ConfigResource(ResourceType.TOPIC, topic)
    return str(admin.describe_configs([of])[of].result(30)["min.insync.replicas"].value)


def test_a_seat_goes_on_when_the_node_that_coordinates_its_group_is_shut_down(
    kafka_cluster: KafkaCluster, unique: str
) -> None:
    """And again with the next one: sending offsets went on to wait for the node that was gone."""
    log = KafkaLog(kafka_cluster.bootstrap, replication=3)
    log.create_topics([Topic(unique, 1, {})])
    member, tp = log.join(f"g{unique}", [unique], "one"), (unique, 0)
    eventually(lambda: tp in member.poll(10, 0.1).assigned, 60, "its partition")
    assert member.committed([tp]) == {tp: None}
    commits = 0

    def commit() -> None:
        nonlocal commits
        commits += 1
        member.poll(10, 0)
        member.commit([Output(unique, b"k", str(commits).encode())], {tp: commits})

    for _ in range(2):
        commit()
        coordinator(kafka_cluster, f"g{unique}").stop()
        before = commits
        for _ in range(5):
            commit()
            time.sleep(0.3)
        assert member.committed([tp]) == {tp: before + 5}
        kafka_cluster.start()
    assert values_of(kafka_cluster.bootstrap, unique) == [str(n + 1).encode() for n in range(commits)]
    member.close()


def coordinator(cluster: KafkaCluster, group: str) -> KafkaBroker:
    found: Node | None = None

    def told() -> bool:  # one that was told before would ask who it was then
        nonlocal found
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
        with suppress(KafkaException):
            found = admin.describe_consumer_groups([group])[group].result(30).coordinator
        return found is not None

    eventually(told, 60, "who coordinates the group")
    assert found is not None
    return next(node for node in cluster.nodes if node.bootstrap == f"{found.host}:{found.port}")
