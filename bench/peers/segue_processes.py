"""Segue's *context* in several processes, as a deployment runs it: `python -m bench.peers.segue_processes 2 COUNT`.

They are watched from outside, by what they report to Redis five times a second. Prints what `bench.worker` prints.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from bench.worker import Watch, tell
from segue import runtime
from segue.metrics import decode
from segue.settings import load
from segue.store.keys import METRICS

LOOK_S = 0.1


@contextmanager
def processes(number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processors of one group; they are stopped at the end."""
    command = [sys.executable, "-m", "segue", "run", "context"]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(number)]
    try:
        yield running
    finally:
        for each in running:
            each.terminate()
        for each in running:
            each.wait(30)


def applied(client: redis.Redis) -> int:
    """How many records all of them have applied."""
    told: Any = client.hvals(METRICS)
    return sum(found.counts.get("applied", 0) for found in map(decode, told))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.segue_processes", description=__doc__)
    parser.add_argument("processes", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--warm", type=float, default=0.05, help="share of the events that is not measured")
    given = parser.parse_args()
    client = runtime.open_redis(load())
    with processes(given.processes) as running:
        watch = Watch(given.count, given.warm, [each.pid for each in running])
        while not watch.done(applied(client)):
            if any(each.poll() is not None for each in running):
                raise SystemExit("a processor ended")  # what it applied, the others would be waited for in vain
            time.sleep(LOOK_S)
        tell(watch.result())


if __name__ == "__main__":
    main()
