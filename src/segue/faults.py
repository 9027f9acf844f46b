"""Faults on purpose, for `tests/chaos`: what no deployment sets, and what costs nothing where it is not set.

`install` is called by the composition root and puts itself around the parts of an engine; the parts know nothing of it.

    SEGUE_TEST_FAILPOINT=POINT:WHEN[:WHAT]   end this process (SIGKILL) at a point of a turn
        POINT   after_read, after_apply, after_produce (outputs written, not committed),
                after_commit (not yet in Redis), after_write (its answer was taken)
                after_read and after_apply come once for each of a turn's portions
        WHEN    5 (the fifth time) or p=0.02,SEED (each time, with this probability)
        WHAT    kill (the default), stop (SIGSTOP, a process that wakes up late), sleep=SECONDS (a slow one)
    SEGUE_TEST_UNSAFE=NAME                   do without ONE guarantee, so that a test can show that it is missed
        fence         write to Redis without comparing the fence
        epoch         take a partition over without raising the epoch
        ids           keep no window of event ids
        silent        emit again what is replayed
        transaction   commit outputs and offsets one after the other
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import structlog
from msgspec import structs

from segue.engine import Engine
from segue.errors import SettingsError
from segue.log.port import TP, Member, Output
from segue.store.shards import Fence, Write, encode_fence

FAILPOINT, UNSAFE = "SEGUE_TEST_FAILPOINT", "SEGUE_TEST_UNSAFE"
POINTS = ("after_read", "after_apply", "after_produce", "after_commit", "after_write")

At = Callable[[str], None]


def install(engine: Engine, environment: Mapping[str, str]) -> None:
    """Put the faults that the environment names around an engine that does not run yet. Raises SettingsError."""
    point, unsafe = environment.get(FAILPOINT), environment.get(UNSAFE)
    if not point and not unsafe:
        return
    structlog.get_logger().warning("running with faults on purpose, for a test", failpoint=point, unsafe=unsafe)
    if point:
        at = failpoint(point)
        _after(engine.processor, "prepare", lambda: at("after_read"))
        _after(engine.processor, "apply", lambda: at("after_apply"))
        _after(engine._store, "finish", lambda: at("after_write"))
        _each_member(engine, lambda member: _around_commit(member, at))
    if unsafe:  # around the fail points, so that a commit in two parts has one in between
        if unsafe not in _WITHOUT:
            raise SettingsError(f"{UNSAFE}: no such guarantee: {unsafe}; one of {', '.join(_WITHOUT)}")
        _WITHOUT[unsafe](engine)


def failpoint(text: str) -> At:
    """Parse POINT:WHEN[:WHAT] into what is to be called at every point. Raises SettingsError."""
    try:
        point, when, what = (*text.split(":"), "kill")[:3]
        due, act = _due(when), _act(what)
    except ValueError as error:
        raise SettingsError(f"{FAILPOINT}: {text!r} is not POINT:WHEN[:WHAT]") from error
    if point not in POINTS:
        raise SettingsError(f"{FAILPOINT}: no such point: {point}; one of {', '.join(POINTS)}")

    def at(here: str) -> None:
        if here == point and due():
            act()

    return at


def _due(when: str) -> Callable[[], bool]:
    if when.startswith("p="):
        share, _, seed = when[2:].partition(",")
        chance, dice = float(share), random.Random(seed)
        return lambda: dice.random() < chance
    left = iter(range(int(when) - 1, -1, -1))
    return lambda: next(left, -1) == 0


def _act(what: str) -> Callable[[], None]:
    if what.startswith("sleep="):
        seconds = float(what.removeprefix("sleep="))
        return lambda: time.sleep(seconds)
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(what)
    if number is None:
        raise ValueError(what)
    return lambda: os.kill(os.getpid(), number)


def _after(owner: Any, name: str, then: Callable[[], None]) -> None:
    inner = getattr(owner, name)

    def call(*given: Any) -> Any:
        answer = inner(*given)
        then()
        return answer

    setattr(owner, name, call)


def _each_member(engine: Engine, change: Callable[[Any], None]) -> None:
    inner = engine._log.join

    def join(*given: Any) -> Member:
        member = inner(*given)
        change(member)
        return member

    _replace(engine._log, "join", join)


def _replace(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def _around_commit(member: Any, at: At) -> None:
    begin = member.begin

    def produced(outputs: Iterable[Output]) -> Iterator[Output]:
        yield from outputs
        at("after_produce")

    member.begin = lambda outputs, offsets: begin(produced(outputs), offsets)
    _after(member, "finish", lambda: at("after_commit"))


# --- one guarantee less


def _no_fence(engine: Engine) -> None:
    """Expect whatever is there."""
    store: Any = engine._store
    begin, load, read_ahead = store.begin, store.load, store.read_ahead

    def fence(shard: str) -> bytes:
        found: bytes = store._redis.get(store.layout.fence(shard, store.processor))
        return found

    def write_anyway(writes: list[Write]) -> None:
        begin([structs.replace(each, expected=fence(each.shard)) for each in writes])

    store.begin = write_anyway
    store.load = lambda wanted, fences: load(wanted, {shard: fence(shard) for shard in fences})
    store.read_ahead = lambda wanted, fences: read_ahead(wanted, {shard: fence(shard) for shard in fences})


def _no_epoch(engine: Engine) -> None:
    store: Any = engine._store
    next_fence, take_over = store._next, store.take_over

    def same(found: Fence | None, *given: Any) -> bytes:
        raw: bytes = next_fence(found, *given) if found is None else encode_fence(found)
        return raw

    def taken(*given: Any) -> Any:
        found, *rest = take_over(*given)
        return (None if found is None else structs.replace(found, epoch=found.epoch - 1), *rest)

    store._next, store.take_over = same, taken


def _no_ids(engine: Engine) -> None:
    processor: Any = engine.processor
    if hasattr(processor, "_policy"):
        processor._policy = structs.replace(processor._policy, keep_ids=0)


def _not_silent(engine: Engine) -> None:
    """The engine believes that nothing was committed yet."""
    _each_member(engine, lambda member: _replace(member, "committed", dict.fromkeys))


def _no_transaction(engine: Engine) -> None:
    def apart(member: Any) -> None:
        begin, finish = member.begin, member.finish

        def in_two(outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
            begin(outputs, {})
            finish()
            begin((), offsets)

        member.begin = in_two

    _each_member(engine, apart)


_WITHOUT: dict[str, Callable[[Engine], None]] = {
    "fence": _no_fence,
    "epoch": _no_epoch,
    "ids": _no_ids,
    "silent": _not_silent,
    "transaction": _no_transaction,
}
