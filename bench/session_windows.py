"""The session windows of four other engines (tests/data/session_window_cases.json), one customer for each key.

Where an engine says where a session ends, that is compared, too: Beam's ends are our reach, of which they are the
first time outside and we the last inside, so only cases with an event at exactly the gap tell the two apart. Flink's
table has windows and no events: a window is an event at its start, on a channel whose gap is the window's length.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.counts import Line
from tests.core.builders import DAY, T0, Customer

TABLE = Path(__file__).parents[1] / "tests" / "data" / "session_window_cases.json"

PATIENCE_MS = 30 * DAY
"""The grace: long enough that nothing in the table is late."""

LEFT_OUT = {
    "beam-merge-5-exact-gap": "an event at exactly the gap opens the next session there and joins here",
    "beam-merge-6-exact-gap-reversed": "an event at exactly the gap opens the next session there and joins here",
    "flink-invalid-gap": "about the configuration: here the settings refuse a gap below one second",
    "kafka-emissions-on-merge": "about the tombstone that Kafka Streams emits; here a `session.merged` fact says it",
    "kafka-null-key": "a record without a key never gets to sessions: the resolve processor dead-letters it",
    "kafka-late-zero-grace": "lateness is per customer here, per partition there, and late events are kept",
    "kafka-late-grace-1": "lateness is per customer here, per partition there, and late events are kept",
}
"""The cases that do not follow our rule (an event at exactly the gap joins) or are not about where sessions begin and
end, and why not."""

Session = dict[str, Any]
"""What is said of a session: `key`, `first`, `last`, `end` (the last time that it reaches), `count`, `merged`."""


class Case(NamedTuple):
    """What one case says of its sessions, and what came out. Times in ms (the engines' units do not matter)."""

    name: str
    engine: str
    expected: list[Session]
    found: list[Session]

    @property
    def holds(self) -> bool:
        same = zip(self.expected, self.found, strict=False)
        return len(self.expected) == len(self.found) and all(said.items() <= found.items() for said, found in same)


def cases() -> Iterator[Case]:
    """Every case that is to hold, tried."""
    for case in _table():
        if case["id"] not in LEFT_OUT:
            expected, found = _windows(case) if case["engine"] == "apache-flink" else _events(case)
            yield Case(case["id"], case["engine"], sorted(expected, key=_place), sorted(found, key=_place))


def left_out() -> dict[str, str]:
    """The other cases of the table, each with the reason."""
    return {case["id"]: LEFT_OUT[case["id"]] for case in _table() if case["id"] in LEFT_OUT}


def lines(tried: Iterable[Case]) -> list[Line]:
    """How many cases hold, by engine; one that does not has a line of its own."""
    counted, held = Counter[str](), Counter[str]()
    wrong: list[Line] = []
    for case in tried:
        counted[case.engine] += 1
        held[case.engine] += case.holds
        if not case.holds:
            wrong.append(Line(case.name, 1, None, 0))
    return [Line(f"{engine}, cases that hold", count, None, held[engine]) for engine, count in counted.items()] + wrong


def _table() -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = json.loads(TABLE.read_text())["cases"]
    return table


def _events(case: dict[str, Any]) -> tuple[list[Session], list[Session]]:
    customers: dict[str, Customer] = {}
    for event in case["input"]:
        customer = customers.setdefault(event["key"], Customer(grace_ms=PATIENCE_MS, session_gap_ms=case["gap"]))
        customer.does(event["ts"])
    expected = [{_NAMES[name]: _counted(value) for name, value in said.items()} for said in case["expect"]]
    return expected, [session for key, customer in customers.items() for session in _sessions(key, customer)]


def _windows(case: dict[str, Any]) -> tuple[list[Session], list[Session]]:
    windows = [tuple(each["window"]) for each in case["input"]]
    customer = Customer(
        grace_ms=PATIENCE_MS, channel_gaps_ms={f"for {end - start}": end - start for start, end in windows}
    )
    for start, end in windows:
        customer.does(start, f"for {end - start}")
    unions = [each["merged"] for each in case["expect"]]
    for union in unions:
        for window in union["from"]:
            windows.remove(tuple(window))
    expected = [{"first": union["to"][0], "end": union["to"][1], "count": len(union["from"])} for union in unions]
    expected += [{"first": start, "end": end, "count": 1} for start, end in windows]
    return expected, list(_sessions("", customer))


def _sessions(key: str, customer: Customer) -> Iterator[Session]:
    for session in customer.now.sessions:
        yield {
            "key": key,
            "first": session.started_at_ms - T0,
            "last": session.last_event_at_ms - T0,
            "end": session.until_ms - T0,
            "count": session.events,
            "merged": len(session.merged),
        }


_NAMES = {
    "key": "key",
    "first": "first",
    "last": "last",
    "end_exclusive": "end",
    "count": "count",
    "members": "count",
    "merged_ids": "merged",
}
"""What the table calls it, and we."""


def _counted(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def _place(session: Session) -> tuple[str, int]:
    return session.get("key", ""), session["first"]
