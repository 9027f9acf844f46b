"""One measured run in a process of its own: `python -m bench.worker WHAT COUNT`, settings by environment.

WHAT is a processor, or `bare:<processor>`: the same topics consumed and decoded, nothing else. Prints
events per second of wall time and microseconds of CPU per event, after the first 5 % (warm-up).
"""

from __future__ import annotations

import sys
import time
import uuid

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


class Watch:
    """Takes the time between 5 % and all of `count` events."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._from: tuple[int, float, float] | None = None

    def done(self, so_far: int) -> bool:
        """Whether all has been handled; starts the clock once warm."""
        if self._from is None and so_far >= self.count // 20:
            self._from = so_far, time.perf_counter(), time.process_time()
        return so_far >= self.count

    def result(self) -> dict[str, float]:
        assert self._from is not None
        first, wall, cpu = self._from
        events = self.count - first
        return {
            "per_s": events / (time.perf_counter() - wall),
            "cpu_us": (time.process_time() - cpu) / events * 1e6,
        }


def bare(name: str, count: int, settings: Settings) -> dict[str, float]:
    """Consume and decode: what no processor can be faster than."""
    topics, shape = INPUTS[name]
    decode = msgspec.json.Decoder(shape).decode
    member = runtime.open_log(settings).join(f"bare-{uuid.uuid4().hex[:8]}", topics, uuid.uuid4().hex[:8])
    watch, seen = Watch(count), 0
    while not watch.done(seen):
        polled = member.poll(settings.batch_records, 0.1)
        for tp in polled.assigned:
            member.start(tp, None)
        for records in polled.records.values():
            for record in records:
                decode(record.value() or b"")
            seen += len(records)
    result = watch.result()
    member.close()
    return result


def processor(name: str, count: int, settings: Settings) -> dict[str, float]:
    watch = Watch(count)
    meters: list[Meter] = []
    runtime.run(name, settings, lambda: bool(meters) and watch.done(meters[0].counts["applied"]), meters.append)
    return watch.result()


def main() -> None:
    what, count = sys.argv[1], int(sys.argv[2])
    settings = load()
    runtime.configure_logging("warning")
    if what.startswith("bare:"):
        result = bare(what.removeprefix("bare:"), count, settings)
    else:
        result = processor(what, count, settings)
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
