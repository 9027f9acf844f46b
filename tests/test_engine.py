"""The order of effects: whatever fails in between, state and log end as if nothing had failed.

The oracle is a plain count of what was sent; it shares no code with the engine or the core.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import orjson
import pytest
import redis
from msgspec import structs

import streams.context
from segue.core.context import Policy
from segue.core.event import Identifier
from segue.core.interaction import Entry, Interaction
from segue.core.lineage import Merge, Transfer
from segue.engine import Engine
from segue.errors import Fenced, LogUnavailable, MemberLost, StoreUnavailable, WentBack
from segue.log.port import TP, Member, Output, Record
from segue.log.sqlite import SqliteLog
from segue.metrics import FORGOTTEN_MS, Snapshot, decode
from segue.processor import Shard, load_missing
from segue.rebuild.replay import SilentEngine
from segue.settings import Settings
from segue.store.keys import METRICS, Layout
from segue.store.shards import Fence, ShardStore, Write
from segue.topics import INTERACTIONS, JOURNEY_STEPS, all_topics
from streams.context import ContextProcessor
from tests.support.contexts import contexts

PARTITIONS = 3
LAYOUT = Layout(PARTITIONS)


class Crash(BaseException):
    """The process dies here: nothing after it runs, nothing catches it."""


class Faulty(ShardStore):
    """A store on which the nth write goes wrong in a chosen way."""

    def __init__(self, client: redis.Redis, fault: Callable[[], None] | None = None, at: int = 0) -> None:
        super().__init__(client, LAYOUT, "context", "ctx")
        self._fault, self._at, self.writes = fault, at, 0

    def begin(self, writes: list[Write]) -> None:
        self.writes += 1
        if self._fault is not None and self.writes == self._at:
            self._fault()
        super().begin(writes)


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    log = SqliteLog(tmp_path / "log.sqlite")
    log.create_topics(all_topics(PARTITIONS, 1))
    return log


def interactions(count: int, customers: int = 20, first: int = 0) -> list[Output]:
    outputs = []
    for n in range(first, first + count):
        key = f"customer-{n % customers}"
        entry = Entry(f"e{n}", "page.viewed", ("web", "app")[n // customers % 2], 1_000_000 + n * 1000, 2_000_000 + n)
        record = Interaction(key, entry, (Identifier("user_id", key),))
        outputs.append(Output(INTERACTIONS, key.encode(), msgspec.json.encode(record)))
    return outputs


def run(
    log: SqliteLog,
    store: ShardStore,
    *,
    instance: str = "one",
    batch: int = 40,
    turns: int = 1000,
    cache_mb: int = 200,
) -> Engine:
    """Run an engine until it has been idle for a dozen looks."""
    rounds = iter(range(turns))
    idle = Counter[str]()

    def stop() -> bool:
        applied = str(engine.meter.counts)
        idle[applied] += 1
        return idle[applied] > 12 or next(rounds, None) is None

    engine = Engine(ContextProcessor(store, Policy()), log, store, instance, stop, batch, cache_mb)
    engine.run()
    return engine


def steps(log: SqliteLog) -> Counter[tuple[str, int]]:
    found = [orjson.loads(record.value() or b"") for record in log.read(JOURNEY_STEPS)]
    return Counter((step["customer_key"], step["revision"]) for step in found)


def documents(client: redis.Redis) -> dict[str, bytes]:
    return {key.decode(): raw for key, raw in contexts(client).items()}


def assert_exactly_once(log: SqliteLog, client: redis.Redis, sent: int, customers: int = 20) -> None:
    each = sent // customers
    stored = [orjson.loads(raw) for raw in documents(client).values()]
    assert {doc["customer_key"]: sum(doc["channels"].values()) for doc in stored} == {
        f"customer-{n}": each for n in range(customers)
    }
    assert steps(log) == Counter({(f"customer-{c}", r): 1 for c in range(customers) for r in range(1, each + 1)})
    counted = Counter[str]()
    for shard in range(PARTITIONS):
        raw: Any = client.get(LAYOUT.stats(str(shard), "context"))
        counted.update(orjson.loads(raw or b"{}"))
    assert counted["events|web|page.viewed"] + counted["events|app|page.viewed"] == sent


def test_every_interaction_is_applied_once_and_gives_one_step(log: SqliteLog, redis_client: redis.Redis) -> None:
    log.append(interactions(400))
    run(log, Faulty(redis_client))
    assert_exactly_once(log, redis_client, 400)


def crash() -> None:
    raise Crash


@pytest.mark.parametrize("at", [1, 3])
def test_a_crash_between_commit_and_write_is_replayed_without_emitting_twice(
    log: SqliteLog, redis_client: redis.Redis, at: int
) -> None:
    log.append(interactions(400))
    with pytest.raises(Crash):
        run(log, Faulty(redis_client, crash, at))
    engine = run(log, Faulty(redis_client))
    assert engine.meter.counts["replayed"] > 0
    assert_exactly_once(log, redis_client, 400)


def test_a_write_with_unknown_outcome_is_settled_by_the_fence(log: SqliteLog, redis_client: redis.Redis) -> None:
    class Cut(Faulty):
        """The connection breaks after the server has executed the write."""

        def finish(self) -> list[str]:
            surprised = super().finish()
            if self.writes == 2:
                self.writes += 1
                raise StoreUnavailable("the reply never came")
            return surprised

    log.append(interactions(400))
    engine = run(log, Cut(redis_client))
    assert engine.meter.counts["outages"] == 1
    assert_exactly_once(log, redis_client, 400)


def test_a_backlog_is_worked_on_while_redis_writes_and_nothing_is_committed_before_it_has_answered(
    log: SqliteLog, redis_client: redis.Redis
) -> None:
    done: list[str] = []

    class Told(Faulty):
        def begin(self, writes: list[Write]) -> None:
            done.append("begin")
            super().begin(writes)

        def finish(self) -> list[str]:
            done.append("finish")
            return super().finish()

    class Applying(ContextProcessor):
        def apply(self, batch: Any) -> list[Output]:
            done.append("apply")
            return super().apply(batch)

    class Committing(SqliteLog):
        def join(self, *given: Any) -> Any:
            member = super().join(*given)
            inner = member.begin

            def begin(outputs: Any, offsets: Any) -> None:
                if outputs:
                    done.append("commit")
                inner(outputs, offsets)

            member.begin = begin  # type: ignore[method-assign]
            return member

    log.append(interactions(400))
    store, idle = Told(redis_client), Counter[int]()

    def stop() -> bool:
        idle[len(done)] += 1
        return idle[len(done)] > 12

    engine = Engine(Applying(store, Policy()), Committing(log._path), store, "one", stop, 40)
    engine.run()
    turns = "".join({"apply": "a", "commit": "c", "begin": "b", "finish": "f"}[each] for each in done)
    assert "cbafcb" in turns, turns  # applied while the write before was under way
    assert set(turns.replace("a", "").split("cbf")) == {""}, turns  # each answered before the next commit
    assert_exactly_once(log, redis_client, 400)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_write_that_is_refused_while_the_next_turn_is_applied_is_done_again(
    log: SqliteLog, redis_client: redis.Redis, at: int
) -> None:
    class Refused(Faulty):
        """The server lost the fence before it executed the write."""

        def begin(self, writes: list[Write]) -> None:
            self.writes += 1
            if self.writes == at:
                redis_client.delete(*(LAYOUT.fence(write.shard, "context") for write in writes))
            ShardStore.begin(self, writes)

    log.append(interactions(400))
    engine = run(log, Refused(redis_client))
    assert engine.meter.counts["fence_surprises"]
    assert_exactly_once(log, redis_client, 400)


class Slow(SqliteLog):
    """A commit takes effect when `finish` is called, and has ended after some looks; some of them fail then."""

    fails: ClassVar[dict[int, Exception]] = {}

    def join(self, *given: Any) -> Any:
        member = super().join(*given)
        inner, under_way, looks, commits = member.begin, list[Any](), iter(range(10**9)), iter(range(1, 10**9))

        def begin(outputs: Any, offsets: Any) -> None:
            assert not under_way, "one commit at a time"
            under_way.append((list(outputs), dict(offsets)))

        def finish() -> None:
            outputs, offsets = under_way.pop()
            error = self.fails.pop(next(commits), None) if outputs else None
            if error is not None:
                raise error
            inner(outputs, offsets)

        member.begin, member.finish = begin, finish  # type: ignore[method-assign]
        member.finished = lambda: next(looks) % 3 == 2  # type: ignore[method-assign]
        return member


@pytest.mark.parametrize("portion", [4, None])
@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("error", [Fenced, LogUnavailable, MemberLost, None])
def test_a_commit_that_ends_while_the_next_turn_is_applied_is_whole_or_is_done_again(
    log: SqliteLog,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    portion: int | None,
    error: type[Exception] | None,
) -> None:
    """The cache holds next to nothing, so the next turn also reads documents that are still to be written."""
    done: list[str] = []

    class Told(Faulty):
        def begin(self, writes: list[Write]) -> None:
            done.append("write")
            super().begin(writes)

        def take_over(self, *given: Any) -> Any:
            assert not self._coming, "a write that will never be sent is still expected"
            return super().take_over(*given)

    class Telling(ContextProcessor):
        def apply(self, batch: Any) -> list[Output]:
            done.append("apply")
            return super().apply(batch)

    class Watched(Slow):
        fails: ClassVar[dict[int, Exception]] = {} if error is None else {at: error("at the end of a commit")}

        def join(self, *given: Any) -> Any:
            member = super().join(*given)
            begin, finish = member.begin, member.finish
            member.begin = lambda *what: (done.append("begin"), begin(*what))
            member.finish = lambda: (finish(), done.append("committed"))
            return member

    monkeypatch.setattr(ContextProcessor, "portion", portion)
    log.append(interactions(400))
    store, idle = Told(redis_client), Counter[int]()

    def stop() -> bool:
        idle[len(done)] += 1
        return idle[len(done)] > 12

    engine = Engine(Telling(store, Policy()), Watched(log._path), store, "one", stop, 40, cache_mb=0)
    engine.run()
    if portion is not None:
        assert "begin apply committed write" in " ".join(dict.fromkeys(done[done.index("begin") :])), done
    for before, after in pairwise(each for each in done if each != "apply"):
        assert after != "write" or before in ("committed", "write"), done  # nothing is written before its commit
    assert engine.meter.counts["fence_surprises"] == 0
    assert_exactly_once(log, redis_client, 400)


def test_a_refused_commit_of_what_another_owns_by_then_is_forgotten(log: SqliteLog, redis_client: redis.Redis) -> None:
    """All partitions are revoked while a commit is under way that is refused for it; one of them comes back later."""
    polls, phase, went = iter(range(10**9)), "before", Counter[str]()
    every = [(INTERACTIONS, number) for number in range(PARTITIONS)]
    late = every[0]

    class Passing(Slow):
        fails: ClassVar[dict[int, Exception]] = {2: Fenced("another owns them")}

        def join(self, *given: Any) -> Any:
            member = super().join(*given)
            poll, begin, finish, finished = member.poll, member.begin, member.finish, member.finished
            begun: list[int] = []
            member.finished = lambda: finished() and len(begun) != 2  # that one lasts until they are revoked

            def moving(*how: Any) -> Any:
                nonlocal phase
                polled = poll(*how)
                others = {tp: found for tp, found in polled.records.items() if tp != late}
                if phase == "before" and len(begun) == 2:
                    phase = "revoked"
                    return polled._replace(records={}, ended=[], revoked=every)
                if phase == "revoked":
                    phase = "away"
                    return polled._replace(records={}, ended=[], assigned=every[1:])
                number = next(polls) if phase in ("away", "back") else -1
                if number == 20:
                    phase = "back"
                    return polled._replace(records=others, ended=[], assigned=[late])
                if number == 40:
                    phase = "after"
                    member.start(late, 14)  # what was left out comes again
                return polled._replace(records=others) if number >= 0 else polled

            def refusing(outputs: Any, offsets: Any) -> None:
                if phase == "away" and late in offsets:
                    raise Fenced("1 partitions have another owner now")  # as Kafka's member says at once
                outputs = list(outputs)
                begun.extend([len(outputs)] if outputs else [])
                begin(outputs, offsets)

            def counting() -> None:
                finish()
                went[phase] += begun[-1] if begun else 0
                there = Counter(record.partition() for record in log.read(JOURNEY_STEPS))
                for (_, partition), offset in member.committed(every).items():
                    assert offset in (None, there[partition]), "an offset was committed without its step"

            member.poll, member.begin, member.finish = moving, refusing, counting
            return member

    log.append(interactions(4000))
    run(Passing(log._path), Faulty(redis_client))
    assert phase == "after"
    assert went["away"] > 400, went  # the others went on
    assert went["back"] > 400, went
    assert_exactly_once(log, redis_client, 4000)


def test_a_turn_reads_its_documents_at_once_and_before_the_write_before_it_is_sent(
    log: SqliteLog, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Customers come by in turn, and the cache holds next to nothing: what a turn needs was written two turns ago."""
    done: list[str] = []

    class Telling(Faulty):
        def begin(self, writes: list[Write]) -> None:
            done.append("write")
            super().begin(writes)

        def _read(self, wanted: Any, fences: Any) -> Any:
            done.append("read")
            return super()._read(wanted, fences)

    class Committing(Slow):
        def join(self, *given: Any) -> Any:
            member = super().join(*given)
            begin = member.begin
            member.begin = lambda outputs, offsets: (done.append("commit"), begin(outputs, offsets))
            return member

    monkeypatch.setattr(ContextProcessor, "portion", 4)
    log.append(interactions(1200, customers=300))
    store, idle = Telling(redis_client), Counter[int]()

    def stop() -> bool:
        idle[len(done)] += 1
        return idle[len(done)] > 12

    Engine(ContextProcessor(store, Policy()), Committing(log._path), store, "one", stop, 40, cache_mb=0).run()
    turns = " ".join(done)
    assert turns.count("commit read write") > 20, turns
    assert "read read" not in turns, turns
    assert "write read" not in turns, turns
    assert_exactly_once(log, redis_client, 1200, customers=300)


def test_what_was_read_ahead_for_a_turn_that_fails_is_not_used_afterwards(
    log: SqliteLog, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread: list[int] = []
    held: list[int] = []

    class Failing(ContextProcessor):
        def apply(self, batch: Any) -> list[Output]:
            if not unread and store._ahead:
                unread.append(len(store._ahead))
                raise WentBack("in the middle of a turn")
            return super().apply(batch)

    class Telling(Faulty):
        def take_over(self, *given: Any) -> Any:
            held.append(len(self._ahead))
            return super().take_over(*given)

    monkeypatch.setattr(ContextProcessor, "portion", 4)
    log.append(interactions(400, customers=200))
    run(log, Faulty(redis_client))
    log.append(interactions(400, customers=200, first=400))
    store, rounds = Telling(redis_client), iter(range(60))
    Engine(Failing(store, Policy()), log, store, "one", lambda: next(rounds, None) is None, 40).run()
    assert unread, "it did not fail"
    assert len(held) > PARTITIONS, "it did not take partitions over again"
    assert not any(held), held
    assert_exactly_once(log, redis_client, 800, customers=200)


def test_who_has_nothing_to_load_waits_for_no_write() -> None:
    class Untouched:
        def load(self, *_: object) -> Iterator[bytes]:
            raise AssertionError("asked for nothing, it would wait for the write under way")

    load_missing(Untouched(), [], lambda *_: None)  # type: ignore[arg-type]


def test_steps_come_in_the_order_of_their_records_though_those_of_a_customer_are_applied_together(
    log: SqliteLog, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []

    class Telling(ContextProcessor):
        portion = 5

        def read(self, shard: Shard, records: list[Record]) -> list[Any]:
            applied.extend((record.key() or b"").decode() for record in records)
            return super().read(shard, records)

    log.append(interactions(400))
    store, rounds = Faulty(redis_client), iter(range(60))
    Engine(Telling(store, Policy()), log, store, "one", lambda: next(rounds, None) is None, 1000).run()
    assert sum(1 for _ in groupby(applied)) == 20  # each customer's at one go
    sent, told = (
        [(record.partition(), orjson.loads(record.value() or b"")["entry"]["id"]) for record in log.read(topic)]
        for topic in (INTERACTIONS, JOURNEY_STEPS)
    )
    assert told == sent
    assert_exactly_once(log, redis_client, 400)


def test_touchpoints_beyond_the_limit_are_those_that_came_last_however_records_are_taken_in(
    log: SqliteLog, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams.context, "MAX_TOUCHPOINTS", 3)
    sent = []
    for n, output in enumerate(interactions(200)):
        found = msgspec.json.decode(output.value or b"", type=Interaction)
        found.entry.touchpoint = f"page-{n // 10}"
        sent.append(structs.replace(output, value=msgspec.json.encode(found)))
    log.append(sent)
    first: dict[int, list[str]] = {}
    for output in log.read(INTERACTIONS):
        found = msgspec.json.decode(output.value() or b"", type=Interaction)
        named = first.setdefault(output.partition(), [])
        name = f"touchpoint|{found.entry.channel}|{found.entry.touchpoint}"
        if name not in named:
            named.append(name)
    for portion in (2, 7, None):
        monkeypatch.setattr(ContextProcessor, "portion", portion)
        redis_client.flushdb()
        run(log, Faulty(redis_client), batch=1000, instance=str(portion))
        for partition, names in first.items():
            raw: Any = redis_client.get(LAYOUT.stats(str(partition), "context"))
            counted = {name for name in orjson.loads(raw) if name.startswith("touchpoint|") and "(more)" not in name}
            assert counted == set(names[:3])


def test_in_portions_the_end_is_the_same_as_at_once(
    log: SqliteLog, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append([*interactions(400), *out_of_order(200, 5, first=400), *merging(600)])
    for _ in range(5):  # until the owners have nothing to tell each other any more
        run(log, Faulty(redis_client))
    found = [documents(redis_client)]
    for portion in (1, 7, None):
        monkeypatch.setattr(ContextProcessor, "portion", portion)
        redis_client.flushdb()
        run(log, Faulty(redis_client), batch=1000, instance=str(portion))
        found.append(documents(redis_client))
    assert found[1:] == found[:1] * 3


def test_an_emptied_redis_is_rebuilt_byte_for_byte(log: SqliteLog, redis_client: redis.Redis) -> None:
    log.append(interactions(400))
    run(log, Faulty(redis_client))
    before = documents(redis_client)
    redis_client.flushdb()
    run(log, Faulty(redis_client))
    assert documents(redis_client) == before
    assert_exactly_once(log, redis_client, 400)


def test_a_redis_that_went_back_in_time_while_we_run_is_noticed(log: SqliteLog, redis_client: redis.Redis) -> None:
    """A failover that lost acknowledged writes: documents and fence are older than what we wrote."""
    log.append(interactions(200))
    run(log, Faulty(redis_client))
    old: dict[bytes, Any] = {key: redis_client.dump(key) for key in redis_client.keys("*")}  # type: ignore[union-attr]

    def fail_over() -> None:
        redis_client.flushdb()
        for key, value in old.items():
            redis_client.restore(key, 0, value)

    log.append(interactions(200, first=200))
    engine = run(log, Faulty(redis_client, fail_over, 3))
    assert engine.meter.counts["fence_surprises"] > 0
    assert_exactly_once(log, redis_client, 400)


def test_nothing_is_derived_from_documents_that_went_back_in_time(log: SqliteLog, redis_client: redis.Redis) -> None:
    """The failover comes before a read: what is emitted must not follow from the older documents."""
    log.append(interactions(200))
    run(log, Faulty(redis_client))
    old: dict[bytes, Any] = {key: redis_client.dump(key) for key in redis_client.keys("*")}  # type: ignore[union-attr]

    class FailedOver(Faulty):
        loads = 0

        def load(self, wanted: list[tuple[str, str]], fences: Mapping[str, bytes]) -> list[bytes | None]:
            if wanted:
                self.loads += 1
                if self.loads == 3:
                    redis_client.flushdb()
                    for key, value in old.items():
                        redis_client.restore(key, 0, value)
            return super().load(wanted, fences)

    log.append(interactions(200, first=200))
    engine = run(log, FailedOver(redis_client), cache_mb=0)  # so that each turn reads
    assert engine.meter.counts["fence_surprises"] == 1
    assert_exactly_once(log, redis_client, 400)


@pytest.mark.parametrize(("size", "fits"), [(10, True), (8000, False)])
def test_the_cache_holds_fewer_documents_when_they_are_large(
    log: SqliteLog, redis_client: redis.Redis, size: int, fits: bool
) -> None:
    class Counting(ShardStore):
        found = 0

        def load(self, wanted: list[tuple[str, str]], fences: Mapping[str, bytes]) -> Iterator[bytes | None]:
            for raw in super().load(wanted, fences):
                self.found += raw is not None
                yield raw

    for first in (0, 200):  # each customer comes twice
        for output in interactions(200, customers=200, first=first):
            found = msgspec.json.decode(output.value or b"", type=Interaction)
            found.entry.touchpoint = "n" * size  # the current place is part of the document
            log.append([structs.replace(output, value=msgspec.json.encode(found))])
    store = Counting(redis_client, LAYOUT, "context", "ctx")
    run(log, store, cache_mb=1)
    assert (store.found == 0) == fits
    assert sorted(steps(log).items()) == sorted(((f"customer-{n}", r), 1) for n in range(200) for r in (1, 2))


def test_an_owner_that_was_replaced_writes_nothing(log: SqliteLog, redis_client: redis.Redis) -> None:
    """A pause between commit and write, long enough for another owner to take over and go on."""
    left_by_the_other: dict[str, bytes] = {}

    class Paused(Faulty):
        def begin(self, writes: list[Write]) -> None:
            if self.writes != 1:
                super().begin(writes)
                return
            with log._file.transaction():  # what the group does with a member that is silent for too long
                log._file.db.execute("DELETE FROM leases")
                log._file.db.execute("DELETE FROM members")
            run(log, Faulty(redis_client), instance="two")
            left_by_the_other.update(documents(redis_client))
            super().begin(writes)
            self._refused += self._answered()
            assert self._refused == [write.shard for write in writes]
            assert documents(redis_client) == left_by_the_other

    log.append(interactions(400))
    run(log, Paused(redis_client))
    assert left_by_the_other
    assert_exactly_once(log, redis_client, 400)


@pytest.mark.parametrize("at", [0, 1])
def test_a_topic_made_anew_does_not_hide_its_records_behind_old_offsets(
    log: SqliteLog, redis_client: redis.Redis, at: int
) -> None:
    def outage() -> None:
        raise StoreUnavailable("away for a moment")

    log.append(interactions(200))
    run(log, Faulty(redis_client))
    with log._file.transaction():
        db, topic = log._file.db, log._file.topic(INTERACTIONS)[0]
        for table in ("records", "heads", "offsets"):
            db.execute(f"DELETE FROM {table} WHERE topic = ?", (topic,))
        db.execute("UPDATE topics SET topic_id = 'another' WHERE id = ?", (topic,))
    log.append(interactions(200, first=200))
    # With the first batch of the new topic committed and not written: its offsets are good, our fence is the old one's.
    run(log, Faulty(redis_client, outage, at) if at else Faulty(redis_client))
    assert_exactly_once(log, redis_client, 400)


class Looking(Faulty):
    """Counts the reads of timelines, and how many they were of; `before` is called before each."""

    def __init__(self, client: redis.Redis, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(client)
        self._before, self.asked = before, list[int]()

    def entries(self, wanted: list[tuple[str, str]], fences: Mapping[str, bytes]) -> Iterator[list[bytes]]:
        self.asked.append(len(wanted))
        self._before()
        return super().entries(wanted, fences)


def out_of_order(count: int, behind: int, first: int) -> list[Output]:
    """Interactions that happened before the last so many of their customers."""
    sent = []
    for output in interactions(count, first=first):
        found = msgspec.json.decode(output.value or b"", type=Interaction)
        found.entry.event_time_ms -= behind * 20_000 + 500  # there are 20 customers, and a second between two events
        sent.append(structs.replace(output, value=msgspec.json.encode(found)))
    return sent


def assert_in_event_time_order(client: redis.Redis, sent: list[Output], keep: int = 50) -> None:
    expected: dict[str, list[tuple[int, str]]] = {}
    for output in sent:
        found = msgspec.json.decode(output.value or b"", type=Interaction)
        line = expected.setdefault(found.customer_key, [])
        at = len(line)
        while at and line[at - 1][0] > found.entry.event_time_ms:
            at -= 1
        line.insert(at, (found.entry.event_time_ms, found.entry.id))
        del line[:-keep]
    stored = [orjson.loads(raw) for raw in documents(client).values()]
    assert {
        document["customer_key"]: [(entry["event_time_ms"], entry["id"]) for entry in document["timeline"]]
        for document in stored
    } == expected


@pytest.mark.parametrize("cache_mb", [0, 200])
@pytest.mark.parametrize("behind", [1, 5])
def test_events_out_of_order_find_their_place_in_a_timeline_that_is_not_in_memory(
    log: SqliteLog, redis_client: redis.Redis, behind: int, cache_mb: int
) -> None:
    sent = interactions(1200)  # 60 each: more than a timeline keeps
    sent += out_of_order(200, behind, first=1200)
    log.append(sent)
    store = Looking(redis_client)
    engine = run(log, store, cache_mb=cache_mb)
    assert_in_event_time_order(redis_client, sent)
    assert_exactly_once(log, redis_client, 1400)
    assert engine.meter.counts["fence_surprises"] == 0
    assert 1 not in store.asked, "a turn's timelines are read together"
    before = documents(redis_client)
    redis_client.flushdb()
    run(log, Faulty(redis_client), batch=7)
    assert documents(redis_client) == before


def test_nothing_is_derived_from_timelines_that_went_back_in_time(log: SqliteLog, redis_client: redis.Redis) -> None:
    sent = interactions(200)
    log.append(sent)
    run(log, Faulty(redis_client))
    old: dict[bytes, Any] = {key: redis_client.dump(key) for key in redis_client.keys("*")}  # type: ignore[union-attr]

    def fail_over() -> None:
        if len(store.asked) == 1:
            redis_client.flushdb()
            for key, value in old.items():
                redis_client.restore(key, 0, value)

    more = [*interactions(200, first=200), *out_of_order(200, 5, first=400)]
    log.append(more)
    store = Looking(redis_client, fail_over)
    engine = run(log, store)
    assert engine.meter.counts["fence_surprises"] == 1
    assert_in_event_time_order(redis_client, sent + more)
    assert_exactly_once(log, redis_client, 600)


def test_a_duplicate_from_a_retrying_client_changes_nothing(log: SqliteLog, redis_client: redis.Redis) -> None:
    sent = interactions(200)
    log.append(sent + sent[:100])
    run(log, Faulty(redis_client))
    assert_exactly_once(log, redis_client, 200)


def test_what_is_no_interaction_becomes_a_dead_letter_and_the_next_record_is_processed(
    log: SqliteLog, redis_client: redis.Redis
) -> None:
    log.append([Output(INTERACTIONS, b"customer-0", b'{"cut'), *interactions(200)])
    run(log, Faulty(redis_client))
    assert_exactly_once(log, redis_client, 200)
    dead = list(log.read("segue.dead-letters"))
    assert [record.value() for record in dead] == [b'{"cut']
    assert dict(dead[0].headers() or ())["segue.err.code"] == b"not_an_interaction"


def merging(first: int = 0) -> list[Output]:
    """Two pairs of customers merge between their events; one of the merges is undone."""
    records = interactions(80, customers=4, first=first)
    for at, step, survivor, absorbed in (
        (30, "merge", 0, 1), (40, "merge", 2, 3), (70, "unmerge", 0, 1),
    ):  # fmt: skip
        merge = Merge(f"customer-{survivor}", f"customer-{absorbed}", f"e{at}", at, "user_id with cookie_id")
        transfer = Transfer(merge.absorbed, step, merge)  # type: ignore[arg-type]
        records.insert(at, Output(INTERACTIONS, merge.absorbed.encode(), msgspec.json.encode(transfer)))
    return records


@pytest.mark.parametrize("at", range(1, 8))
def test_a_crash_at_any_step_of_a_merge_changes_nothing_of_its_end(
    log: SqliteLog, tmp_path: Path, redis_client: redis.Redis, at: int
) -> None:
    """What one owner writes for another's partition comes at another time, so of contexts the events are compared."""
    log.append(merging())
    crashed = Faulty(redis_client, crash, at)
    with suppress(Crash):
        run(log, crashed, batch=10)
    for _ in range(4):  # until the owners have nothing to tell each other any more
        run(log, Faulty(redis_client), batch=10)
    assert crashed.writes >= at, "it did not come to a crash"
    found = {key.rpartition(":")[2]: orjson.loads(raw) for key, raw in documents(redis_client).items()}
    events = {f"customer-{c}": {f"e{n}" for n in range(c, 80, 4)} for c in range(4)}
    for customer, expected in (
        ("customer-0", events["customer-0"]),
        ("customer-1", events["customer-1"]),
        ("customer-2", events["customer-2"] | events["customer-3"]),
        ("customer-2/customer-3", events["customer-3"]),
    ):
        assert {entry["id"] for entry in found[customer]["timeline"]} == expected
        assert sum(found[customer]["channels"].values()) == len(expected)
    said = Counter(orjson.loads(record.value() or b"")["entry"]["id"] for record in log.read(JOURNEY_STEPS))
    assert [count for event, count in said.items() if event.startswith("e") and event[1:].isdigit()] == [1] * 80


def test_the_fence_says_how_far_the_state_is(log: SqliteLog, redis_client: redis.Redis) -> None:
    log.append(interactions(300))
    run(log, Faulty(redis_client))
    reached = 0
    for shard in range(PARTITIONS):
        raw: Any = redis_client.get(LAYOUT.fence(str(shard), "context"))
        reached += msgspec.json.decode(raw, type=Fence).next_offset
    assert reached == 300


class NoOwner(SqliteLog):
    """The group never lets this member prove that a partition is its own."""

    def join(self, *args: object) -> Member:
        member = super().join(*args)  # type: ignore[arg-type]
        begin = member.begin

        def refused(outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
            if not outputs:
                raise Fenced("another owns it")
            begin(outputs, offsets)

        member.begin = refused  # type: ignore[method-assign]
        return member


def test_a_partition_that_is_never_taken_over_is_told(
    log: SqliteLog, redis_client: redis.Redis, tmp_path: Path
) -> None:
    log.append(interactions(100))
    run(log, Faulty(redis_client))  # offsets are committed now, so that ownership has to be proven
    until = time.monotonic() + 1.5
    stuck = NoOwner(tmp_path / "log.sqlite")
    Engine(
        ContextProcessor(Faulty(redis_client), Policy()),
        stuck,
        Faulty(redis_client),
        "stuck",
        lambda: time.monotonic() > until,
    ).run()
    told = decode(redis_client.hget(METRICS, "context:stuck"))  # type: ignore[arg-type]
    assert told.restoring > 0
    assert told.stalled_ms > 500


def test_the_metrics_of_processes_long_gone_are_dropped(log: SqliteLog, redis_client: redis.Redis) -> None:
    now = time.time_ns() // 1_000_000
    for instance, age_ms in (("gone", FORGOTTEN_MS + 1000), ("late", 60_000)):
        told = Snapshot("context", instance, now - age_ms, {}, [], 0.0)
        redis_client.hset(METRICS, f"context:{instance}", msgspec.json.encode(told))
    run(log, Faulty(redis_client), turns=20)
    left = {name.decode() for name in redis_client.hkeys(METRICS)}  # type: ignore[union-attr]
    assert left == {"context:late", "context:one"}


def test_a_lost_seat_is_left_before_anything_else_is_asked_of_it(log: SqliteLog, redis_client: redis.Redis) -> None:
    """A client that fails for good may hang at the next call; its partitions are restored by the next seat."""
    asked: list[str] = []
    join = log.join

    def joined(*given: Any) -> Any:
        member = join(*given)
        begin, pause, close = member.begin, member.pause, member.close

        def lost(outputs: Any, offsets: Any) -> None:
            if outputs and not asked:
                asked.append("commit")
                raise MemberLost("the broker forgot us")
            begin(outputs, offsets)

        member.begin = lost
        member.pause = lambda tp: (asked.append("pause"), pause(tp))
        member.close = lambda: (asked.append("close"), close())
        return member

    log.join = joined  # type: ignore[method-assign]
    log.append(interactions(400))
    run(log, Faulty(redis_client), turns=3000)
    assert asked[:2] == ["commit", "close"]
    assert_exactly_once(log, redis_client, 400)


def test_a_seat_that_never_finds_the_log_again_is_given_up(log: SqliteLog, redis_client: redis.Redis) -> None:
    """A client may lose its way for good while the log is there for everybody else."""
    join, seats = log.join, list[Member]()

    def joined(*given: Any) -> Any:
        member = join(*given)
        seats.append(member)
        if len(seats) == 1:

            def lost(tps: Any) -> Any:
                raise LogUnavailable("timed out")

            member.committed = lost
        return member

    log.join = joined  # type: ignore[method-assign]
    log.append(interactions(400))
    store = Faulty(redis_client)
    engine = Engine(ContextProcessor(store, Policy()), log, store, "one", lambda: engine.meter.counts["applied"] == 400)
    engine.run()
    assert len(seats) == 2
    assert_exactly_once(log, redis_client, 400)


@pytest.mark.parametrize("cache_bytes", [0, 10_000_000])
def test_a_silent_replay_reads_what_it_has_just_written(
    log: SqliteLog, redis_client: redis.Redis, cache_bytes: int
) -> None:
    """A read waits for the write under way: that of the engine, whose store the processor must share."""
    log.append(interactions(400))
    silent = SilentEngine("context", Settings(), log, redis_client, LAYOUT, lambda _: None)
    silent._engine._batch, silent._engine._cache_bytes = 40, cache_bytes
    store: Any = silent._engine._store
    send, answered, waiting = store._send, store._answered, list[Any]()

    def answered_late() -> list[str]:
        """As if each write were on its way until somebody asks for its answer."""
        while waiting:
            send(waiting.pop())
        refused: list[str] = answered()
        return refused

    store._send, store._answered = waiting.append, answered_late
    silent.run({(INTERACTIONS, p): end for p, (_, end) in log.bounds(INTERACTIONS).items()})
    silent.close()
    assert silent._engine.meter.counts["fence_surprises"] == 0
    assert {sum(orjson.loads(raw)["channels"].values()) for raw in documents(redis_client).values()} == {20}
