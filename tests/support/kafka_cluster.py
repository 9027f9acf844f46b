"""Several real Kafka brokers on this machine, each a controller too, with three replicas of everything.

Needs what `kafka_broker` needs. A node takes about 300 MB of memory, and starting one about four seconds of a core.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.support.kafka_broker import (
    SMALL_JVM,
    KafkaBroker,
    KafkaStartError,
    free_ports,
    new_cluster_id,
)
from tests.support.kafka_jars import fetch_jars

REPLICAS = 3
_START_S = 180.0
"""Beside others under load, on a machine with few cores."""
_IN_SYNC_S = 120.0
_LOOKS = 3
_LOOK_S = 0.2
_SETTINGS = {
    "default.replication.factor": REPLICAS,
    "offsets.topic.replication.factor": REPLICAS,
    "transaction.state.log.replication.factor": REPLICAS,
    "share.coordinator.state.topic.replication.factor": REPLICAS,
    "transaction.state.log.min.isr": 2,
    "share.coordinator.state.topic.min.isr": 2,
    "min.insync.replicas": 2,
    # Three times that of a lone broker. On a busy machine a node that lives was taken for dead while another was away;
    # nothing is acknowledged then.
    "broker.session.timeout.ms": 6000,
}


class KafkaCluster:
    """`nodes` brokers (3 or more) with the face of one `KafkaBroker`.

    `stop`, `kill` and `pause` are for one node, the next in turn, so that in time each is hit: whoever is the active
    controller, and the leader of each partition, those of the coordinators included. They wait until all is in sync, as
    whoever restarts a cluster node by node does: a fault never leaves fewer than all but one. `start` brings back
    whoever is away, and waits for that too.

    `proxied` has two ports for each node: of a second listener, and the one that its clients are told to come by.
    """

    def __init__(
        self,
        nodes: int = REPLICAS,
        *,
        directory: Path | None = None,
        jvm_flags: Sequence[str] = SMALL_JVM,
        proxied: Sequence[tuple[int, int]] = (),
    ) -> None:
        if nodes < REPLICAS:
            raise ValueError(f"{nodes} nodes: a majority and {REPLICAS} replicas need {REPLICAS}")
        ports = free_ports(2 * nodes)
        controllers = ports[nodes:]
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(controllers, 1))
        cluster_id = new_cluster_id()
        self.nodes = [
            KafkaBroker(
                directory=None if directory is None else directory / f"node-{n}",
                port=ports[n - 1],
                controller_port=controllers[n - 1],
                cluster_id=cluster_id,
                jvm_flags=jvm_flags,
                properties={name: str(value) for name, value in _SETTINGS.items()}
                | {"node.id": str(n), "controller.quorum.voters": voters}
                | (advertised(ports[n - 1], proxied[n - 1][1]) if proxied else {}),
                start_timeout_s=_START_S,
                more_listeners=listener(proxied[n - 1][0]) if proxied else "",
            )
            for n in range(1, nodes + 1)
        ]
        self._turns = itertools.cycle(self.nodes)
        self._latest = self.nodes[0]

    @property
    def bootstrap(self) -> str:
        """The addresses of all nodes for `bootstrap.servers`."""
        return ",".join(node.bootstrap for node in self.nodes)

    @property
    def running(self) -> bool:
        """Whether every node's process lives; a paused one does."""
        return all(node.running for node in self.nodes)

    @property
    def pid(self) -> int:
        """The process id of the node that was hit last, the first one's before."""
        return self._latest.pid

    def start(self) -> Self:
        """Start who is away, wake who is paused; return once every node is up and every replica in sync.

        Raises KafkaUnavailable without Java or jars, KafkaStartError when a node fails or stays behind.
        """
        fetch_jars()  # once, before several ask for them
        self.resume()
        away = [node for node in self.nodes if not node.running]
        if away:
            with ThreadPoolExecutor(len(away)) as together:  # the first to come waits for a majority
                list(together.map(KafkaBroker.start, away))
        self.wait_in_sync()
        return self

    def stop(self) -> None:
        """Shut the next node down in order (SIGTERM), as for an upgrade."""
        self._next().stop()

    def kill(self) -> None:
        """End the next node as a crash would (SIGKILL)."""
        self._next().kill()

    def restart(self) -> None:
        """Stop the next node and start it again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the next node (SIGSTOP): its connections stay open and nothing is answered."""
        self._next().pause()

    def resume(self) -> None:
        """Go on after `pause`; does nothing otherwise. Does not wait."""
        for node in self.nodes:
            if node.running:
                node.resume()

    def says(self, words: str) -> int:
        """How many lines of all nodes' logs hold these words."""
        return sum(node.says(words) for node in self.nodes)

    def close(self) -> None:
        """End all and delete their temporary folders."""
        for node in self.nodes:
            node.close()

    def wait_in_sync(self, timeout_s: float = _IN_SYNC_S) -> None:
        """Wait until every node is known and every partition has a leader and all its replicas in sync.

        Raises KafkaStartError with what is missing when that takes longer than `timeout_s`.
        """
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200})
        until, good = time.monotonic() + timeout_s, 0
        # Each look asks one node, which may know the state of a moment ago.
        while good < _LOOKS:
            wrong = self._behind(admin)
            good = 0 if wrong else good + 1
            if time.monotonic() > until:
                raise KafkaStartError(f"Kafka is not in sync after {timeout_s:g} s: {wrong}")
            time.sleep(_LOOK_S)

    def _behind(self, admin: AdminClient) -> str:
        """What is not in sync; empty when all is."""
        try:
            found = admin.list_topics(timeout=2)
        except KafkaException as error:
            return str(error.args[0].str())
        absent = len(self.nodes) - len(found.brokers)
        behind = [
            f"{topic.topic}/{partition.id}"
            for topic in found.topics.values()
            for partition in topic.partitions.values()
            if partition.leader < 0 or set(partition.isrs) != set(partition.replicas)
        ]
        return ", ".join(([f"{absent} nodes"] if absent else []) + behind)

    def _next(self) -> KafkaBroker:
        self.wait_in_sync()
        self._latest = next(self._turns)
        return self._latest

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def listener(port: int) -> str:
    """A second listener beside a broker's own, whose clients come by a proxy."""
    return f"PROXIED://127.0.0.1:{port}"


def advertised(port: int, proxied: int) -> dict[str, str]:
    """Settings of a broker that tells the clients of its second listener to come by another port: that of a proxy."""
    return {
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied}",
    }
