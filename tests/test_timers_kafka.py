"""Timers on a real Kafka and a real Valkey: when they fire, in which order, and what they leave behind.

The processors run as processes of their own; each test has its own customers. Times are the wall clock's, as they are
the processors'; the caps are wide, because the figures are `python -m bench --only timers`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import redis

from segue import runtime
from segue.core import identity
from segue.core.event import Identifier
from segue.core.timers import FIRED
from segue.embedded.valkey import EmbeddedValkey
from segue.errors import StoreUnavailable
from segue.settings import Settings
from segue.store.connect import layout
from segue.store.reader import Reader
from segue.topics import COMMANDS, INTERACTIONS, JOURNEY_STEPS
from tests.support.contexts import contexts
from tests.support.kafka_broker import KafkaBroker
from tests.support.processes import Processes, without_topics
from tests.support.stack import eventually
from tests.test_timers import happens

CART_S, FORM_S = 3, 1
PROMISED_MS, CAP_MS = 1000, 10_000
"""What is promised of a machine of one's own, and what a shared one must keep."""


class Timers:
    """The running processors, and what they wrote."""

    def __init__(self, processes: Processes, client: redis.Redis) -> None:
        self.processes, self.client = processes, client
        self.log = runtime.open_log(processes.settings)
        self.reader = Reader(client)

    def records(self, topic: str, who: str | None = None) -> list[tuple[int, dict[str, Any]]]:
        """What a topic holds, of one customer if named: each record's time in the log, and what it says."""
        found = [(record.timestamp()[1], orjson.loads(record.value() or b"")) for record in self.log.read(topic)]
        return [each for each in found if who is None or each[1]["customer_key"] == key_of(who)]

    def steps(self, who: str) -> list[str]:
        return [step["entry"]["type"] for _, step in self.records(JOURNEY_STEPS, who)]

    def caught_up(self) -> bool:
        """Whether everything received up to this call is in the documents."""
        asked = time.time_ns() // 1_000_000

        def there() -> bool:
            try:
                return self.reader.freshness().as_of_ms > asked
            except StoreUnavailable:
                return False

        eventually(there, 60, "everything applied")
        return True

    def documents(self) -> dict[bytes, Any]:
        """Every context document and the index of deadlines, byte for byte."""
        found: dict[bytes, Any] = dict(contexts(self.client))
        indexes: Any = self.client.keys("*:wake:context")
        return found | {key: self.client.zrange(key, 0, -1, withscores=True) for key in indexes}


def key_of(who: str) -> str:
    return identity.new_key(Identifier("user_id", who))


@pytest.fixture(scope="module")
def timers(kafka_broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timers]:
    directory = tmp_path_factory.mktemp("timers")
    bootstrap = without_topics(kafka_broker.bootstrap)
    with EmbeddedValkey(directory / "valkey") as valkey:
        settings = Settings(
            data_dir=directory, redis=valkey.url, kafka=bootstrap, partitions=4, event_partitions=2,
            abandoned_after_s={"cart": CART_S, "form": FORM_S},
        )  # fmt: skip
        runtime.open_log(settings).create_topics(runtime.all_topics(settings))
        with Processes(settings) as processes, redis.Redis.from_url(valkey.url) as client:
            processes.start("resolve.1", "context.1", "signals.1")
            found = Timers(processes, client)
            found.caught_up()
            yield found


def test_a_due_timer_fires_soon_after_its_time_and_never_before(timers: Timers) -> None:
    customers = [f"due-{n}" for n in range(30)]
    timers.log.append([happens(who, "cart.item_added") for who in customers])
    keys = {key_of(who) for who in customers}

    def fired() -> list[tuple[int, dict[str, Any]]]:
        steps = [(at, s) for at, s in timers.records(JOURNEY_STEPS) if s["customer_key"] in keys]
        return [(at, step) for at, step in steps if step["entry"]["type"] == "cart.abandoned"]

    eventually(lambda: len(fired()) == len(customers), 60, "thirty abandonments")
    late = sorted(at - step["entry"]["event_time_ms"] for at, step in fired())
    print(f"timers on Kafka: p50 {late[len(late) // 2]} ms, max {late[-1]} ms late; promised {PROMISED_MS} ms")
    assert {step["customer_key"] for _, step in fired()} == keys
    assert late[0] >= 0
    assert late[-1] < CAP_MS


def test_a_timer_that_is_cancelled_in_time_leaves_no_trace(timers: Timers) -> None:
    timers.log.append([happens("kept", "cart.item_added"), happens("bought", "cart.item_added")])
    timers.log.append([happens("bought", "order.placed")])
    eventually(lambda: "cart.abandoned" in timers.steps("kept"), 60, "the other's abandonment")
    timers.caught_up()
    assert timers.steps("bought") == ["cart.item_added", "order.placed"]
    assert FIRED not in [record.get("type") for _, record in timers.records(INTERACTIONS, "bought")]
    document = orjson.loads(timers.reader.context(key_of("bought")) or b"")
    assert list(document["deadlines"]) == ["session"]
    place = layout(timers.client)
    wake = place.wake(place.context_shard(key_of("bought")), "context")
    assert timers.client.zscore(wake, key_of("bought")) == document["deadlines"]["session"]["due_ms"]


def test_what_fell_due_while_nobody_ran_fires_in_the_order_of_its_times_and_before_what_came_later(
    timers: Timers,
) -> None:
    timers.processes.stop("context.1")
    began = time.time()
    timers.log.append([happens("back", "cart.item_added", began), happens("back", "form.started", began + 0.2)])
    timers.log.append([happens("back", "page.viewed", began + CART_S + 1)])
    timers.log.append([happens("gone", "cart.item_added", began), happens("gone", "form.started", began + 0.2)])
    eventually(lambda: time.time() > began + CART_S, what="the deadlines themselves")
    timers.processes.start("context.1")
    told = ["cart.item_added", "form.started", "form.abandoned", "cart.abandoned"]
    eventually(lambda: len(timers.steps("back")) == 5 and len(timers.steps("gone")) == 4, 60, "the abandonments")
    assert timers.steps("back") == [*told, "page.viewed"]
    assert timers.steps("gone") == told
    due = [step["entry"]["event_time_ms"] for _, step in timers.records(JOURNEY_STEPS, "gone")]
    start = int(began * 1000)
    assert due == pytest.approx([start, start + 200, start + 200 + 1000 * FORM_S, start + 1000 * CART_S], abs=1)


def test_an_emptied_redis_is_filled_with_the_same_bytes_and_nothing_is_said_again(timers: Timers) -> None:
    timers.log.append([happens(f"again-{n}", "cart.item_added") for n in range(10)])
    eventually(lambda: all("cart.abandoned" in timers.steps(f"again-{n}") for n in range(10)), 60, "ten abandonments")
    timers.caught_up()
    before = timers.documents()
    said = {topic: len(timers.records(topic)) for topic in (INTERACTIONS, JOURNEY_STEPS)}
    for name in timers.processes.running:
        timers.processes.stop(name)
    timers.client.flushall()
    timers.processes.start("resolve.1", "context.1", "signals.1")
    timers.caught_up()
    assert timers.documents() == before
    assert {topic: len(timers.records(topic)) for topic in said} == said
    assert timers.records(COMMANDS) == []
