"""Timers through the whole of it: they fire by the clock, once, while nothing else happens, and replay the same."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
import redis

from segue import runtime
from segue.core.timers import FIRED, TimerDue
from segue.errors import StoreUnavailable
from segue.log.port import Output, Polled
from segue.log.sqlite import SqliteMember
from segue.store.reader import Reader
from segue.topics import EVENTS, INTERACTIONS, JOURNEY_STEPS
from tests.support.stack import EmbeddedStack, eventually
from tests.test_rebuild_verify import compared

Facts = list[tuple[str, str, int, int]]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[EmbeddedStack]:
    with EmbeddedStack(tmp_path, abandoned_after_s={"cart": 2}) as stack:
        yield stack


def happens(who: str, kind: str, at: float | None = None, **data: Any) -> Output:
    """An event of `who` now, or `at` (seconds since 1970)."""
    moment = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    body = {
        "specversion": "1.0", "id": f"{who}-{kind}-{moment.timestamp()}", "source": "/shop", "type": kind,
        "channel": "web", "time": moment.isoformat(),
        "data": {"identifiers": [{"type": "user_id", "value": who}]} | data,
    }  # fmt: skip
    return Output(EVENTS + "web", who.encode(), orjson.dumps(body))


def facts(stack: EmbeddedStack, kind: str) -> Facts:
    """The facts of a kind in the journey steps: customer, kind, when it was due, when the timer was received."""
    log = runtime.open_log(stack.settings)
    steps = [orjson.loads(record.value() or b"") for record in log.read(JOURNEY_STEPS)]
    log.close()
    return [
        (step["customer_key"], fact["fact"], step["entry"]["event_time_ms"], step["entry"]["received_at_ms"])
        for step in steps
        for fact in step.get("facts", ())
        if fact["fact"] == kind
    ]


def timer_records(stack: EmbeddedStack) -> int:
    log = runtime.open_log(stack.settings)
    found = [record for record in log.read(INTERACTIONS) if FIRED.encode() in (record.value() or b"")]
    log.close()
    return len(found)


def waking(stack: EmbeddedStack) -> int:
    """How many customers have a deadline, by the index."""
    with redis.Redis.from_url(stack.valkey.url) as client:
        return sum(int(client.zcard(key)) for key in client.keys("*:wake:*"))  # type: ignore[union-attr, arg-type]


def test_a_timer_fires_though_a_busy_partition_never_comes_to_its_end(
    stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when more comes all the time: whoever reads meets no end, and goes by what has been read."""
    busy, poll = {EVENTS + "web", INTERACTIONS}, SqliteMember.poll

    def without_ends(member: SqliteMember, max_records: int, timeout_s: float) -> Polled:
        found = poll(member, max_records, timeout_s)
        return found._replace(ended=[tp for tp in found.ended if tp[0] not in busy])

    monkeypatch.setattr(SqliteMember, "poll", without_ends)
    stack.append([happens("ana", "cart.item_added"), happens("ben", "cart.item_added")])
    moving = itertools.count()

    def fired() -> bool:
        stack.append([happens(f"other-{next(moving)}", "page.viewed") for _ in range(20)])
        return len(facts(stack, "cart.abandoned")) == 2

    eventually(fired, 20, what="both abandonments")
    stack.drain()
    for _, _, due_ms, fired_ms in facts(stack, "cart.abandoned"):
        assert fired_ms >= due_ms, "never before it was due"


def test_a_cart_left_behind_is_abandoned_by_the_clock_within_a_second_and_once(stack: EmbeddedStack) -> None:
    stack.append([happens("ana", "cart.item_added", touchpoint="product")])
    eventually(lambda: facts(stack, "cart.abandoned"), what="the abandonment")
    stack.drain()  # the step is committed before the document is written
    ((_, _, due_ms, fired_ms),) = facts(stack, "cart.abandoned")
    assert due_ms <= fired_ms
    with redis.Redis.from_url(stack.valkey.url) as client:
        reader = Reader(client)
        context = orjson.loads(reader.context(reader.find("user_id", "ana") or "") or b"")
        stats = reader.stats()
    assert [line["type"] for line in context["timeline"]] == ["cart.item_added", "cart.abandoned"]
    assert context["timeline"][-1]["actor"] == {"kind": "system"}
    assert stats["facts"]["cart.abandoned"] == 1
    assert stats["events"]["total"] == 1


def test_a_cart_that_is_bought_in_time_gives_no_timer_record(stack: EmbeddedStack) -> None:
    stack.append([happens("bea", "cart.item_added"), happens("ana", "cart.item_added"), happens("ana", "order.placed")])
    eventually(lambda: facts(stack, "cart.abandoned"), what="the other's abandonment")
    assert len(facts(stack, "cart.abandoned")) == timer_records(stack) == 1


def test_a_missed_deadline_of_a_case_is_a_fact_and_a_signal(stack: EmbeddedStack) -> None:
    due = datetime.now(UTC) + timedelta(seconds=1)
    item = {"kind": "case", "id": "7", "status": "open", "due_at": due.isoformat()}
    stack.append([happens("ana", "case.opened", item=item)])
    with redis.Redis.from_url(stack.valkey.url) as client:
        reader = Reader(client)

        def signals() -> Any:
            try:
                key = reader.find("user_id", "ana")
            except StoreUnavailable:  # nothing is laid out before the processors have started
                return []
            return orjson.loads(reader.signals(key)) if key else []

        eventually(signals, what="the signal")
        (signal,) = signals()
    assert (signal["rule"], signal["item"]) == ("missed-sla-or-long-wait", "case:7")
    assert signal["last_seen_ms"] == int(due.timestamp() * 1000)


def test_timers_that_came_twice_or_for_nobody_change_nothing_and_the_log_makes_the_same_state_again(
    stack: EmbeddedStack,
) -> None:
    stack.append([happens(f"c{n}", "cart.item_added") for n in range(20)])
    eventually(lambda: len(facts(stack, "cart.abandoned")) == 20, what="twenty abandonments")
    key = facts(stack, "cart.abandoned")[0][0]
    again = msgspec.json.encode(TimerDue(key, time.time_ns() // 1_000_000))
    nobody = msgspec.json.encode(TimerDue("00000000-0000-5000-8000-000000000000", 1))
    stack.append([Output(INTERACTIONS, key.encode(), again), Output(INTERACTIONS, b"nobody", nobody)])
    stack.drain()

    assert len(facts(stack, "cart.abandoned")) == 20
    eventually(lambda: waking(stack) == 20, what="the index with their sessions alone")
    with redis.Redis.from_url(stack.valkey.url) as client:
        report = compared(stack.settings, client)
    assert report.first is None
    assert report.compared["wake"] > 0


def test_a_deadline_that_passed_while_nobody_ran_fires_at_the_next_start(stack: EmbeddedStack) -> None:
    stack.append([happens("ana", "cart.item_added")])
    stack.drain()
    stack.stop("context")
    time.sleep(2.1)  # the deadline itself has to pass: the clock is the system's
    assert facts(stack, "cart.abandoned") == []
    stack.start("context")
    eventually(lambda: len(facts(stack, "cart.abandoned")) == 1, what="the abandonment")


def test_a_deadline_survives_the_loss_of_redis(stack: EmbeddedStack) -> None:
    stack.append([happens("ana", "cart.item_added")])
    stack.drain()
    stack.stop("context")
    with redis.Redis.from_url(stack.valkey.url) as client:
        for key in client.keys("*}:*:context") + client.keys("*:ctx:*"):  # type: ignore[operator]
            client.delete(key)
    assert waking(stack) == 0
    stack.start("context")
    eventually(lambda: len(facts(stack, "cart.abandoned")) == 1, what="the abandonment")


def test_time_stands_still_while_resolve_has_not_read_everything(stack: EmbeddedStack) -> None:
    """The end of the wait lies in the log, unread: it must not be overtaken by the clock."""
    now = time.time()
    stack.append([happens("ana", "cart.item_added", now)])
    stack.drain()
    stack.stop("resolve")
    stack.append([happens("ana", "order.placed", now + 0.5)])
    time.sleep(3)  # long after the deadline
    assert facts(stack, "cart.abandoned") == []
    stack.start("resolve")
    stack.append([happens("bea", "cart.item_added")])
    eventually(lambda: facts(stack, "cart.abandoned"), what="the other's abandonment")
    assert len(facts(stack, "cart.abandoned")) == 1


def test_history_that_is_imported_fires_by_its_own_time_and_not_by_the_clocks(stack: EmbeddedStack) -> None:
    """In one chunk: each event is read when the clock is years beyond every deadline."""
    start = datetime(2016, 2, 29, tzinfo=UTC).timestamp()
    for second in range(4):  # four visits of one customer, an hour of looking at a cart, then bought or not
        visit = start + second * 86_400
        stack.append([happens("ana", "cart.item_added", visit)])
        stack.drain()
        time.sleep(0.3)  # the timers are looked at five times a second
        stack.append([happens("ana", "page.viewed" if second % 2 else "order.placed", visit + 1)])
        stack.drain()
    stack.append([happens("ana", "page.viewed", start + 10 * 86_400)])
    stack.drain()
    assert [due for *_, due, _ in facts(stack, "cart.abandoned")] == [
        int(1000 * (start + day * 86_400 + 2)) for day in (1, 3)
    ]
    assert len(facts(stack, "session.closed")) == 4
    assert timer_records(stack) == 0
