"""One measured run in a process of its own: `python -m bench.worker WHAT COUNT`, settings by environment.

WHAT is a processor, or `bare:<processor>`: the same topics consumed and decoded, nothing else. Prints JSON
lines: how far it is, and at the end events per second of wall time, microseconds of CPU per event (both
without the warm-up), and memory at the end and at most.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import orjson

from segue import runtime
from segue.core.event import Event
from segue.core.interaction import Interaction, StepView
from segue.metrics import Meter
from segue.settings import Settings, load
from segue.topics import EVENT_TOPICS, INTERACTIONS, JOURNEY_STEPS

INPUTS = {
    "resolve": (EVENT_TOPICS, Event),
    "context": ((INTERACTIONS,), Interaction),
    "signals": ((JOURNEY_STEPS,), StepView),
}
TELL_EVERY_S = 0.5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Watch:
    """Takes the time between the warm-up and all of `count` events. `warm` is a share of them.

    It watches this process, or others (Linux only).
    """

    def __init__(self, count: int, warm: float, others: Sequence[int] = ()) -> None:
        self.count, self._warm, self._others = count, int(count * warm), others
        self._from: tuple[int, float, float] | None = None
        self._told = 0.0
        self.latencies_ms: list[int] = []

    @property
    def measuring(self) -> bool:
        """Whether the warm-up is over."""
        return self._from is not None

    def done(self, so_far: int) -> bool:
        """Whether all has been handled; starts the clock once warm."""
        if self._from is None and so_far >= self._warm:
            self._from = so_far, time.perf_counter(), self._cpu_s()
            tell({"warm": so_far})
        elif time.perf_counter() > self._told + TELL_EVERY_S:
            self._told = time.perf_counter()
            tell({"done": so_far})
        return so_far >= self.count

    def latency(self, took_ms: Iterable[int]) -> None:
        """Take down how long events took, once warm."""
        if self.measuring:
            self.latencies_ms += took_ms

    def result(self) -> dict[str, float]:
        assert self._from is not None
        first, wall, cpu = self._from
        events = self.count - first
        if events < (self.count - self._warm) // 2:
            raise SystemExit(f"{first} of {self.count} events came in the first turns: too few are left; give --events")
        found = {
            "per_s": events / (time.perf_counter() - wall),
            "cpu_us": (self._cpu_s() - cpu) / events * 1e6,
            "rss_mb": sum(map(resident_mb, self._others or ["self"])),
        }
        if not self._others:
            found["rss_max_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if len(self.latencies_ms) > 100:
            cut = statistics.quantiles(self.latencies_ms, n=100)
            found |= {"p50_ms": cut[49], "p95_ms": cut[94], "p99_ms": cut[98]}
        return found

    def _cpu_s(self) -> float:
        return sum(map(cpu_s, self._others)) if self._others else time.process_time()


def tell(line: dict[str, float]) -> None:
    sys.stdout.write(orjson.dumps(line).decode() + "\n")
    sys.stdout.flush()


def cpu_s(pid: int) -> float:
    """CPU time of a process so far; 0 where the system does not say."""
    try:
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # not Linux
        return 0.0
    return (int(parts[11]) + int(parts[12])) / _TICKS_PER_S


def resident_mb(pid: int | str = "self") -> float:
    """Memory of a process now; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def bare(name: str, settings: Settings, watch: Watch) -> None:
    """Consume and decode: what no processor can be faster than."""
    topics, shape = INPUTS[name]
    decode = msgspec.json.Decoder(shape).decode
    member = runtime.open_log(settings).join(f"bare-{uuid.uuid4().hex[:8]}", topics, uuid.uuid4().hex[:8])
    seen = 0
    while not watch.done(seen):
        polled = member.poll(settings.batch_records, 0.1)
        for tp in polled.assigned:
            member.start(tp, None)
        for records in polled.records.values():
            for record in records:
                decode(record.value() or b"")
            seen += len(records)
    member.close()


def processor(name: str, settings: Settings, watch: Watch) -> None:
    """One processor until it has applied (or, in a restore, replayed) all of it."""
    meters: list[Meter] = []

    def finished() -> bool:
        return bool(meters) and watch.done(meters[0].counts["applied"] + meters[0].counts["replayed"])

    runtime.run(name, settings, finished, meters.append)


def _take_down_latencies(watch: Watch) -> None:
    """The processors count latencies by buckets; here each is wanted."""
    counted = Meter.readable

    def readable(meter: Meter, received_ms: Iterable[int], now_ms: int) -> None:
        watch.latency(now_ms - received for received in received_ms)
        counted(meter, received_ms, now_ms)

    Meter.readable = readable  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("what")
    parser.add_argument("count", type=int)
    parser.add_argument("--warm", type=float, default=0.05, help="share of the events that is not measured")
    parser.add_argument("--latencies", action="store_true", help="take down how long each event took")
    parser.add_argument("--without", default="", help="`transaction`, `fence`, or both with a comma")
    given = parser.parse_args()
    settings = load()
    runtime.configure_logging("warning")
    watch = Watch(given.count, given.warm)
    if given.latencies:
        _take_down_latencies(watch)
    if given.without:
        from bench.unguarded import take_away

        take_away(given.without.split(","))
    if given.what.startswith("bare:"):
        bare(given.what.removeprefix("bare:"), settings, watch)
    else:
        processor(given.what, settings, watch)
    tell(watch.result())


if __name__ == "__main__":
    main()
