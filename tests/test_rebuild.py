"""`segue rebuild`: a new epoch, another number of partitions, under traffic; nothing lost, doubled or unseen.

The oracle counts what was sent, per customer and per answer; it shares no code with Segue.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import httpx
import orjson
import pytest
import redis

from segue import runtime
from segue.errors import SegueError, SettingsError
from segue.log.port import Output
from segue.rebuild import switch
from segue.rebuild.lease import Lease, LeaseLost
from segue.rebuild.switch import drop_old, rebuild
from segue.rebuild.verify import Unable, scratch, verify
from segue.settings import Settings
from segue.store.connect import layout
from segue.store.keys import HOLD, REBUILD, Layout
from segue.store.reader import Reader
from segue.topics import JOURNEY_STEPS, SIGNALS
from tests.support.processes import Processes, environment, without_topics
from tests.support.stack import ApiServer, eventually
from tests.support.streams import SseClient
from tests.test_outages import CUSTOMERS, Sender

PARTITIONS = 6


@pytest.fixture(params=["embedded", "kafka"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, redis_client: redis.Redis, redis_url: str) -> Settings:
    """Of a fresh deployment with an empty Redis."""
    kafka = without_topics(request.getfixturevalue("kafka_broker").bootstrap) if request.param == "kafka" else None
    settings = Settings(data_dir=tmp_path, redis=redis_url, kafka=kafka, partitions=PARTITIONS, event_partitions=1)
    runtime.make_topics(settings, runtime.open_log(settings))
    return settings


@pytest.fixture
def processes(settings: Settings) -> Iterator[Processes]:
    with Processes(settings) as processes:
        processes.start()
        yield processes


@pytest.fixture
def sender(settings: Settings, processes: Processes, redis_client: redis.Redis) -> Iterator[Sender]:
    """Events under way, every processor at work and every customer known.

    Who starts after a change of the partitions is told that its setting is of before. However the test ends, it
    sends nothing to the next one.
    """
    sender, reader = Sender(settings), Reader(redis_client)
    sender.start()
    eventually(lambda: counted(redis_client) > 300 and len(contexts(redis_client)) == CUSTOMERS, 60, "the first events")
    eventually(lambda: reader.freshness(*runtime.PROCESSORS).as_of_ms, 60, "every shard's report")
    yield sender
    sender.stop()


def contexts(client: redis.Redis) -> list[dict[str, object]]:
    """The contexts of the layout in force."""
    keys = client.keys(f"segue:{layout(client).epoch}:*}}:ctx:*")
    return [orjson.loads(raw) for raw in (client.mget(keys) if keys else []) if raw]  # type: ignore[arg-type, union-attr]


def counted(client: redis.Redis) -> int:
    try:
        return sum(sum(document["channels"].values()) for document in contexts(client))  # type: ignore[attr-defined]
    except (redis.RedisError, SegueError):
        return 0


def assert_exactly_once(settings: Settings, client: redis.Redis, sent: int) -> None:
    eventually(lambda: counted(client) >= sent, 60, f"{sent} applied interactions")
    want = Counter(f"u{n % CUSTOMERS}" for n in range(sent))
    found = contexts(client)
    assert {d["identifiers"][0]["value"]: sum(d["channels"].values()) for d in found} == want  # type: ignore[index, attr-defined]
    assert all(d["revision"] == sum(d["channels"].values()) for d in found)  # type: ignore[attr-defined]
    log = runtime.open_log(settings)
    each = Counter({f"e{n}": 1 for n in range(sent)})
    resolved = list(log.read(layout(client).interactions))
    assert Counter(orjson.loads(r.value() or b"")["entry"]["id"] for r in resolved) == each
    of_customers: dict[str, list[int]] = {}
    for record in resolved:
        read = orjson.loads(record.value() or b"")
        of_customers.setdefault(read["customer_key"], []).append(int(read["entry"]["id"][1:]))
    assert all(order == sorted(order) for order in of_customers.values())
    assert Counter(orjson.loads(r.value() or b"")["entry"]["id"] for r in log.read(JOURNEY_STEPS)) == each
    poor = Counter({f"e{n}": 1 for n in range(0, sent, 10)})

    def signalled() -> Counter[str]:
        return Counter(orjson.loads(r.value() or b"")["evidence"][0] for r in log.read(SIGNALS))

    eventually(lambda: signalled() >= poor, 30, "a signal of each poor answer")
    assert signalled() == poor
    log.close()


def assert_verified(settings: Settings, client: redis.Redis) -> None:
    log = runtime.open_log(settings)
    with scratch() as made:
        report = verify(settings, log, client, made, lambda *_: None)
    log.close()
    assert report.first is None, report.first.told(True)
    assert report.compared["ctx"] == CUSTOMERS


def rebuilt(settings: Settings, client: redis.Redis, partitions: int | None = None) -> switch.Rebuilt:
    log = runtime.open_log(settings)
    try:
        return rebuild(settings, log, client, partitions, lambda *_: None, lambda _: None)
    finally:
        log.close()


class Poller(threading.Thread):
    """Reads every customer again and again by HTTP, and notes whoever vanishes or goes back."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self._done = url, threading.Event()
        self.wrong: list[str] = []
        self.reads = 0
        self._seen: dict[str, tuple[int, int]] = {}

    def run(self) -> None:
        with httpx.Client(base_url=self._url, trust_env=False) as client:
            while not self._done.is_set():
                for n in range(CUSTOMERS):
                    self._read(client, f"u{n}")

    def _read(self, client: httpx.Client, name: str) -> None:
        answer = client.get(f"/v1/customers/user_id:{name}/context")
        self.reads += 1
        if answer.status_code != 200:
            if name in self._seen:
                self.wrong.append(f"{name}: {answer.status_code}")
            return
        found = answer.json()
        now = (found["epoch"], found["context"]["revision"])
        before = self._seen.get(name, (0, 0))
        if now[0] < before[0] or now[1] < before[1]:
            self.wrong.append(f"{name}: {before} then {now}")
        if found["lag_ms"] is None and name in self._seen:
            self.wrong.append(f"{name}: not fresh at all")
        self._seen[name] = now

    def stop(self) -> None:
        self._done.set()
        self.join(20)
        assert not self.is_alive()
        assert self.reads > CUSTOMERS
        assert self.wrong == []


@pytest.mark.parametrize(
    ("settings", "partitions"), [("embedded", None), ("embedded", 9), ("kafka", 4)], indirect=["settings"]
)
def test_a_rebuild_under_traffic_loses_doubles_and_hides_nothing(
    settings: Settings, processes: Processes, sender: Sender, redis_client: redis.Redis, partitions: int | None
) -> None:
    before = layout(redis_client)
    with ApiServer(settings).ready() as api:
        watch = SseClient(f"{api.url}/v1/customers/user_id:u3/stream")
        poller = Poller(api.url)
        poller.start()
        done = rebuilt(settings, redis_client, partitions)
        after = counted(redis_client)
        eventually(lambda: counted(redis_client) > after + 200, 60, "events after the switch")
        sent = sender.stop()
        poller.stop()
        assert_exactly_once(settings, redis_client, sent)
        last = Counter(f"u{n % CUSTOMERS}" for n in range(sent))["u3"]
        revisions = []
        while not revisions or revisions[-1] < last:
            event = watch.next()
            if event.event == "context":
                revisions.append(event.json()["context"]["revision"])
        assert revisions == sorted(revisions)
        watch.close()
    place = layout(redis_client)
    assert place == done.place
    assert (place.epoch, place.partitions) == (before.epoch + 1, partitions or PARTITIONS)
    assert_verified(settings, redis_client)
    assert drop_old(redis_client) > CUSTOMERS
    assert len(redis_client.keys("*:ctx:*")) == CUSTOMERS  # type: ignore[arg-type]


def test_after_another_number_of_partitions_an_emptied_redis_is_restored_from_the_log(
    settings: Settings, processes: Processes, sender: Sender, redis_client: redis.Redis
) -> None:
    rebuilt(settings, redis_client, 4)
    after = counted(redis_client)
    eventually(lambda: counted(redis_client) > after + 100, 60, "events after the switch")
    sent = sender.stop()
    assert_exactly_once(settings, redis_client, sent)
    place = layout(redis_client)
    for name in runtime.PROCESSORS:
        processes.kill(name)
    redis_client.flushdb()
    settings = settings.model_copy(update={"partitions": 4})
    with Processes(settings) as again:
        again.start()
        assert_exactly_once(settings, redis_client, sent)
        assert layout(redis_client) == place
        reader = Reader(redis_client)
        eventually(lambda: reader.freshness(*runtime.PROCESSORS).as_of_ms, 60, "every shard's report")
        assert_verified(settings, redis_client)


KILLED = """
import os, signal, sys
from segue.cli import main
from segue.log.port import Output
from segue.rebuild import switch
owner, _, name = "{point}".rpartition(".")
owner = switch._NewEpoch if owner else switch.runtime
before = getattr(owner, name)
def killed(*arguments, **named):
    if "{when}" == "after":
        before(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killed)
sys.argv = ["segue", "rebuild", "--partitions", "4"]
main()
"""


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)  # what is killed is ours, on either log
@pytest.mark.parametrize(
    ("when", "point"),
    [
        ("after", "it._copy_applied"),
        ("before", "it._tail"),
        ("before", "it._flip"),
        ("after", "it._flip"),
    ],
)
def test_a_rebuild_killed_at_any_point_leaves_a_whole_state_and_can_be_done_again(
    settings: Settings, processes: Processes, sender: Sender, redis_client: redis.Redis, when: str, point: str
) -> None:
    program = KILLED.format(when=when, point=point)
    ended = subprocess.run([sys.executable, "-c", program], env=environment(settings), timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    at = counted(redis_client)
    eventually(lambda: counted(redis_client) > at + 200, 60, "processing goes on by itself")
    with pytest.raises(LeaseLost) if redis_client.exists(REBUILD) else nullcontext():
        rebuilt(settings, redis_client, 4)
    eventually(lambda: not redis_client.exists(REBUILD), 30, "the end of the lock")
    place = rebuilt(settings, redis_client, 4).place
    sent = sender.stop()
    assert layout(redis_client) == place
    assert place.partitions == 4
    assert_exactly_once(settings, redis_client, sent)
    assert_verified(settings, redis_client)


def test_two_at_once_are_refused(settings: Settings, redis_client: redis.Redis) -> None:
    runtime.lay_out(settings, runtime.open_log(settings), redis_client)
    with Lease(redis_client, REBUILD, "taken"), pytest.raises(LeaseLost, match="another `segue rebuild` runs"):
        rebuilt(settings, redis_client)
    with Lease(redis_client, HOLD, "taken"), pytest.raises(LeaseLost, match="held already"):
        rebuilt(settings, redis_client)
    assert layout(redis_client) == Layout(PARTITIONS)


def test_a_hold_that_was_lost_switches_nothing(settings: Settings, redis_client: redis.Redis) -> None:
    before = runtime.lay_out(settings, runtime.open_log(settings), redis_client)

    def say(words: str) -> None:
        if "is held" in words:  # as when this process slept for long
            redis_client.delete(HOLD)

    log = runtime.open_log(settings)
    with pytest.raises(LeaseLost, match=HOLD):
        rebuild(settings, log, redis_client, 4, lambda *_: None, say)
    assert layout(redis_client) == before


def test_a_log_that_lost_its_start_is_refused_and_nothing_changes(
    settings: Settings, redis_client: redis.Redis
) -> None:
    if settings.kafka is not None:
        pytest.skip("the embedded log is cut by hand")
    log = runtime.open_log(settings)
    before = runtime.lay_out(settings, log, redis_client)
    log.append([Output(before.interactions, b"k", b"%d" % n, 0) for n in range(3)])
    with log._file.transaction():  # type: ignore[attr-defined]
        log._file.db.execute("DELETE FROM records WHERE offset = 0")  # type: ignore[attr-defined]
    with pytest.raises(Unable, match="no longer holds its first records"):
        rebuilt(settings, redis_client, 4)
    assert (layout(redis_client), redis_client.exists(HOLD, REBUILD)) == (before, 0)


def test_a_process_that_starts_with_another_number_of_partitions_is_refused(
    settings: Settings, redis_client: redis.Redis
) -> None:
    runtime.lay_out(settings, runtime.open_log(settings), redis_client)
    place = rebuilt(settings, redis_client, 9).place
    assert (place.partitions, place.step_partitions) == (9, PARTITIONS)
    with pytest.raises(SettingsError, match="SEGUE_PARTITIONS=9"):
        runtime.build_engine("context", settings, lambda: True)
