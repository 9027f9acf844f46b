"""`segue rebuild --verify`: the live state and the one that the log makes are the same, or the difference is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import redis

from segue import runtime
from segue.errors import SegueError
from segue.rebuild.difference import described, difference
from segue.rebuild.verify import Report, Unable, scratch, verify
from segue.settings import Settings
from segue.store.connect import layout
from tests.support.processes import Processes, without_topics
from tests.support.stack import EmbeddedStack, eventually
from tests.test_outages import Sender, applied, event


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[EmbeddedStack]:
    with EmbeddedStack(tmp_path) as stack:
        stack.append([event(n) for n in range(400)])
        stack.drain()
        yield stack


def compared(settings: Settings, live: redis.Redis) -> Report:
    phases = []
    with scratch() as made:
        source = runtime.open_log(settings)
        report = verify(settings, source, live, made, lambda phase, done, total: phases.append((phase, done, total)))
        source.close()
    ends = {phase: (done, total) for phase, done, total in phases}
    assert all(done == total for done, total in ends.values()), ends
    return report


def test_what_was_processed_live_is_what_the_log_makes_of_it(stack: EmbeddedStack) -> None:
    with redis.Redis.from_url(stack.valkey.url) as live:
        report = compared(stack.settings, live)
        in_redis = {kind: len(live.keys(f"*:{kind}:*")) for kind in ("ctx", "tl", "sig", "stats", "fence", "wake")}  # type: ignore[arg-type]
    assert report.first is None
    assert not report.differing
    assert report.unconfirmed == 0
    assert report.compared == in_redis | {"identity": 2 * 40}  # each customer: an owner and a unique value
    assert in_redis["ctx"] == in_redis["tl"] == in_redis["sig"] * 10 == 40


@pytest.mark.parametrize(
    ("kind", "before", "after", "path"),
    [
        ("ctx", b'"channels":{"', b'"channels":{"x', "$.channels."),
        ("ctx", b'"stream_time_ms":17', b'"stream_time_ms":18', "$.stream_time_ms"),
        ("sig", b'"rule":"poor', b'"rule":"pour', "$.active[0].rule"),
        ("stats:context", b'"events|web|page.viewed":', b'"events|web|page.viewed":1', "$.events|web|page.viewed"),
    ],
)
def test_a_changed_byte_is_found_and_its_key_and_path_are_named(
    stack: EmbeddedStack, kind: str, before: bytes, after: bytes, path: str
) -> None:
    with redis.Redis.from_url(stack.valkey.url) as live:
        key = next(key for key in sorted(live.keys(f"*}}:{kind}*")) if before in live.get(key))  # type: ignore[type-var, operator, arg-type]
        live.set(key, live.get(key).replace(before, after))  # type: ignore[union-attr, arg-type]
        report = compared(stack.settings, live)
    assert sum(report.differing.values()) == 1
    assert report.first is not None
    assert report.first.key == key.decode()
    assert report.first.path.startswith(path)


def test_a_lost_a_foreign_and_a_stolen_key_are_found(stack: EmbeddedStack) -> None:
    with redis.Redis.from_url(stack.valkey.url) as live:
        place = layout(live)
        lost, *_, kept = sorted(live.keys("*:ctx:*"))  # type: ignore[type-var, arg-type]
        document = live.getdel(lost)
        live.set(place.document("2", "ctx", "nobody"), document)  # type: ignore[arg-type]
        owner = sorted(live.keys("*{id*}:user_id:*"))[0]  # type: ignore[type-var, arg-type]
        live.set(owner, kept[-36:] + b"e1")
        report = compared(stack.settings, live)
    assert report.differing == {"ctx": 2, "identity": 1}


def test_what_cannot_be_compared_is_not_called_the_same(stack: EmbeddedStack) -> None:
    with redis.Redis.from_url(stack.valkey.url) as live:
        live.zadd(layout(live).document("2", "ctx", "somebody"), {"a": 1})
        live.hset(layout(live).owner(1, "user_id:nobody"), "a", "b")
        report = compared(stack.settings, live)
    assert report.differing == {"ctx": 1}
    assert report.first is not None
    assert report.first.path == "$ (a zset: not compared)"
    assert report.unconfirmed == 1


def test_no_value_is_told_unless_asked_for() -> None:
    one, other = {"items": {"a": {"title": "Lin's parcel"}}}, {"items": {"a": {"title": "Lin's parcels"}}}
    found = difference("segue:1:{2}:ctx:key", orjson.dumps(one), orjson.dumps(other))
    assert found is not None
    assert found.told(False) == (
        "segue:1:{2}:ctx:key at $.items.a.title: rebuilt text of 12 characters, live text of 13 characters"
    )
    assert "Lin's parcels" in found.told(True)
    claimed = difference("segue:1:{id3}:email:lin@example.com", b"one", None)
    assert claimed is not None
    assert claimed.told(False) == "segue:1:{id3}:email:(15 characters) at $: rebuilt 3 bytes, live nothing"


def test_the_same_content_in_other_bytes_is_a_difference() -> None:
    found = difference("key", b'{"a":1,"b":2}', b'{"b":2,"a":1}')
    assert found is not None
    assert found.path == "$ (same content, other bytes from 2 on)"
    assert described(1.5) == "a number of 3 digits"


def test_a_log_that_lost_its_start_is_refused(stack: EmbeddedStack) -> None:
    log = runtime.open_log(stack.settings)
    with log._file.transaction():  # type: ignore[attr-defined]
        topic = log._file.topic("segue.interactions")[0]  # type: ignore[attr-defined]
        log._file.db.execute("DELETE FROM records WHERE topic = ? AND offset < 3", (topic,))  # type: ignore[attr-defined]
    with redis.Redis.from_url(stack.valkey.url) as live, pytest.raises(Unable, match=r"segue\.interactions no longer"):
        compared(stack.settings, live)


@pytest.mark.parametrize("where", ["embedded", "kafka"])
def test_it_runs_beside_live_processors_and_disturbs_nothing(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, redis_client: redis.Redis, redis_url: str
) -> None:
    kafka = without_topics(request.getfixturevalue("kafka_broker").bootstrap) if where == "kafka" else None
    settings = Settings(data_dir=tmp_path, redis=redis_url, kafka=kafka, partitions=3, event_partitions=1)
    runtime.open_log(settings).create_topics(runtime.all_topics(settings))
    with Processes(settings) as processes:
        processes.start()
        sender = Sender(settings)
        sender.start()
        eventually(lambda: applied(redis_client) > 300, 60, "the first events")
        report = compared(settings, redis_client)
        eventually(lambda: applied(redis_client) > 600, 60, "events after it")
        again = compared(settings, redis_client)
        sent = sender.stop()
        eventually(lambda: applied(redis_client) == sent, 60, "every event, once")
    assert (report.first, again.first) == (None, None)
    assert report.compared["ctx"] == again.compared["ctx"] == 40


def test_without_a_layout_it_says_so(redis_client: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(SegueError, match="no Segue has run"):
        compared(Settings(data_dir=tmp_path, redis=redis_url), redis_client)
