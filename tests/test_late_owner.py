"""An owner that was paused before its write, and wakes up when another has taken over: what fence and epoch are for.

Each is also taken away, to see that it is what holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
import redis

from segue import faults
from segue.core.context import Policy
from segue.core.interaction import Entry, Fact, Step
from segue.core.rules import RuleBook
from segue.engine import Engine
from segue.log.port import Output
from segue.log.sqlite import SqliteLog
from segue.processor import Processor
from segue.store.keys import Layout
from segue.store.shards import ShardStore, Write
from segue.topics import JOURNEY_STEPS, SIGNALS, all_topics
from streams.context import ContextProcessor
from streams.signals import Signals
from tests.test_engine import documents, interactions

LAYOUT = Layout(1)
CUSTOMERS = 5
NEWER = """
[[rule]]
id = "waited"
version = 2
severity = "high"
department = "service"
any = [{ fact = "wait", at_least = 300000 }]
per = "customer"
reason.en = "Waited for long."
reason.zh = "等待过久。"
"""
OLDER = NEWER.replace("version = 2", "version = 1").replace("300000", "600000")


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    log = SqliteLog(tmp_path / "log.sqlite")
    log.create_topics(all_topics(LAYOUT.partitions, 1))
    return log


def engine(log: SqliteLog, store: ShardStore, processor: Processor, instance: str, without: str | None) -> Engine:
    """One that ends when it has had nothing to do for a dozen looks."""
    seen: list[str] = []

    def stop() -> bool:
        seen.append(str(made.meter.counts))
        return seen[-13:].count(seen[-1]) == 13

    made = Engine(processor, log, store, instance, stop)
    faults.install(made, {faults.UNSAFE: without} if without else {})
    return made


def before_its_first_write(engine: Engine, then: Callable[[list[Write]], object]) -> None:
    store: Any = engine._store
    begin, left = store.begin, iter([then])

    def interrupted(writes: list[Write]) -> None:
        next(left, lambda _: None)(writes)
        begin(writes)

    store.begin = interrupted


def silent_for_too_long(log: SqliteLog) -> None:
    """What the group does with a member that is: its partitions go to others."""
    with log._file.transaction():
        log._file.db.execute("DELETE FROM leases")
        log._file.db.execute("DELETE FROM members")


# --- the fence


def before_and_after_a_late_write(
    log: SqliteLog, client: redis.Redis, without: str | None = None
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The documents that another owner, who went on, left behind; and those that were there when the late one wrote."""

    def owner(instance: str) -> Engine:
        store = ShardStore(client, LAYOUT, "context", "ctx")
        return engine(log, store, ContextProcessor(store, Policy()), instance, without)

    def another_goes_on(_: list[Write]) -> None:
        silent_for_too_long(log)
        log.append(interactions(200, first=200))
        owner("two").run()
        found.append(documents(client))

    found: list[dict[str, bytes]] = []
    log.append(interactions(200))
    late = owner("one")
    before_its_first_write(late, another_goes_on)
    late._stop = lambda: bool(found)  # the turn that it was paused in is its last
    late.run()
    return found[0], documents(client)


def test_a_late_owner_does_not_undo_what_the_next_one_wrote(log: SqliteLog, redis_client: redis.Redis) -> None:
    left, stand = before_and_after_a_late_write(log, redis_client)
    assert len(left) == 20
    assert stand == left


def test_without_the_fence_it_would(log: SqliteLog, redis_client: redis.Redis) -> None:
    left, stand = before_and_after_a_late_write(log, redis_client, without="fence")
    assert len(left) == 20
    assert all(stand[key] != left[key] for key in left)


# --- the epoch: two owners that stand at the same offset, and do not mean the same
#
# With the same rules the state follows from the log and the offset alone, and whoever writes it writes the same.
# While a deployment changes the rules it does not: then the last to take over must be the one who writes.


def told_and_known(log: SqliteLog, client: redis.Redis, without: str | None = None) -> tuple[set[str], set[str]]:
    """The signals emitted, and those that the documents know, after an owner with older rules wrote late.

    No rule of it matches, so there was nothing to commit. Another with newer rules takes over at the same offset, emits
    its signals, and is about to write them when the first one wakes up.
    """

    def owner(rules: str, instance: str) -> Engine:
        store = ShardStore(client, LAYOUT, "signals", "sig")
        return engine(log, store, Signals(store, RuleBook.parse(rules)), instance, without)

    def another_takes_over(held: list[Write]) -> None:
        silent_for_too_long(log)
        newer = owner(NEWER, "two")
        before_its_first_write(newer, lambda _: the_late_one_writes(held))
        newer.run()

    def the_late_one_writes(held: list[Write]) -> None:
        store = ShardStore(client, LAYOUT, "signals", "sig")
        store.begin(held)
        store.finish()

    log.append(steps())
    older = owner(OLDER, "one")
    older._committed_at = math.inf  # within the second that offsets may lag behind the fence
    before_its_first_write(older, another_takes_over)
    older.run()
    emitted = {orjson.loads(record.value() or b"")["signal_id"] for record in log.read(SIGNALS)}
    keys: Any = client.keys("*:sig:*")
    states: Any = client.mget(keys) if keys else []
    return emitted, {signal["signal_id"] for raw in states for signal in orjson.loads(raw)["active"]}


def steps() -> list[Output]:
    outputs = []
    for n in range(CUSTOMERS):
        key = f"customer-{n}"
        entry = Entry(f"e{n}", "call.ended", "voice", 1_000_000 + n, 2_000_000 + n)
        step = Step(key, 1, msgspec.Raw(msgspec.json.encode(entry)), (Fact("wait", value=400_000),))
        outputs.append(Output(JOURNEY_STEPS, key.encode(), msgspec.json.encode(step)))
    return outputs


def test_a_late_owner_with_older_rules_does_not_undo_what_the_newer_one_told(
    log: SqliteLog, redis_client: redis.Redis
) -> None:
    emitted, known = told_and_known(log, redis_client)
    assert len(emitted) == CUSTOMERS
    assert known == emitted


def test_without_the_epoch_it_would(log: SqliteLog, redis_client: redis.Redis) -> None:
    emitted, known = told_and_known(log, redis_client, without="epoch")
    assert len(emitted) == CUSTOMERS
    assert known < emitted
