"""Rows about the processors themselves: killed, paused, slow, started and stopped."""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter

from tests.chaos.harness import Run, row
from tests.chaos.load import Load
from tests.support.stack import eventually

POINTS = ("after_read", "after_apply", "after_produce", "after_commit", "after_write")


def kill_one(run: Run, least_s: float = 0.6, most_s: float = 1.1) -> None:
    """After a while kill a process, whichever, and start it again."""
    run.sleep(run.rng.uniform(least_s, most_s))
    name = run.rng.choice(run.fleet.running)
    run.fleet.kill(name)
    run.up(name)
    run.count("kills")


@row("F1", "a processor killed (SIGKILL)")
def killed(run: Run) -> None:
    run.start()
    run.calmly(5)
    for _ in run.times(100, 15):
        kill_one(run)
    run.healed()


@row("F1p", "killed at every point of a turn")
def killed_at_points(run: Run) -> None:
    """Every process has a fail point; one that died starts again with the next."""
    points = itertools.cycle(POINTS)
    run.start()
    at: dict[str, str] = {}

    def up(name: str) -> None:
        at[name] = next(points)
        run.up(name, SEGUE_TEST_FAILPOINT=f"{at[name]}:p=0.05,{run.rng.random()}")

    for name in run.fleet.running:
        run.fleet.kill(name)
        up(name)
    each = 4 if run.quick else 40
    until = time.monotonic() + 600
    while min(run.counts[point] for point in POINTS) < each and time.monotonic() < until:
        run.sleep(0.1)
        for name in run.fleet.ended():
            run.count(at[name])
            up(name)
    run.expect(min(run.counts[point] for point in POINTS) >= each, "a point was not reached often enough")
    for name in run.fleet.running:
        run.fleet.kill(name)
        run.up(name)
    run.healed()


@row("F2", "a paused owner wakes up late")
def zombie(run: Run) -> None:
    """Paused at its worst: it has committed and not yet written to Redis. Another takes over; then it wakes up."""
    run.start()
    paused = ("context.1", "signals.1", "resolve.1")
    for _ in run.times(3, 1):
        for name in paused:
            run.fleet.kill(name)
            run.up(name, SEGUE_TEST_FAILPOINT="after_commit:20:stop")
        before: dict[bytes, int] = {}
        for name in paused:  # of context first, so that its epochs are those before others take over
            eventually(lambda name=name: run.fleet.stopped(name), 60, f"{name} at its point")
            before = before or run.store.epochs("context")
            run.count("pauses")
        run.sleep(12 if run.quick else 15)  # their sessions end after six
        after = run.store.epochs("context")
        raised = sum(after[key] > epoch for key, epoch in before.items())
        run.count("taken over", raised)
        run.expect(raised > 0, "no partition has a new epoch, and others own them now")
        for name in paused:
            run.fleet.resume(name)
        run.healed()
    run.counts["late writes refused"] = run.says("fence is not what was written last") + run.says("passed to another")
    run.expect(run.counts["late writes refused"] > 0, "no late write was refused: nothing was tested")


@row(
    "U",
    "for a test of the judge",
    load=Load(retries=0.3),
    fleet=("resolve.1", "context.1", "signals.1"),
    of_the_matrix=False,
)
def killed_after_commit(run: Run) -> None:
    """Each processor dies three times after a commit, before Redis knows of it."""
    # An odd number: a commit in two parts, for want of a transaction, then has one of them done.
    point = {"SEGUE_TEST_FAILPOINT": "after_commit:13"}
    run.start()
    for name in run.row.fleet:
        run.fleet.kill(name)
        run.up(name, **point)
    left = Counter(dict.fromkeys(run.row.fleet, 3))
    until = time.monotonic() + 90
    while +left and time.monotonic() < until:
        run.sleep(0.05)
        for name in run.fleet.ended():
            left[name] -= 1
            run.count("kills")
            run.up(name, **(point if left[name] else {}))
    run.expect(not +left, f"did not die as often as they should: {dict(left)}")
    run.healed()


@row("F13", "a storm of rebalances")
def storm(run: Run) -> None:
    """Members come and go, in order and not, with names that they keep and without; two to six of each processor."""
    run.start()
    began = time.monotonic()
    changes(run, 14 if run.quick else 50)
    run.counts["seconds"] = round(time.monotonic() - began)
    run.healed()


def changes(run: Run, count: int) -> None:
    """Members come or go, one after another."""
    for _ in range(count):
        processor = run.rng.choice(("resolve", "context", "signals"))
        mine = [name for name in run.fleet.running if name.startswith(processor)]
        run.count("changes")
        if len(mine) < 6 and (len(mine) <= 2 or run.rng.random() < 0.5):
            run.up(f"{processor}~{run.counts['changes']}")
        else:
            name = run.rng.choice(mine)
            if run.rng.random() < 0.5:
                run.fleet.kill(name)
            else:
                code = run.fleet.stop(name)
                run.expect(code in (0, -signal.SIGTERM), f"{name} ended with {code}")  # the latter: still starting
        run.sleep(run.rng.uniform(0.2, 1.5))


@row("F14", "a slow consumer", kafka_options={"max.poll.interval.ms": "10000", "session.timeout.ms": "10000"})
def slow(run: Run) -> None:
    """A turn that takes 0.9 and 1.5 times as long as a member may stay away from its group."""
    run.start()
    for seconds in (9, 15):
        for name in ("context.1", "signals.1", "resolve.1"):
            run.fleet.kill(name)
            run.up(name, SEGUE_TEST_FAILPOINT=f"after_apply:20:sleep={seconds}")
            run.count("slow turns")
        run.sleep(seconds + 5)
        run.healed()


@row("F23", "rolling restarts (SIGTERM)")
def rolling(run: Run) -> None:
    """Ended in order, nothing is left to be replayed."""
    run.start()
    longest = 0.0
    for _ in run.times(20, 2):
        for name in run.row.fleet:
            began = time.monotonic()
            code = run.fleet.stop(name)
            longest = max(longest, time.monotonic() - began)
            run.expect(code == 0, f"{name} ended with {code}")
            run.up(name)
            run.count("restarts")
            run.ready(name)
    run.healed()
    run.counts["replays"] = run.says('"replaying"')
    run.expect(run.counts["replays"] == 0, "something was replayed")
    run.expect(run.quick or longest <= 10, f"a process took {longest:.1f} s to end")
    run.counts["slowest end ms"] = round(longest * 1000)
