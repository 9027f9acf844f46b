"""Where tests get a real Kafka and a real Redis from: named by the environment, or started here.

Each function returns an address or ``Missing`` with one reason; whether that skips or fails is the
caller's decision. An address named in the environment that does not answer is a fault: the
caller asked for that service, so no other takes its place.
"""

import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis

from segue.embedded.valkey import EmbeddedValkey, EmbeddedValkeyError
from tests.support.kafka_broker import ONE_NODE, KafkaBroker, free_ports, wait_for_kafka
from tests.support.kafka_cluster import KafkaCluster
from tests.support.kafka_jars import KafkaUnavailable, kafka_version

# Tests empty their database, so not the one that people keep things in; and each worker of pytest-xdist has its own.
TEST_DATABASE = 9 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ENGINE_PATIENCE_S = 2
_CONTAINER_PATIENCE_S = 90


@dataclass(frozen=True)
class Missing:
    """No such service on this machine; ``reason`` tells a person what was tried and what helps."""

    reason: str


class ServiceDoesNotAnswer(RuntimeError):
    """A service that the environment names, or one just started, is not to be reached."""


def kafka_address(stack: ExitStack) -> str | Missing:
    """A Kafka for this run; what had to be started for it ends with ``stack``."""
    if named := os.environ.get("SEGUE_TEST_KAFKA"):
        if not wait_for_kafka(named, 10):
            raise ServiceDoesNotAnswer(f"SEGUE_TEST_KAFKA={named} does not answer")
        return named
    in_docker = _kafka_in_docker(stack)
    if isinstance(in_docker, str):
        return in_docker
    own = own_kafka_broker(stack)
    if isinstance(own, Missing):
        return Missing(f"{in_docker.reason}; {own.reason}")
    return own.bootstrap


def own_kafka_broker(stack: ExitStack) -> KafkaBroker | Missing:
    """A broker of this run's own, which may be killed and restarted."""
    try:
        return stack.enter_context(KafkaBroker())
    except KafkaUnavailable as error:
        return Missing(error.reason)


def own_kafka_cluster(stack: ExitStack) -> KafkaCluster | Missing:
    """Three brokers of this run's own."""
    try:
        return stack.enter_context(KafkaCluster())
    except KafkaUnavailable as error:
        return Missing(error.reason)


def redis_address(stack: ExitStack, directory: Path) -> str | Missing:
    """The URL of a Redis or Valkey with the test database; an own one lives in ``directory``."""
    if named := os.environ.get("SEGUE_TEST_REDIS"):
        try:
            with redis.Redis.from_url(named, socket_connect_timeout=10) as client:
                client.ping()
        except redis.RedisError as error:
            raise ServiceDoesNotAnswer(f"SEGUE_TEST_REDIS does not answer: {error}") from error
        return with_test_database(named)
    try:
        return with_test_database(stack.enter_context(EmbeddedValkey(directory)).url)
    except EmbeddedValkeyError as error:
        return Missing(str(error))


def with_test_database(url: str) -> str:
    """``url`` with the test database, unless it already names one."""
    if redis.ConnectionPool.from_url(url).connection_kwargs.get("db") is not None:
        return url
    parts = urlsplit(url)
    if parts.scheme == "unix":
        query = "&".join(filter(None, [parts.query, f"db={TEST_DATABASE}"]))
        return f"unix://{parts.path}?{query}"
    return urlunsplit(parts._replace(path=f"/{TEST_DATABASE}"))


def _kafka_in_docker(stack: ExitStack) -> str | Missing:
    """One node of Apache's own image, where an engine answers in two seconds and has the image.

    The Kafka class of testcontainers knows only Confluent's images, so this is its plain container.
    """
    try:
        import docker  # type: ignore[import-untyped]
        from testcontainers.core.container import DockerContainer
    except ImportError as error:
        return Missing(f"no Docker client ({error})")
    try:
        with closing(docker.from_env(timeout=_ENGINE_PATIENCE_S)) as client:
            client.ping()
    except Exception as error:  # the client's own, requests', the system's: all mean no engine
        return Missing(f"no Docker engine answers ({type(error).__name__})")
    (port,) = free_ports(1)
    image = f"apache/kafka:{kafka_version()}"
    container: Any = DockerContainer(image).with_bind_ports(9092, port)
    bootstrap = f"{container.get_docker_client().host()}:{port}"
    for name, value in _settings_in_docker(bootstrap).items():
        container.with_env(name, value)
    stack.callback(container.stop)
    try:
        container.start()
    except docker.errors.DockerException as error:
        return Missing(f"Docker does not start {image} ({error})")
    if not wait_for_kafka(bootstrap, _CONTAINER_PATIENCE_S):
        raise ServiceDoesNotAnswer(f"{image} was started and does not answer at {bootstrap}")
    return bootstrap


def _settings_in_docker(bootstrap: str) -> dict[str, str]:
    """The settings of our own broker as the image reads them: from variables named KAFKA_*."""
    lines = [line for line in ONE_NODE.read_text().splitlines() if line and line[0] != "#"]
    settings = dict(line.split("=", 1) for line in lines)
    settings |= {
        # The node also talks to itself, within the container, where the outer address is unknown.
        "listeners": "OUTER://0.0.0.0:9092,INNER://localhost:19092,CONTROLLER://localhost:19093",
        "advertised.listeners": f"OUTER://{bootstrap},INNER://localhost:19092",
        "listener.security.protocol.map": ("OUTER:PLAINTEXT,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        "inter.broker.listener.name": "INNER",
        "controller.quorum.voters": "1@localhost:19093",
    }
    return {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in settings.items()}
