"""A record that the processor cannot take, and too many that it refuses: neither is an outage, neither is silent."""

from __future__ import annotations

from pathlib import Path

import httpx
import msgspec
import orjson
import pytest
import redis
from msgspec import structs
from structlog.testing import capture_logs

from segue import runtime
from segue.core.context import Policy
from segue.deadletters import REPLAY_ATTEMPT, Letter, read
from segue.engine import Engine
from segue.log.port import Output, Record
from segue.log.sqlite import SqliteLog
from segue.metrics import Snapshot
from segue.metrics import decode as decode_snapshot
from segue.processor import Shard
from segue.rejections import Limit
from segue.settings import Settings
from segue.store.identity import IdentityIndex
from segue.store.keys import METRICS
from segue.store.shards import ShardStore, Write
from segue.topics import DEAD_LETTERS, INTERACTIONS, all_topics, event_topic
from streams.context import ContextProcessor
from streams.resolve import Resolve
from tests.support.processes import Processes
from tests.support.stack import ApiServer, EmbeddedStack, eventually
from tests.test_dead_letters import good
from tests.test_dead_letters import settings as either_log  # noqa: F401
from tests.test_engine import LAYOUT, Crash, Faulty, assert_exactly_once, documents, interactions
from tests.test_engine import run as run_sound

PARTITIONS = LAYOUT.partitions
SECRET = "wanda@example.com"


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    log = SqliteLog(tmp_path / "log.sqlite")
    log.create_topics(all_topics(PARTITIONS, 1))
    return log


class Buggy(ContextProcessor):
    """Raises for the events of `bad`, after it has changed the document and counted; or when it reads them."""

    def __init__(self, store: ShardStore, bad: set[str], reading: bool = False) -> None:
        super().__init__(store, Policy())
        self.bad, self.reading = bad, reading

    def read(self, shard: Shard, records: list[Record]) -> list[msgspec.Struct | Output]:  # type: ignore[override]
        if self.reading and any(f'"{name}"'.encode() in (r.value() or b"") for name in self.bad for r in records):
            raise KeyError(SECRET)
        return super().read(shard, records)  # type: ignore[return-value]

    def _one(self, shard, interaction, *rest):  # type: ignore[no-untyped-def]
        super()._one(shard, interaction, *rest)
        if interaction.entry.id in self.bad:
            raise ZeroDivisionError(SECRET)


def engine_of(
    log: SqliteLog,
    processor: ContextProcessor | Resolve,
    store: ShardStore,
    limit: Limit | None = None,
    batch: int = 40,
) -> Engine:
    seen: list[str] = []

    def stop() -> bool:
        seen.append(str(engine.meter.counts))
        return len(seen) > 40 and len(set(seen[-12:])) == 1

    engine = Engine(processor, log, store, "one", stop, batch, limit=limit)
    return engine


def letters(log: SqliteLog) -> list[Letter]:
    found = [read(record) for record in log.read(DEAD_LETTERS)]
    return [letter for letter in found if isinstance(letter, Letter)]


@pytest.mark.parametrize("reading", [False, True])
def test_the_record_that_fails_alone_is_put_away_and_all_others_are_applied_once(
    log: SqliteLog, redis_client: redis.Redis, reading: bool
) -> None:
    sent = interactions(400)
    late = (b'"e423"', b'"e450"')
    extra = [output for output in interactions(460, first=400)[:60] if any(e in (output.value or b"") for e in late)]
    log.append([*sent[:130], extra[0], *sent[130:300], extra[1], *sent[300:]])
    store = Faulty(redis_client)
    with capture_logs() as logs:
        engine = engine_of(log, Buggy(store, {"e423", "e450"}, reading), store)
        engine.run()
    assert_exactly_once(log, redis_client, 400)
    found = letters(log)
    assert {(letter.reason, letter.stage, letter.key, letter.value) for letter in found} == {
        ("processing", "context", output.key, output.value) for output in extra
    }
    assert len(found) == 2
    assert engine.meter.counts["failed"] == 2
    told = [entry for entry in logs if entry["log_level"] == "error"]
    assert {(entry["of"], entry["offset"]) for entry in told} == {
        (f"{letter.topic}-{letter.partition}", letter.offset) for letter in found
    }
    assert all(any("test_faults.py" in place for place in entry["at"]) for entry in told)
    assert SECRET not in str(logs) + str(found)


def test_what_was_put_away_is_put_away_once_over_a_crash_between_commit_and_write(
    log: SqliteLog, redis_client: redis.Redis
) -> None:
    class Dying(Faulty):
        def begin(self, writes: list[Write]) -> None:
            if letters(log):
                raise Crash
            super().begin(writes)

    sent = interactions(200)
    log.append([*sent[:50], *interactions(1, first=450), *sent[50:]])
    store = Dying(redis_client)
    with pytest.raises(Crash):
        engine_of(log, Buggy(store, {"e450"}), store).run()
    store = Faulty(redis_client)
    engine_of(log, Buggy(store, {"e450"}), store).run()
    assert_exactly_once(log, redis_client, 200)
    assert len({letter.id for letter in letters(log)}) == 1


def test_what_fails_in_a_replay_only_is_put_away_too(log: SqliteLog, redis_client: redis.Redis) -> None:
    """Applied once, then Redis is lost and the code that rebuilds it has a bug: nothing else would tell."""
    log.append(interactions(200))
    run_sound(log, Faulty(redis_client))
    redis_client.flushdb()
    store = Faulty(redis_client)
    engine_of(log, Buggy(store, {"e77"}), store).run()
    assert [(letter.reason, b'"e77"' in (letter.value or b"")) for letter in letters(log)] == [("processing", True)]


def test_a_fault_that_no_record_has_a_part_in_ends_the_process(log: SqliteLog, redis_client: redis.Redis) -> None:
    class Broken(ContextProcessor):
        def apply(self, batch):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    log.append(interactions(20))
    store = Faulty(redis_client)
    with pytest.raises(NotImplementedError):
        engine_of(log, Broken(store, Policy()), store).run()


# --- the limit


def bad(count: int, first: int = 0) -> list[Output]:
    """Records of one partition that are no interactions."""
    return [Output(INTERACTIONS, b"k", b"{%d" % n, 0) for n in range(first, first + count)]


def sound(count: int, first: int = 0) -> list[Output]:
    return [structs.replace(output, partition=0) for output in interactions(count, 1, first)]


def snapshot(client: redis.Redis) -> Snapshot:
    (raw,) = client.hvals(METRICS)  # type: ignore[misc]
    return decode_snapshot(raw)


def run_limited(log: SqliteLog, client: redis.Redis, limit: Limit, batch: int = 40) -> None:
    store = Faulty(client)
    engine_of(log, ContextProcessor(store, Policy()), store, limit, batch).run()


def committed(log: SqliteLog, partition: int = 0) -> int:
    member = log.join("segue.context", [INTERACTIONS], "looker")
    try:
        return member.committed([(INTERACTIONS, partition)])[INTERACTIONS, partition] or 0
    finally:
        member.close()


@pytest.mark.parametrize("batch", [3, 40, 2000])
def test_a_run_of_refusals_stops_the_partition_before_the_one_too_many(
    log: SqliteLog, redis_client: redis.Redis, batch: int
) -> None:
    elsewhere = [output for output in interactions(200) if output.key]
    log.append([*sound(5, 1000), *bad(10), *sound(5, 2000)])
    log.append(elsewhere)
    with capture_logs() as logs:
        run_limited(log, redis_client, Limit(run=10), batch)
    assert [letter.offset for letter in letters(log)] == list(range(5, 14))
    assert committed(log) == 14
    assert snapshot(redis_client).stopped == 1
    assert snapshot(redis_client).behind_ms > 1000  # not caught up, though there is nothing that it would read
    told = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["of"], entry["offset"], entry["why"]) for entry in told] == [
        ("segue.interactions-0", 14, "10 in a row")
    ]
    # The customers of the other partitions have all of theirs.
    others = {key for key in documents(redis_client) if "{0}" not in key}
    assert others
    assert sum(msgspec.json.decode(documents(redis_client)[key])["revision"] for key in others) == 10 * len(others)


def test_below_the_limit_nothing_stops(log: SqliteLog, redis_client: redis.Redis) -> None:
    log.append([*bad(9), *sound(1), *bad(9, 9)])
    run_limited(log, redis_client, Limit(run=10))
    assert len(letters(log)) == 18
    assert snapshot(redis_client).stopped == 0


def test_without_a_limit_nothing_stops(log: SqliteLog, redis_client: redis.Redis) -> None:
    log.append(bad(300))
    run_limited(log, redis_client, Limit(0, 0))
    assert len(letters(log)) == 300


def test_a_share_of_refusals_stops_the_partition(log: SqliteLog, redis_client: redis.Redis) -> None:
    mixed = [output for n in range(150) for output in (*sound(9, 9 * n), *bad(1, n))]
    log.append(mixed)
    run_limited(log, redis_client, Limit(share=0.05, run=0), 200)
    assert len(letters(log)) == 99  # the hundredth is the 1,000th record, and 100 of 1,000 are too many
    assert committed(log) == 999


def test_a_restart_tries_again_and_goes_on_where_it_stopped(log: SqliteLog, redis_client: redis.Redis) -> None:
    log.append([*bad(15), *sound(3)])
    run_limited(log, redis_client, Limit(run=10))
    assert committed(log) == 9
    run_limited(log, redis_client, Limit(run=10))
    assert [letter.offset for letter in letters(log)] == list(range(15))
    assert committed(log) == 18


def test_what_an_operator_sent_again_does_not_count(log: SqliteLog, redis_client: redis.Redis) -> None:
    log.append([structs.replace(output, headers=[(REPLAY_ATTEMPT, b"1")]) for output in bad(20)])
    run_limited(log, redis_client, Limit(run=5))
    assert len(letters(log)) == 20


def test_a_bug_in_every_record_stops_the_partition_instead_of_putting_all_away(
    log: SqliteLog, redis_client: redis.Redis
) -> None:
    log.append(sound(30))
    store = Faulty(redis_client)
    engine_of(log, Buggy(store, {f"e{n}" for n in range(30)}), store, Limit(run=5)).run()
    assert [letter.offset for letter in letters(log)] == [0, 1, 2, 3]
    assert committed(log) == 4
    assert documents(redis_client) == {}


def test_a_stopped_partition_holds_up_no_other_in_the_received_order(
    log: SqliteLog, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segue.merge.PATIENCE_S", 3600)
    web, chat = event_topic("web"), event_topic("chat")
    for n in range(8):
        log.append([Output(web, b"user_id:u1", b"{cut")])
        log.append([Output(chat, b"user_id:u1", orjson.dumps(good(f"c{n}", channel="chat")))])
    log.append([Output(web, b"user_id:u1", orjson.dumps(good("w")))])
    log.append([Output(chat, b"user_id:u1", orjson.dumps(good("last", channel="chat")))])
    store = ShardStore(redis_client, LAYOUT, "resolve", "none")
    engine_of(log, Resolve(IdentityIndex(redis_client, LAYOUT), log), store, Limit(run=5), 4).run()
    assert [letter.offset for letter in letters(log)] == [0, 1, 2, 3]
    arrived = [orjson.loads(record.value() or b"")["entry"]["id"] for record in log.read(INTERACTIONS)]
    assert arrived == [*(f"c{n}" for n in range(8)), "last"]
    assert snapshot(redis_client).stopped == 1


def test_a_stop_is_seen_from_outside_and_ends_when_what_follows_is_let_through(tmp_path: Path) -> None:
    topic = event_topic("web")
    events = [b"{cut"] * 5 + [orjson.dumps(good("after"))]
    with EmbeddedStack(tmp_path, reject_run=3, event_partitions=1) as stack, ApiServer(stack.settings).ready() as api:
        stack.append([Output(topic, b"user_id:u1", event) for event in events])
        stack.append([Output(event_topic("chat"), b"user_id:u1", orjson.dumps(good("elsewhere", channel="chat")))])
        eventually(lambda: httpx.get(f"{api.url}/readyz").status_code == 503, what="unreadiness")
        (error,) = httpx.get(f"{api.url}/readyz").json()["errors"]
        assert error["field"] == "resolve"
        assert "stopped" in error["detail"]
        metrics = httpx.get(f"{api.url}/metrics").text.splitlines()
        stopped = [line for line in metrics if line.startswith("segue_partitions_stopped{") and "resolve" in line]
        assert [line.rsplit(" ", 1)[1] for line in stopped] == ["1.0"]
        eventually(lambda: _revision(api) == 1, what="the other channel's event")
        stack.stop("resolve")
        stack.settings = stack.settings.model_copy(update={"reject_run": 0})
        stack.start("resolve")
        stack.drain()
        assert _revision(api) == 2
        eventually(lambda: httpx.get(f"{api.url}/readyz").status_code == 200, 20, "readiness")


def _revision(api: ApiServer) -> int:
    answer = httpx.get(f"{api.url}/v1/customers/user_id:u1/context")
    return int(answer.json()["context"]["revision"]) if answer.status_code == 200 else 0


def test_a_stop_in_a_process_of_its_own_on_either_log(either_log: Settings) -> None:  # noqa: F811
    settings = either_log.model_copy(update={"reject_run": 4})
    source = runtime.open_log(settings)
    web, chat = event_topic("web"), event_topic("chat")
    source.append([Output(web, b"user_id:u1", b"{cut")] * 9)
    source.append([Output(chat, b"user_id:u1", orjson.dumps(good("elsewhere", channel="chat")))])

    def arrived() -> list[str]:
        return [orjson.loads(record.value() or b"")["entry"]["id"] for record in source.read(INTERACTIONS)]

    def put_away() -> list[int]:
        found = [read(record) for record in source.read(DEAD_LETTERS)]
        return sorted(letter.offset for letter in found if isinstance(letter, Letter))

    with Processes(settings) as processes:
        processes.start("resolve")
        eventually(lambda: arrived() == ["elsewhere"] and len(put_away()) >= 3, 60, "the other channel's event")
        eventually(lambda: "stopped: too many" in processes.log_of("resolve").read_text(), 20, "the log line")
        assert put_away() == [0, 1, 2]
        assert processes.stop("resolve") == 0
        processes.start("resolve")
        eventually(lambda: put_away() == [0, 1, 2, 3, 4, 5], 60, "the second try")
        processes.kill("resolve")
        processes.settings = settings.model_copy(update={"reject_run": 0})
        processes.start("resolve")
        eventually(lambda: put_away() == list(range(9)), 60, "the rest, let through")
