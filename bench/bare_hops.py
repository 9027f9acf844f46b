"""Two hops that do nothing, at a steady rate: what consumer, transaction and write take before Segue does anything.

As a process, `python -m bench.bare_hops first` passes events on to the topic of interactions, one transaction for what
a poll brings; `second` passes these on to that of steps, and writes them to Redis.
"""

from __future__ import annotations

import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence

import orjson

from bench.latency import CUSTOMERS, WARM_UP_S, pace, running
from bench.load import events
from bench.report import Report
from bench.stack import started
from segue import runtime
from segue.engine import LINGER_S
from segue.log.port import TP, Output, Record
from segue.settings import Settings, load
from segue.topics import EVENT_TOPICS, INTERACTIONS, JOURNEY_STEPS

TOOK = "bare:took"
"""The key in Redis: how many events took how many ms so far."""
TELL_EVERY_S = 0.2
HOPS = {"first": (EVENT_TOPICS, INTERACTIONS), "second": ((INTERACTIONS,), JOURNEY_STEPS)}
_RECEIVED = struct.Struct(">q")
"""In front of what is passed on: when the log received the event (ms since 1970)."""


def bare_hops(report: Report, rates: Sequence[int], seconds: int, partitions: int) -> None:
    """From the log's receipt of an event to the answered write of its bytes, through both hops."""
    section = "latency, kafka log: two hops that do nothing"
    hops = [("bench.bare_hops", name) for name in HOPS]
    started_up = started("kafka", partitions=partitions, event_partitions=min(partitions, 2))
    with started_up as stack, running(stack.settings, hops):
        settings = stack.settings
        first = pace(settings, events(1000 * WARM_UP_S, CUSTOMERS, "paced"), 1000, WARM_UP_S, "bare: warming up")
        for rate in rates:
            made, before = list(events(rate * seconds, CUSTOMERS, "paced", first)), _took(settings)
            first += pace(settings, iter(made), rate, seconds, f"bare: {rate:,} ev/s")
            time.sleep(2)
            took = sorted((_took(settings) - before).elements())
            quantiles = {f"p{q} ms": took[len(took) * q // 100] for q in (50, 95, 99)}
            report.add(section, {"partitions": partitions, "paced ev/s": rate, "seen": len(took)} | quantiles)
    report.show(section)


def _took(settings: Settings) -> Counter[int]:
    raw = runtime.open_redis(settings).get(TOOK)
    return Counter(dict(orjson.loads(raw) if raw else ()))  # type: ignore[arg-type]


def hop(name: str, settings: Settings) -> None:
    """Pass on for ever."""
    topics, target = HOPS[name]
    client, took = runtime.open_redis(settings), Counter[int]()
    member = runtime.open_log(settings).join(f"bare.{name}", topics, "bare")
    turned = told = 0.0
    while True:
        time.sleep(max(0.0, turned + LINGER_S - time.monotonic()))
        polled = member.poll(settings.batch_records, 0.1)
        for tp in polled.assigned:
            member.start(tp, None)
        if polled.records:
            turned = time.monotonic()
            seen = [_seen(tp, record) for tp, records in polled.records.items() for record in records]
            outputs = [Output(target, key, _RECEIVED.pack(at) + value) for key, value, at in seen]
            member.commit(outputs, {tp: records[-1].offset() + 1 for tp, records in polled.records.items()})
            if target == JOURNEY_STEPS:
                client.mset({key: value for key, value, _ in seen})
                now = time.time_ns() // 1_000_000
                took.update(now - at for _, _, at in seen)
        if took and time.monotonic() > told + TELL_EVERY_S:
            told = time.monotonic()
            client.set(TOOK, orjson.dumps(list(took.items())))


def _seen(tp: TP, record: Record) -> tuple[bytes, bytes, int]:
    key, value = record.key() or b"", record.value() or b""
    if tp[0] == INTERACTIONS:
        return key, value[_RECEIVED.size :], _RECEIVED.unpack_from(value)[0]
    return key, value, record.timestamp()[1]


if __name__ == "__main__":
    hop(sys.argv[1], load())
