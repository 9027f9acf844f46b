"""How late a timer fires: from the moment that it is due to the record that says so, by the log's own time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count, islice

import orjson

from bench.latency import CUSTOMERS, pace, processors
from bench.load import events
from bench.report import Report, Row
from bench.stack import started
from segue import runtime
from segue.log.port import Output
from segue.settings import Settings
from segue.topics import JOURNEY_STEPS, event_topic

WARM_UP_S = 20
AWAITED_S = 5
"""How long a cart may stand: timers are due while others are still being set."""
CARTS_PER_S = 50
PATIENCE_S = 60
_NAMED = count()


def timers(report: Report, kind: str, rates: Sequence[int], seconds: int) -> None:
    """Carts are left behind at a steady pace, beside other events at each of `rates` per second."""
    section = f"timers, {kind} log: from due to fired"
    with started(kind, abandoned_after_s={"cart": AWAITED_S}) as stack, processors(stack.settings):
        settings, first = stack.settings, 0
        for rate in (rates[0], *rates):
            others = events(rate * seconds, CUSTOMERS, "paced", first)
            known, carts = len(_late_ms(settings)), seconds * CARTS_PER_S
            pace(settings, _mixed(others, rate), rate + CARTS_PER_S, seconds, f"timers beside {rate:,} ev/s")
            first += rate * seconds
            late = sorted(_settled(settings, known + carts)[known:])
            if first > rate * seconds:  # the first round warms up
                row: Row = {"ev/s beside": rate, "timers": len(late)}
                row |= {f"p{q} ms": late[len(late) * q // 100] for q in (50, 99)}
                report.add(section, row | {"max ms": late[-1]})
    report.show(section)


def _mixed(others: Iterator[Output], rate: int) -> Iterator[Output]:
    while True:
        yield _cart()
        yield from islice(others, rate // CARTS_PER_S)


def _cart() -> Output:
    """A cart of a customer of its own, now."""
    who = f"cart-{next(_NAMED)}"
    event = {
        "specversion": "1.0", "id": who, "source": "/web", "type": "cart.item_added", "channel": "web",
        "time": datetime.now(UTC).isoformat(), "data": {"identifiers": [{"type": "user_id", "value": who}]},
    }  # fmt: skip
    return Output(event_topic("web"), who.encode(), orjson.dumps(event))


def _settled(settings: Settings, expected: int) -> list[int]:
    until = time.monotonic() + PATIENCE_S
    while len(found := _late_ms(settings)) < expected:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(found)} of {expected} timers fired within {PATIENCE_S} s")
        time.sleep(1)
    return found


def _late_ms(settings: Settings) -> list[int]:
    """Of each abandoned cart so far, as they were written: the time of its step in the log less when it was due."""
    log = runtime.open_log(settings)
    steps = ((record.timestamp()[1], record.value() or b"") for record in log.read(JOURNEY_STEPS))
    found = [(at, at - orjson.loads(raw)["entry"]["event_time_ms"]) for at, raw in steps if b'"cart.abandoned"' in raw]
    log.close()
    return [late for _, late in sorted(found)]
