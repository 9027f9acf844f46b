"""The cluster that `make chaos ARGS="--brokers 3"` runs on goes on without any one of its nodes."""

from __future__ import annotations

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

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
