"""The state made anew in a new layout epoch, and the switch to it (docs/adr/0008).

    1. beside live processing   copy the interactions, where they get another number of partitions;
                                rebuild the identity index, contexts and signals in the new epoch's keys
    2. hold                     processors leave their groups; nobody can commit any more
    3. the tail                 what came since 1
    4. switch                   `segue:layout` names the new epoch, and the log is told
    5. release                  once no reader believes in the old layout any more

Until 4 the old epoch is live and complete: whatever ends a rebuild before, the hold ends by itself and
processing goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import redis
from msgspec import Struct

from segue import runtime
from segue.errors import StoreUnavailable
from segue.identity_records import adds_only, committed
from segue.log.port import TP, Log, Record
from segue.rebuild.copy import Copy
from segue.rebuild.lease import Lease
from segue.rebuild.replay import BATCH_RECORDS, SilentEngine
from segue.rebuild.verify import Progress, Unable, check_kept, check_same, fences, scan
from segue.settings import Settings
from segue.store.connect import layout, reachable
from segue.store.identity import IdentityIndex
from segue.store.keys import HOLD, LAYOUT, REBUILD, Layout
from segue.store.reader import LAYOUT_S
from segue.store.shards import encode_fence
from segue.topics import IDENTITY, INTERACTIONS, JOURNEY_STEPS

NEAR_RECORDS = 5000
"""So close behind live processing the hold begins: its tail is then a fraction of a second."""
PASSES = 50
LEAVE_S = 60.0
"""How long processors may take to leave their groups; one that was killed is gone after six seconds."""
_LOOK_S = 0.1
_FLIPS = 20
_UNLINK = 1000


class Rebuilt(Struct, frozen=True):
    """What a rebuild did: records applied, how long it took (s), how long processing was held (s)."""

    place: Layout
    before: Layout
    records: int
    took_s: float
    held_s: float


def rebuild(
    settings: Settings, source: Log, client: redis.Redis, partitions: int | None,
    progress: Progress, say: Callable[[str], None],
) -> Rebuilt:  # fmt: skip
    """Rebuild into a new epoch and switch to it. `partitions` changes their number.

    Raises Unable, LeaseLost (nothing has changed, or everything has), LogUnavailable, StoreUnavailable.
    """
    began = time.monotonic()
    with _only_one(client) as lock:
        layout(client)  # a Redis that was never laid out has nothing to rebuild: this says so
        before = runtime.lay_out(settings, source, client)
        place = next_layout(before, partitions)
        check_kept(source, [before.interactions, JOURNEY_STEPS])
        say(f"rebuilding for {place.partitions} partitions, epoch {place.epoch}; epoch {before.epoch} stays live")
        drop(client, place.epoch)
        new = _NewEpoch(settings, source, client, before, place, progress, lock)
        try:
            new.follow()
            if new.failed:
                say(f"{new.failed} records could not be applied by this version; the log says where it failed")
            held = new.switch(say)
        finally:
            new.close()
    return Rebuilt(place, before, new.records, time.monotonic() - began, held)


def _only_one(client: redis.Redis) -> Lease:
    return Lease(client, REBUILD, "another `segue rebuild` runs (or ended less than 15 s ago without saying so)")


def next_layout(before: Layout, partitions: int | None) -> Layout:
    """The layout after a rebuild. Another number of partitions takes another topic; the public ones stay."""
    epoch = before.epoch + 1
    if partitions is None or partitions == before.partitions:
        return msgspec.structs.replace(before, epoch=epoch)
    topic = f"{INTERACTIONS}.{epoch}-of-{partitions}"
    return Layout(partitions, epoch, topic, before.step_partitions)


def drop(client: redis.Redis, epoch: int) -> int:
    """Remove an epoch's keys; returns how many."""
    keys = scan(client, f"segue:{epoch}:*")
    dropped = 0
    while chunk := [key for _, key in zip(range(_UNLINK), keys, strict=False)]:
        with reachable():
            client.unlink(*chunk)
        dropped += len(chunk)
    return dropped


def drop_old(client: redis.Redis) -> int:
    """Remove the keys of every epoch but the live one; returns how many."""
    with _only_one(client):
        live = layout(client).epoch
        epochs = {key.split(":")[1] for key in scan(client, "segue:[0-9]*")}
        return sum(drop(client, int(epoch)) for epoch in epochs if int(epoch) != live)


class _NewEpoch:
    """The new epoch while it is being made."""

    def __init__(
        self, settings: Settings, source: Log, client: redis.Redis, before: Layout, place: Layout,
        progress: Progress, lock: Lease,
    ) -> None:  # fmt: skip
        self._source, self._client, self._before, self._place = source, client, before, place
        self._progress, self._lock = progress, lock
        self._links: dict[int, int] = {}
        """Up to where the identity topic is in the new index."""
        source.create_topics(runtime.all_topics(settings, place))
        self._copy = None
        if place.interactions != before.interactions:
            self._copy = Copy(source, before.interactions, place.interactions)
        self._engines = {
            name: SilentEngine(name, settings, source, client, place, self._ticks(name))
            for name in ("context", "signals")
        }
        self._groups = {
            name: runtime.build_processor(name, settings, source, client, before)[0].group
            for name in runtime.PROCESSORS
        }
        self._ends: dict[str, int] = {}
        self._check_same(settings)

    def _check_same(self, settings: Settings) -> None:
        for name in self._engines:
            live = SilentEngine(name, settings, self._source, self._client, self._before, lambda _: None)
            check_same(self._source, live, fences(self._client, self._before, name, list(live.inputs)))
            live.close()

    @property
    def records(self) -> int:
        """How many records were applied."""
        return sum(engine.applied for engine in self._engines.values())

    @property
    def failed(self) -> int:
        return sum(engine.failed for engine in self._engines.values())

    def _ticks(self, name: str) -> Callable[[int], None]:
        def tick(applied: int) -> None:
            self._lock.check()
            self._progress(name, applied, max(applied, self._ends.get(name, 0)))

        return tick

    # --- beside live processing

    def follow(self) -> None:
        """Rebuild, and follow live processing until close behind it."""
        self._link()
        for _ in range(PASSES):
            done = self.records
            if self._copy is not None:
                self._copy_applied()
            self._replay(self._standing())
            if self.records - done < NEAR_RECORDS:
                break
        for name, engine in self._engines.items():
            self._progress(name, engine.applied, engine.applied)

    def _standing(self) -> dict[str, dict[TP, int]]:
        """Up to where the live processors have applied the inputs of the new epoch."""
        ends = {name: self._live(name) for name in self._engines}
        if self._copy is not None:
            ends["context"] = self._ends_of(self._place.interactions)
        return ends

    def _live(self, name: str) -> dict[TP, int]:
        """How far a live processor is: by its fences, or its commits where Redis is behind them."""
        topic = self._before.interactions if name == "context" else JOURNEY_STEPS
        tps = {str(partition): (topic, partition) for partition in range(self._source.partitions(topic))}
        done = self._source.offsets(self._groups[name], list(tps.values()))
        found = fences(self._client, self._before, name, list(tps))
        standing = {shard: found[shard].next_offset if shard in found else 0 for shard in tps}
        return {tp: max(standing[shard], done.get(tp, 0)) for shard, tp in tps.items()}

    def _ends_of(self, topic: str, settled: bool = False) -> dict[TP, int]:
        return {(topic, partition): end for partition, (_, end) in self._source.bounds(topic, settled).items()}

    def _replay(self, ends: dict[str, dict[TP, int]]) -> None:
        for name, engine in self._engines.items():
            self._ends[name] = sum(ends[name].values())
            engine.run(ends[name])

    def _link(self) -> None:
        """Bring the new identity index up to the end of the log."""
        ends = {partition: end for partition, (_, end) in self._source.bounds(IDENTITY).items()}
        index = IdentityIndex(self._client, self._place)
        news = list(self._new_links(ends)) if self._links else []
        if not self._links or not adds_only(news):  # a merge may concern whoever was read before
            self._links = {}
            index.refill(committed(lambda: self._new_links(ends)))
        else:
            index.refill(committed(lambda: news))
        self._links = ends

    def _new_links(self, ends: dict[int, int]) -> Iterator[Record]:
        reader = self._source.reader()
        left = {(IDENTITY, p): end for p, end in ends.items() if self._links.get(p, 0) < end}
        for tp in left:
            reader.start(tp, self._links.get(tp[1], 0))
        read, total = 0, sum(ends.values()) - sum(self._links.values())
        while left:
            polled = reader.poll(BATCH_RECORDS, _LOOK_S)
            self._lock.check()
            for tp, records in polled.records.items():
                yield from records
                read += len(records)
                if records[-1].offset() + 1 >= left.get(tp, 0):
                    left.pop(tp, None)
            for tp in polled.ended:
                left.pop(tp, None)
            self._progress("identity", read, max(read, total))
        if read:
            self._progress("identity", read, read)
        reader.close()

    # --- copying, for another number of partitions

    def _copy_applied(self) -> None:
        """Copy what the live context processor has committed: only that may be applied in silence."""
        assert self._copy is not None
        topic = self._before.interactions
        positions = self._copy.positions()
        tps = [(topic, partition) for partition in positions]
        while True:
            done = self._source.offsets(self._groups["context"], tps)
            if all(done.get(tp, 0) >= positions[tp[1]] for tp in tps):
                break
            # An earlier rebuild ended within its hold: it had copied ahead of what was applied.
            self._lock.check()
            self._progress("copy", 0, 1)
            time.sleep(_LOOK_S)
        self._copy_up_to({partition: done.get((topic, partition), 0) for partition in positions})

    def _copy_up_to(self, ends: dict[int, int]) -> None:
        assert self._copy is not None
        total = self._copy.copied + sum(ends.values()) - sum(self._copy.positions().values())

        def moved(copied: int) -> None:
            self._lock.check()
            self._progress("copy", copied, max(copied, total))

        self._copy.up_to(ends, moved)
        self._progress("copy", self._copy.copied, self._copy.copied)

    def _copy_tail(self) -> dict[TP, int]:
        """Copy the rest: first what was applied, then what was not. Returns where in the new topic the first ends."""
        assert self._copy is not None
        applied = self._live("context")
        if any(position > applied[self._before.interactions, p] for p, position in self._copy.positions().items()):
            raise Unable("the interactions were copied further than they were applied; start again in a moment")
        self._copy_up_to({tp[1]: offset for tp, offset in applied.items()})
        ends = self._ends_of(self._place.interactions, settled=True)
        rest = self._ends_of(self._before.interactions, settled=True)
        self._copy_up_to({tp[1]: offset for tp, offset in rest.items()})
        return ends

    # --- the switch

    def switch(self, say: Callable[[str], None]) -> float:
        """Hold processing, apply the tail, switch, release. Returns how long the hold lasted (s)."""
        with Lease(self._client, HOLD, "processing is held already; it goes on within 15 s. Start again then") as hold:
            began = time.monotonic()
            say("processing is held; events keep being accepted")
            self._wait_until_left(hold, say)
            self._tail()
            hold.check()
            self._flip(hold)
            # The log lays out a Redis that was emptied. Should we end here, the first processor tells it.
            runtime.log_layout(self._source, self._place)
            say(f"switched to epoch {self._place.epoch}")
            time.sleep(LAYOUT_S)  # readers that believe in the old layout: nothing is written until they ask again
        return time.monotonic() - began

    def _wait_until_left(self, hold: Lease, say: Callable[[str], None]) -> None:
        """Wait until the groups are empty. Who is in none cannot commit, and who joins now sees the hold first."""
        until, told = time.monotonic() + LEAVE_S, time.monotonic() + 5
        while True:
            left = [f"{m} of {group}" for group in self._groups.values() for m in self._source.members(group)]
            hold.check()
            self._lock.check()
            if not left:
                return
            if time.monotonic() > until:
                raise Unable(
                    f"still at work after {LEAVE_S:g} s: {', '.join(left)}. Nothing has changed; stop them, or start "
                    "them anew with this version, and start again"
                )
            if time.monotonic() > told:
                say(f"waiting for {', '.join(left)}")
                told += 5
            time.sleep(_LOOK_S)

    def _tail(self) -> None:
        """What came since the last pass; nobody writes any more."""
        for topic in (self._before.interactions, JOURNEY_STEPS, IDENTITY):
            self._source.bounds(topic, settled=True)
        self._link()
        ends = {name: self._live(name) for name in self._engines}
        if self._copy is not None:
            ends["context"] = self._copy_tail()
            self._source.set_offsets(self._groups["context"], ends["context"])
        self._replay(ends)
        self._carry_over()

    def _carry_over(self) -> None:
        """What does not depend on the layout: resolve's fences and counters, and how fresh everything is."""
        before, place, client = self._before, self._place, self._client
        with reachable():
            shards: Any = client.smembers(before.shards("resolve"))
            resolved = sorted(shard.decode() for shard in shards)
            found = fences(client, before, "resolve", resolved)
            stats: Any = client.mget([before.stats(shard, "resolve") for shard in resolved]) if resolved else []
            with client.pipeline(transaction=False) as pipe:
                for shard, raw in zip(resolved, stats, strict=True):
                    if shard in found:
                        pipe.set(place.fence(shard, "resolve"), encode_fence(found[shard]))
                        pipe.sadd(place.shards("resolve"), shard)
                    if raw is not None:
                        pipe.set(place.stats(shard, "resolve"), raw)
                pipe.execute()
        self._raise_epochs("context", self._before.partitions, place.partitions)
        self._raise_epochs("signals", place.step_partitions, place.step_partitions)
        self._carry_progress("resolve", None)
        self._carry_progress("context", place.partitions)
        self._carry_progress("signals", place.step_partitions)

    def _raise_epochs(self, name: str, before: int, after: int) -> None:
        """The owners' epochs go on from where they were: to a reader, a switch is a take-over."""
        old = fences(self._client, self._before, name, [str(shard) for shard in range(before)])
        new = fences(self._client, self._place, name, [str(shard) for shard in range(after)])
        epoch = 1 + max((fence.epoch for fence in old.values()), default=0)
        with reachable(), self._client.pipeline(transaction=False) as pipe:
            for shard, fence in new.items():
                raised = msgspec.structs.replace(fence, epoch=epoch)
                pipe.set(self._place.fence(shard, name), encode_fence(raised))
            pipe.execute()

    def _carry_progress(self, name: str, shards: int | None) -> None:
        """As fresh as the old epoch was; with other shards, as its least fresh."""
        with reachable():
            old: Any = self._client.hgetall(self._before.progress(name))
            if not old:
                return
            least = min(old.values(), key=int)
            new = old if shards is None else {str(n): old.get(str(n).encode(), least) for n in range(shards)}
            if self._place.interactions != self._before.interactions and name == "context":
                new = dict.fromkeys(new, least)
            self._client.hset(self._place.progress(name), mapping=new)

    def _flip(self, hold: Lease) -> None:
        """Name the new layout, if the hold is ours at that very moment."""
        with reachable():
            for _ in range(_FLIPS):
                with self._client.pipeline() as pipe:
                    try:
                        hold.guard(pipe)
                        pipe.multi()
                        pipe.set(LAYOUT, msgspec.json.encode(self._place))
                        pipe.execute()
                    except redis.WatchError:  # it was renewed in between
                        continue
                    return
        raise StoreUnavailable("the hold changes all the time; is another rebuild on this Redis?")

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        if self._copy is not None:
            self._copy.close()
