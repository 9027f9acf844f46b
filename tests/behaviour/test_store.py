"""What the store promises, on a real Valkey: who may write a shard, and whose an identifier is."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import orjson
import pytest
import redis

from segue.core.lines import Change
from segue.core.partition import partition_of
from segue.embedded.valkey import EmbeddedValkey
from segue.errors import SettingsError, StoreUnavailable, WentBack
from segue.store.connect import check, check_partitions, connect, held, layout, stands
from segue.store.identity import MAX_SHARERS, Batch, IdentityIndex, bucket
from segue.store.keys import HOLD, LAYOUT, MARK, Layout
from segue.store.reader import Reader
from segue.store.resp import command, mset, portions, rpush
from segue.store.shards import Fence, ShardStore, Write, encode_fence, encode_stats
from tests.support.proxy import Proxy, address_of
from tests.support.stack import eventually

PLACE = Layout(4)
TOPIC = "topic-id-1"


@pytest.fixture
def store(redis_client: redis.Redis) -> ShardStore:
    return ShardStore(redis_client, PLACE, "context", "ctx")


def write(
    shard: str, expected: bytes, epoch: int, next_offset: int, stats: Counter[str] | None = None, **documents: bytes
) -> Write:
    """A batch's write: documents, counters and the fence behind them."""
    fence = encode_fence(Fence(TOPIC, epoch, next_offset))
    changed = dict.fromkeys(documents, 1)
    return Write(shard, expected, fence, documents, encode_stats(stats or Counter(events=next_offset)), changed)


def written(store: ShardStore, writes: list[Write]) -> list[str]:
    """Write, and wait for the answer. Returns the shards that were refused."""
    store.begin(writes)
    return store.finish()


def standing(client: redis.Redis, shard: str) -> Fence:
    raw = client.get(PLACE.fence(shard, "context"))
    return msgspec.json.decode(raw, type=Fence)


def stored(client: redis.Redis, shard: str, key: str) -> bytes | None:
    return client.get(PLACE.document(shard, "ctx", key))


# --- the fence


def test_the_first_owner_finds_no_fence_and_leaves_epoch_one(store: ShardStore, redis_client: redis.Redis) -> None:
    found, fence, stats = store.take_over("0", TOPIC)
    assert (found, stats) == (None, Counter())
    assert standing(redis_client, "0") == Fence(TOPIC, 1, 0) == msgspec.json.decode(fence, type=Fence)


def test_the_next_owner_finds_what_the_last_one_wrote_and_raises_the_epoch_only(
    store: ShardStore, redis_client: redis.Redis
) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    assert written(store, [write("0", fence, 1, 7, Counter(events=7))]) == []
    found, _, stats = store.take_over("0", TOPIC)
    assert found == Fence(TOPIC, 1, 7)
    assert stats == Counter(events=7)
    assert standing(redis_client, "0") == Fence(TOPIC, 2, 7)


def test_documents_counters_and_fence_are_written_together(store: ShardStore, redis_client: redis.Redis) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    mine = write("0", fence, 1, 2, Counter({"b": 1, "a": 2}), anna=b"A", ben=b"B")
    assert written(store, [mine]) == []
    found = store.load([("0", "anna"), ("0", "ben"), ("0", "nobody")], {"0": mine.fence})
    assert list(found) == [b"A", b"B", None]
    assert redis_client.get(PLACE.stats("0", "context")) == b'{"a":2,"b":1}'
    assert standing(redis_client, "0").next_offset == 2


def test_an_older_owners_write_is_refused_and_nothing_of_it_stays(store: ShardStore, redis_client: redis.Redis) -> None:
    _, older, _ = store.take_over("0", TOPIC)
    assert written(store, [write("0", older, 1, 1, anna=b"first")]) == []
    older = encode_fence(Fence(TOPIC, 1, 1))
    store.take_over("0", TOPIC)
    assert written(store, [write("0", older, 1, 2, anna=b"late", ben=b"late")]) == ["0"]
    assert (stored(redis_client, "0", "anna"), stored(redis_client, "0", "ben")) == (b"first", None)
    assert standing(redis_client, "0") == Fence(TOPIC, 2, 1)


def test_a_fence_that_went_back_in_time_is_noticed(store: ShardStore, redis_client: redis.Redis) -> None:
    """As after a failover to a replica that lacked the last second."""
    _, fence, _ = store.take_over("0", TOPIC)
    first = write("0", fence, 1, 1, anna=b"1")
    second = write("0", first.fence, 1, 2, anna=b"2")
    assert written(store, [first]) == []
    lost = {key: redis_client.get(key) for key in redis_client.keys("segue:*{0}*")}
    assert written(store, [second]) == []
    redis_client.mset(lost)  # type: ignore[arg-type]
    assert written(store, [write("0", second.fence, 1, 3, anna=b"3")]) == ["0"]
    assert stored(redis_client, "0", "anna") == b"1"


def test_an_emptied_store_is_noticed(store: ShardStore, redis_client: redis.Redis) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    redis_client.flushdb()
    assert written(store, [write("0", fence, 1, 1, anna=b"1")]) == ["0"]
    assert redis_client.dbsize() == 0


def test_shards_in_one_write_stand_or_fall_each_by_its_own_fence(store: ShardStore, redis_client: redis.Redis) -> None:
    fences = [store.take_over(shard, TOPIC)[1] for shard in ("0", "1", "2")]
    store.take_over("1", TOPIC)  # another owner
    writes = [write(shard, fence, 1, 1, anna=b"new") for shard, fence in zip(("0", "1", "2"), fences, strict=True)]
    assert written(store, writes) == ["1"]
    assert [stored(redis_client, shard, "anna") for shard in ("0", "1", "2")] == [b"new", None, b"new"]


def test_replies_that_break_off_leave_each_write_done_or_not_done_and_the_fence_says_which(tmp_path: Path) -> None:
    outcomes = Counter[str]()
    with EmbeddedValkey(tmp_path / "valkey", port=0) as valkey, Proxy.of(valkey.url) as proxy:
        direct = redis.Redis.from_url(valkey.url)
        store = ShardStore(connect(f"redis://127.0.0.1:{proxy.port}/0"), PLACE, "context", "ctx")
        _, fence, _ = ShardStore(direct, PLACE, "context", "ctx").take_over("0", TOPIC)
        proxy.cut_rate = 0.2
        for turn in range(1, 201):
            mine = write("0", fence, 1, turn, anna=b"%d" % turn)
            try:
                outcomes["written" if not written(store, [mine]) else "refused"] += 1
            except StoreUnavailable:
                outcomes["unknown"] += 1
            fence = direct.get(PLACE.fence("0", "context"))
            done = stored(direct, "0", "anna") == b"%d" % turn
            assert (fence == mine.fence) == done
        direct.close()
    assert outcomes["written"]
    assert outcomes["unknown"]
    assert proxy.counts["cuts"] > 50


def test_an_owner_that_comes_between_reading_the_fence_and_writing_wins(
    store: ShardStore, redis_client: redis.Redis
) -> None:
    """Many rounds of a write against a take-over in another thread: never do both succeed with the old epoch."""
    rival = ShardStore(redis_client, PLACE, "context", "ctx")
    for turn in range(1, 101):
        _, fence, _ = store.take_over("0", TOPIC)
        mine = write("0", fence, msgspec.json.decode(fence, type=Fence).epoch, turn, anna=b"%d" % turn)
        taken: list[Fence | None] = []
        thread = threading.Thread(target=lambda into=taken: into.append(rival.take_over("0", TOPIC)[0]))
        thread.start()
        refused = written(store, [mine])
        thread.join()
        (found,) = taken
        assert found is not None
        if refused:
            assert found.next_offset != turn
        else:
            assert found == msgspec.json.decode(mine.fence, type=Fence)


def test_what_is_read_while_a_write_is_under_way_is_not_older_than_the_write(store: ShardStore) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    many = {f"customer-{n}": b"{}" * 5000 for n in range(500)}
    mine = write("0", fence, 1, 1, **many)
    store.begin([mine])
    assert list(store.load([("0", "customer-499")], {"0": mine.fence})) == [b"{}" * 5000]
    assert store.finish() == []
    assert store.finish() == []


def test_a_write_under_way_that_is_refused_is_told_also_after_something_was_read(store: ShardStore) -> None:
    _, older, _ = store.take_over("0", TOPIC)
    _, newer, _ = store.take_over("0", TOPIC)
    mine = write("0", older, 1, 1, anna=b"late")
    store.begin([mine])
    assert list(store.load([("0", "anna")], {"0": newer})) == [None]
    assert store.finish() == ["0"]


class Held(ShardStore):
    """Counts how often a read waited for the write that is to come, which is sent then."""

    def __init__(self, client: redis.Redis, writes: list[Write]) -> None:
        super().__init__(client, PLACE, "context", "ctx")
        self.waits = 0
        self.expect(writes)

        def send() -> None:
            self.waits += 1
            if self._under_way is None:
                self.begin(writes)

        self.before_reading = send


@pytest.fixture
def coming(store: ShardStore) -> tuple[Write, Write]:
    """A write that is done, of anna and ben, and one that is to come and changes anna."""
    _, fence, _ = store.take_over("0", TOPIC)
    done = write("0", fence, 1, 2, anna=b"A1", ben=b"B1")
    assert written(store, [done]) == []
    return done, write("0", done.fence, 1, 3, anna=b"A2")


@pytest.mark.parametrize("sent", [False, True])
def test_what_the_coming_write_does_not_change_is_read_without_waiting_for_it(
    redis_client: redis.Redis, coming: tuple[Write, Write], sent: bool
) -> None:
    _, mine = coming
    held = Held(redis_client, [mine])
    if sent:
        held.begin([mine])
    assert list(held.load([("0", "ben"), ("0", "nobody")], {"0": mine.fence})) == [b"B1", None]
    assert list(held.entries([("0", "ben")], {"0": mine.fence})) == [[]]
    assert (held.waits, held._under_way is not None) == (0, sent)


def test_what_the_coming_write_changes_is_read_after_it(redis_client: redis.Redis, coming: tuple[Write, Write]) -> None:
    _, mine = coming
    held = Held(redis_client, [mine])
    held.read_ahead([("0", "anna"), ("0", "ben")], {"0": mine.fence})
    assert list(held.load([("0", "ben"), ("0", "anna")], {"0": mine.fence})) == [b"B1", b"A2"]
    assert held.waits == 1
    again = Held(redis_client, [write("0", mine.fence, 1, 4, anna=b"A3")])
    list(again.entries([("0", "anna")], {"0": again._coming["0"].fence}))
    assert again.waits == 1


def test_what_is_read_ahead_is_given_once_and_then_read_anew(
    store: ShardStore, redis_client: redis.Redis, coming: tuple[Write, Write]
) -> None:
    done, _ = coming
    names = [("0", "anna"), ("0", "ben"), ("0", "nobody")]
    store.read_ahead(names, {"0": done.fence})
    redis_client.set(PLACE.document("0", "ctx", "ben"), b"B2")
    assert list(store.load([names[1], names[2]], {"0": done.fence})) == [b"B1", None]
    assert list(store.load([names[1]], {"0": done.fence})) == [b"B2"]
    store.forget_ahead()
    redis_client.set(PLACE.document("0", "ctx", "anna"), b"A3")
    assert list(store.load([names[0]], {"0": done.fence})) == [b"A3"]


def test_the_fence_that_a_write_expects_is_as_left_only_until_it_is_answered(
    redis_client: redis.Redis, coming: tuple[Write, Write]
) -> None:
    done, mine = coming
    held = Held(redis_client, [mine])
    held.begin([mine])
    assert held.finish() == []
    redis_client.set(PLACE.fence("0", "context"), done.fence)
    for read in (held.load, held.entries):
        with pytest.raises(WentBack):
            list(read([("0", "ben")], {"0": mine.fence}))
    with pytest.raises(WentBack):
        held.read_ahead([("0", "ben")], {"0": mine.fence})


def test_each_part_of_a_large_read_is_vouched_for_at_its_own_moment(store: ShardStore) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    sizes: list[int] = []

    def told(shards: list[str], found: list[bytes | None], fences: object) -> None:
        assert found == [fence]
        sizes.append(len(shards))

    store._as_left = told  # type: ignore[method-assign]
    store.read_ahead([("0", f"customer-{n}") for n in range(250)], {"0": fence})
    assert sizes == [1, 1, 1]


def test_a_fence_of_neither_is_not_as_left(redis_client: redis.Redis, coming: tuple[Write, Write]) -> None:
    _, mine = coming
    held = Held(redis_client, [mine])
    held.take_over("0", TOPIC)  # as another owner does
    with pytest.raises(WentBack):
        held.read_ahead([("0", "ben")], {"0": mine.fence})


@pytest.mark.parametrize("values", [[b"1"], [b"", b"\r\n", b"\x00"], [b"x" * 300_000, b"2"]])
def test_commands_made_in_short_are_those_made_at_length(values: list[bytes]) -> None:
    pairs = [(b"key-%d" % n, value) for n, value in enumerate(values)]
    assert mset(pairs) == command("MSET", *(part for pair in pairs for part in pair))
    assert rpush(b"key", values) == command("RPUSH", b"key", *values)
    assert b"".join(portions(rpush(key, [value]) for key, value in pairs)) == b"".join(
        command("RPUSH", key, value) for key, value in pairs
    )


def test_processors_have_fences_of_their_own(store: ShardStore, redis_client: redis.Redis) -> None:
    signals = ShardStore(redis_client, PLACE, "signals", "sig")
    _, fence, _ = store.take_over("0", TOPIC)
    _, other, _ = signals.take_over("0", TOPIC)
    assert written(store, [write("0", fence, 1, 1, anna=b"ctx")]) == []
    assert list(signals.load([("0", "anna")], {"0": other})) == [None]
    assert redis_client.smembers(PLACE.shards("context")) == {b"0"}


def test_all_keys_of_a_shard_share_one_slot_of_a_cluster() -> None:
    keys = [
        PLACE.document("3", "ctx", "anna"), PLACE.fence("3", "context"), PLACE.stats("3", "context"),
        PLACE.document("3", "sig", "ben"), PLACE.fence("3", "signals"),
    ]  # fmt: skip
    assert {key[key.index("{") + 1 : key.index("}")] for key in keys} == {"3"}


def test_more_documents_than_one_command_takes_are_all_written_and_read(store: ShardStore) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    documents = {f"customer-{number}": b"%d" % number for number in range(1201)}
    mine = write("0", fence, 1, 1, **documents)
    assert written(store, [mine]) == []
    assert list(store.load([("0", key) for key in documents], {"0": mine.fence})) == list(documents.values())


def test_documents_beside_a_fence_that_is_not_the_readers_own_are_not_read(store: ShardStore) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    mine = write("0", fence, 1, 1, anna=b"A")
    assert written(store, [mine]) == []
    with pytest.raises(WentBack):
        list(store.load([("0", "anna")], {"0": fence}))


def test_changed_customers_are_told_to_those_who_watch(store: ShardStore, redis_client: redis.Redis) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    with redis_client.pubsub(ignore_subscribe_messages=True) as watcher:
        watcher.subscribe(PLACE.changes("0"))
        watcher.get_message(timeout=1)
        written(store, [write("0", fence, 1, 1, anna=b"1", ben=b"1")])
        message = None
        while message is None:
            message = watcher.get_message(timeout=5)
    assert orjson.loads(message["data"]) == [["anna", 1], ["ben", 1]]


def test_progress_and_metrics_are_reported(store: ShardStore, redis_client: redis.Redis) -> None:
    store.report({"0": 5, "1": 6}, b"{}", "me")
    store.report({"1": 7}, b"{1}", "me")
    assert redis_client.hgetall(PLACE.progress("context")) == {b"0": b"5", b"1": b"7"}
    assert redis_client.hgetall("segue:metrics") == {b"context:me": b"{1}"}


def test_a_redis_that_failed_over_in_silence_is_noticed_by_the_next_report(tmp_path: Path) -> None:
    first, second = EmbeddedValkey(tmp_path / "a", port=0), EmbeddedValkey(tmp_path / "b", port=0)
    with first, second, Proxy.of(first.url) as proxy, redis.Redis.from_url(second.url) as client:
        store = ShardStore(connect(f"redis://127.0.0.1:{proxy.port}/0"), PLACE, "context", "ctx")
        store.report({"0": 5}, b"{}", "me")
        store.report({"0": 6}, b"{}", "me")
        proxy.switch(address_of(second.url))
        with pytest.raises(WentBack):
            store.report({"0": 7}, b"{}", "me")
        assert client.keys("*") == [MARK.encode()]  # it does not call complete what may not be
        store.report({"0": 8}, b"{}", "me")


def test_a_redis_that_was_emptied_is_noticed_by_the_next_report_of_each_process(
    store: ShardStore, redis_client: redis.Redis
) -> None:
    other = ShardStore(redis_client, PLACE, "context", "ctx")
    for each in (store, other):
        each.report({"0": 5}, b"{}", "me")
    redis_client.flushdb()
    for each in (store, other):
        with pytest.raises(WentBack):
            each.report({"0": 6}, b"{}", "me")
        each.report({"0": 7}, b"{}", "me")


def test_who_takes_over_again_after_a_failover_is_not_told_of_it_once_more(
    tmp_path: Path,
) -> None:
    with EmbeddedValkey(tmp_path / "valkey", port=0) as valkey:
        store = ShardStore(connect(valkey.url), PLACE, "context", "ctx")
        store.take_over("0", TOPIC)
        store.report({}, b"{}", "me")
        valkey.kill()
        valkey.start()
        store.begin_anew()
        store.take_over("0", TOPIC)
        store.report({}, b"{}", "me")
        valkey.kill()
        valkey.start()
        store.take_over("0", TOPIC)  # one shard alone: the others know nothing yet
        with pytest.raises(WentBack):
            store.report({}, b"{}", "me")


def test_a_node_of_a_cluster_is_refused(tmp_path: Path) -> None:
    with (
        EmbeddedValkey(tmp_path / "valkey", port=0, options={"cluster-enabled": "yes"}) as node,
        pytest.raises(SettingsError, match="Redis Cluster"),
    ):
        check(connect(node.url))


def test_a_server_that_begins_to_evict_is_noticed_by_the_next_report(
    store: ShardStore, redis_client: redis.Redis
) -> None:
    store.report({}, b"{}", "me")
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreUnavailable, match="noeviction"):
            store.report({}, b"{}", "me")
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")
    store.report({}, b"{}", "me")


# --- the reader


def test_a_reader_is_not_shown_less_than_before_until_an_owner_answers_for_it(
    store: ShardStore, redis_client: redis.Redis
) -> None:
    layout(redis_client, PLACE.partitions)
    anna = next(str(n) * 36 for n in range(9) if partition_of((str(n) * 36).encode(), PLACE.partitions) == 0)
    signals = ShardStore(redis_client, PLACE, "signals", "sig")
    signals.take_over("0", TOPIC)
    _, fence, _ = store.take_over("0", TOPIC)
    first = write("0", fence, 1, 1, **{anna: b'{"revision":1}'})
    second = write("0", first.fence, 1, 2, **{anna: b'{"revision":2}'})
    reader = Reader(redis_client)

    def read() -> tuple[int, bytes | None]:
        view = reader.view(anna)
        return view.epoch, view.context

    def shown(revision: int) -> bytes:
        return b'{"revision":%d,"timeline":[]}' % revision

    assert written(store, [first]) == []
    lost = {key: redis_client.get(key) for key in redis_client.keys("segue:*{0}*")}
    assert read() == (1, shown(1))
    assert written(store, [second]) == []
    assert read() == (1, shown(2))
    redis_client.mset(lost)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable, match="lost writes"):
        read()
    assert Reader(redis_client).view(anna).context == shown(1)  # this one knows no better
    _, fence, _ = store.take_over("0", TOPIC)
    assert read() == (2, shown(1))
    redis_client.delete(*redis_client.keys("segue:*{0}*"))
    with pytest.raises(StoreUnavailable, match="lost writes"):
        read()
    _, fence, _ = store.take_over("0", TOPIC)
    with pytest.raises(StoreUnavailable, match="lost writes"):
        read()  # the epochs begin anew, so only the offset tells
    assert written(store, [write("0", fence, 1, 1, **{anna: b'{"revision":1}'})]) == []
    assert read() == (1, shown(1))


# --- timelines


def timed(shard: str, expected: bytes, next_offset: int, **lines: Change) -> Write:
    made = write(shard, expected, 1, next_offset)
    made.lines = list(lines.items())
    return made


def test_a_timeline_changes_as_it_is_told_and_only_behind_the_fence(
    store: ShardStore, redis_client: redis.Redis
) -> None:
    _, fence, _ = store.take_over("0", TOPIC)

    def then(turn: int, change: Change) -> list[bytes]:
        nonlocal fence
        made = timed("0", fence, turn, anna=change)
        assert written(store, [made]) == []
        fence = made.fence
        (found,) = store.entries([("0", "anna")], {"0": fence})
        return found

    redis_client.rpush(PLACE.timeline("0", "anna"), "of another", "history")
    assert then(1, Change(True, 0, [b"a", b"b", b"c"], 0)) == [b"a", b"b", b"c"]
    assert then(2, Change(False, 0, [b"d"], 1)) == [b"b", b"c", b"d"]
    assert then(3, Change(False, 2, [b"x", b"c", b"d"], 0)) == [b"b", b"x", b"c", b"d"]
    assert then(4, Change(False, 0, [], 1)) == [b"x", b"c", b"d"]
    assert then(5, Change(False, 3, [b"y"], 0)) == [b"y"]
    assert then(6, Change(False, 0, [b"z"], 1)) == [b"z"]
    assert then(7, Change(True, 0, [], 0)) == []
    late = timed("0", encode_fence(Fence(TOPIC, 1, 3)), 8, anna=Change(False, 0, [b"late"], 0))
    assert written(store, [late]) == ["0"]
    assert list(store.entries([("0", "anna"), ("0", "ben")], {"0": fence})) == [[], []]


def test_timelines_are_read_only_as_this_owner_left_them(store: ShardStore) -> None:
    _, fence, _ = store.take_over("0", TOPIC)
    made = timed("0", fence, 1, anna=Change(True, 0, [b"a"], 0))
    assert written(store, [made]) == []
    assert list(store.entries([("0", "anna")], {"0": made.fence})) == [[b"a"]]
    with pytest.raises(WentBack):
        list(store.entries([("0", "anna")], {"0": fence}))


def test_a_reader_never_sees_a_document_without_its_latest_entry(store: ShardStore, redis_client: redis.Redis) -> None:
    """A document and its timeline are two keys, and come as they stood at one moment."""
    key = "0190a0b0-0000-7000-8000-000000000001"
    shard = layout(redis_client, PLACE.partitions).context_shard(key)
    _, fence, _ = store.take_over(shard, TOPIC)
    stop, turns = threading.Event(), [0]

    def work() -> None:
        nonlocal fence
        while not stop.is_set():
            turns[0] += 1
            document = b'{"customer_key":"%b","revision":%d}' % (key.encode(), turns[0])
            made = write(shard, fence, 1, turns[0], **{key: document})
            made.lines = [(key, Change(turns[0] == 1, 0, [b'{"id":"%d"}' % turns[0]], int(turns[0] > 5)))]
            assert written(store, [made]) == []
            fence = made.fence

    thread = threading.Thread(target=work)
    thread.start()
    reader = Reader(redis_client)
    try:
        eventually(lambda: turns[0] > 10)
        seen = [orjson.loads(reader.context(key) or b"") for _ in range(300)]
    finally:
        stop.set()
        thread.join()
    assert len({document["revision"] for document in seen}) > 10
    assert all(document["timeline"][-1]["id"] == str(document["revision"]) for document in seen)
    assert all(len(document["timeline"]) == 5 for document in seen)


# --- the layout, and servers that are refused


def test_the_layout_is_written_by_the_first_and_read_by_all(redis_client: redis.Redis) -> None:
    assert layout(redis_client, 4) == layout(redis_client) == layout(redis_client, 4) == Layout(4, 1)


def test_another_number_of_partitions_than_the_contexts_are_laid_out_for_is_refused(redis_client: redis.Redis) -> None:
    layout(redis_client, 4)
    with pytest.raises(SettingsError, match="SEGUE_PARTITIONS"):
        check_partitions(layout(redis_client, 8), 8)
    assert msgspec.json.decode(redis_client.get(LAYOUT) or b"", type=Layout) == Layout(4)


def test_a_layout_that_the_log_knows_to_be_older_or_lost_is_put_right(redis_client: redis.Redis) -> None:
    logged = Layout(8, 3, "segue.interactions.3", 4)
    assert layout(redis_client, 4, logged) == layout(redis_client) == logged
    redis_client.set(LAYOUT, msgspec.json.encode(Layout(4, 2)))
    assert layout(redis_client, 4, logged) == layout(redis_client) == logged
    newer = Layout(16, 4)
    redis_client.set(LAYOUT, msgspec.json.encode(newer))
    assert layout(redis_client, 4, logged) == layout(redis_client) == newer


def test_a_layout_stands_until_it_is_another_or_gone_or_held(redis_client: redis.Redis) -> None:
    found = layout(redis_client, 4)
    assert stands(redis_client, found)
    assert not stands(redis_client, Layout(4, 2))
    redis_client.set(HOLD, "somebody")
    assert held(redis_client)
    assert not stands(redis_client, found)
    redis_client.delete(HOLD, LAYOUT)
    assert not held(redis_client)
    assert not stands(redis_client, found)


def test_a_store_nobody_has_written_to_says_so(redis_client: redis.Redis) -> None:
    with pytest.raises(SettingsError, match="no Segue has run"):
        layout(redis_client)


def test_a_server_that_evicts_is_refused(redis_client: redis.Redis) -> None:
    check(redis_client)
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(SettingsError, match="noeviction"):
            check(redis_client)
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")


def test_a_server_that_is_away_is_an_outage_not_an_answer() -> None:
    away = ShardStore(connect("redis://127.0.0.1:1/0"), PLACE, "context", "ctx")
    with pytest.raises(StoreUnavailable):
        list(away.load([("0", "anna")], {"0": b""}))
    with pytest.raises(StoreUnavailable):
        written(away, [write("0", b"", 1, 1)])


def test_a_write_that_is_refused_says_why_and_names_nobody(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "valkey", options={"maxmemory": "1"}) as full:
        with pytest.raises(StoreUnavailable, match="maxmemory") as refused:
            index(connect(full.url)).claim({"email:anna@example.com": key("a")})
        assert "anna" not in str(refused.value)


# --- the identity index


def index(client: redis.Redis) -> IdentityIndex:
    """Another process' view: nothing cached."""
    return IdentityIndex(client, PLACE)


def key(letter: str) -> str:
    return letter * 36


def test_claims_are_first_come_first_served(redis_client: redis.Redis) -> None:
    one, other = index(redis_client), index(redis_client)
    assert one.claim({"phone:1": key("a") + "e1", "email:x": key("a") + "e1"}) == {
        "phone:1": key("a") + "e1",
        "email:x": key("a") + "e1",
    }
    assert other.claim({"phone:1": key("b") + "e2", "phone:2": key("b") + "e2"}) == {
        "phone:1": key("a") + "e1",
        "phone:2": key("b") + "e2",
    }
    assert index(redis_client).owners(["phone:1", "phone:2", "phone:3"]) == {
        "phone:1": key("a") + "e1",
        "phone:2": key("b") + "e2",
    }


def test_claiming_again_what_one_owns_changes_nothing(redis_client: redis.Redis) -> None:
    for event_id in ("e1", "e2"):
        assert index(redis_client).claim({"phone:1": key("a") + event_id}) == {"phone:1": key("a") + "e1"}


def test_of_many_who_claim_at_once_one_wins_and_all_learn_who(redis_client: redis.Redis) -> None:
    answers: list[dict[str, str]] = []
    refs = [f"phone:{number}" for number in range(50)]

    def claim(letter: str) -> None:
        answers.append(index(redis_client).claim(dict.fromkeys(refs, key(letter))))

    threads = [threading.Thread(target=claim, args=(letter,)) for letter in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)


def test_a_record_changes_only_from_what_was_seen(redis_client: redis.Redis) -> None:
    one, other = index(redis_client), index(redis_client)
    assert one.records(["a"]) == {"a": None}
    assert one.replace({"a": (None, "1"), "b": (None, "2")}) == {}
    assert other.replace({"a": (None, "3"), "b": ("2", "4")}) == {"a": "1"}
    assert one.records(["a", "b"]) == {"a": "1", "b": "4"}
    assert one.replace({"b": ("2", "5")}) == {"b": "4"}
    assert one.replace({"c": ("2", "5")}) == {"c": None}
    assert one.records(["c"]) == {"c": None}


def test_who_used_anothers_identifier_is_noted_once_and_so_many_at_most(redis_client: redis.Redis) -> None:
    one, other = index(redis_client), index(redis_client)
    assert one.share({("phone:1", "a"): "e1"}) == {("phone:1", "a"): "e1"}
    assert other.share({("phone:1", "a"): "e2", ("phone:1", "b"): "e2"}) == {
        ("phone:1", "a"): "e1",
        ("phone:1", "b"): "e2",
    }
    many = one.share({("phone:1", f"c{number}"): "e3" for number in range(MAX_SHARERS)})
    assert len(other.sharers(["phone:1"])["phone:1"]) == MAX_SHARERS
    assert list(many.values()).count("") == 2


def test_the_cache_answers_until_it_is_told_to_forget(redis_client: redis.Redis) -> None:
    cached = index(redis_client)
    cached.claim({"phone:1": key("a")})
    redis_client.flushdb()
    assert cached.owners(["phone:1"]) == {"phone:1": key("a")}
    cached.forget()
    assert cached.owners(["phone:1"]) == {}


def test_a_full_cache_drops_its_oldest_half_and_still_answers(redis_client: redis.Redis) -> None:
    small = IdentityIndex(redis_client, PLACE, cache=10)
    claims = {f"phone:{number}": key("a") + str(number) for number in range(25)}
    small.claim(claims)
    assert small.owners(claims) == claims


# --- an index that may have gaps


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server of the test's own, which it may restart."""
    with EmbeddedValkey(tmp_path / "valkey", port=0) as server:
        yield server


def links(*pairs: tuple[str, str]) -> list[Batch]:
    return [Batch({ref: entry}, {}, {}, {}) for ref, entry in pairs]


def test_an_index_is_complete_when_it_was_filled_since_redis_last_restarted(valkey: EmbeddedValkey) -> None:
    one, other = index(connect(valkey.url)), index(connect(valkey.url))
    assert not one.complete()
    one.refill([])
    assert one.complete()
    assert other.complete()
    valkey.kill()
    valkey.start()
    assert not one.complete()
    assert not index(connect(valkey.url)).complete()
    other.refill([])
    assert index(connect(valkey.url)).complete()
    assert not one.complete()  # it may have claimed in between what nobody knows of


def test_a_refill_writes_what_is_missing_and_what_was_claimed_in_error(valkey: EmbeddedValkey) -> None:
    one = index(connect(valkey.url))
    one.claim({"phone:1": key("a") + "e1", "phone:2": key("b") + "e2", "phone:4": key("d") + "e9"})
    one.refill(links(("phone:1", key("a") + "later"), ("phone:2", key("c") + "e3"), ("phone:3", key("c") + "e3")))
    assert index(connect(valkey.url)).owners(["phone:1", "phone:2", "phone:3", "phone:4"]) == {
        "phone:1": key("a") + "e1",
        "phone:2": key("c") + "e3",
        "phone:3": key("c") + "e3",
        "phone:4": key("d") + "e9",
    }


def test_nothing_is_read_or_claimed_on_an_index_that_may_have_gaps(valkey: EmbeddedValkey) -> None:
    one = index(connect(valkey.url))
    one.refill([])
    valkey.kill()
    valkey.start()
    with pytest.raises(WentBack):
        one.owners(["phone:1"])
    with pytest.raises(WentBack):
        one.claim({"phone:1": key("a") + "e1"})
    with pytest.raises(WentBack):
        one.replace({key("a"): (None, "{}")})
    with pytest.raises(WentBack):
        one.records([key("a")])
    with pytest.raises(WentBack):
        one.share({("phone:1", key("a")): "e1"})
    with pytest.raises(WentBack):
        one.seats(["cookie_id:1"])
    with pytest.raises(WentBack):
        one.sit({"cookie_id:1": {key("a"): (1, "e1")}})
    other = index(connect(valkey.url))
    assert other.owners(["phone:1"]) == {}
    assert other.seats(["cookie_id:1"]) == {}


def test_an_index_that_was_emptied_answers_nothing_until_it_is_filled_again(redis_client: redis.Redis) -> None:
    one, other = index(redis_client), index(redis_client)
    one.refill(links(("phone:1", key("a") + "e1")))
    assert other.complete()
    redis_client.flushdb()  # the history of the data set goes on
    with pytest.raises(WentBack):
        other.owners(["phone:1"])
    with pytest.raises(WentBack):
        other.claim({"phone:1": key("b") + "e2"})
    assert not other.complete()
    one.refill(links(("phone:1", key("a") + "e1")))
    assert index(redis_client).owners(["phone:1"]) == {"phone:1": key("a") + "e1"}


def test_an_index_that_is_emptied_while_it_is_filled_is_not_complete(redis_client: redis.Redis) -> None:
    def emptied_half_way() -> Iterator[Batch]:
        yield from links(("phone:1", key("a") + "e1"))
        redis_client.flushdb()
        yield from links(("phone:2", key("b") + "e2"))

    one = index(redis_client)
    with pytest.raises(StoreUnavailable):
        one.refill(emptied_half_way())
    assert not one.complete()
    one.refill(links(("phone:1", key("a") + "e1")))
    assert one.complete()
    assert redis_client.ttl(PLACE.index_history()) == -1


def test_an_identifier_in_chinese_is_found_again(redis_client: redis.Redis) -> None:
    index(redis_client).claim({"social_handle:@小李": key("a") + "订单-7"})
    assert index(redis_client).owners(["social_handle:@小李"]) == {"social_handle:@小李": key("a") + "订单-7"}
    assert bucket("social_handle:@小李", 4) == partition_of("social_handle:@小李".encode(), 4)


def test_nothing_asked_is_nothing_answered(redis_client: redis.Redis) -> None:
    found = index(redis_client)
    assert (found.claim({}), found.replace({}), found.records([]), found.owners([]), found.share({})) == ({},) * 5
