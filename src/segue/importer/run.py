"""The import itself: rows in, events out at a steady rate, and a summary that accounts for every row.

A row that cannot be read, mapped or accepted is counted by reason, with the lines of the first few, and
never stops the import. What does stop it is a destination that acknowledges nothing: then the rest would
fare no better, and importing again is safe, since the ids are the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import orjson
from msgspec import Struct, field

from segue.core.event import Rejected, decode
from segue.errors import Refused, Undelivered
from segue.importer.convert import Skipped
from segue.importer.mapping import Mapping
from segue.importer.readers import Unusable
from segue.importer.rows import Mapped, in_file_order, in_time_order

EXAMPLES = 3
"""Refused rows shown per reason."""

FLUSH_S = 60.0
FLUSH_STOPPED_S = 1.0
"""A destination that has not answered for the client's patience is given this last chance."""
_SLEEP_FROM_S = 0.002
"""Shorter waits are left to the next event: the schedule counts from the start, so nothing adds up."""

Progress = Callable[[str, int, int | None], None]
"""Told after every row: the phase (`reading` or `sending`), rows done, rows in all where that is known."""


class Sink(Protocol):
    """What an import needs of `segue.client.Client`; its `on_delivery` is `Deliveries.report`."""

    def send(self, event: dict[str, Any]) -> Any:
        """Take one event. Raises Refused when it is wrong, Undelivered when it cannot be sent."""
        ...

    def flush(self, timeout_s: float) -> Any:
        """Wait until everything taken is acknowledged or reported. Raises Undelivered."""
        ...


class Refusals(Struct):
    """The rows of one reason: how many, and the first few."""

    count: int = 0
    examples: list[Unusable] = field(default_factory=list)


class Summary(Struct):
    """What became of every row. `stopped` says why the import ended early, if it did.

    `seconds` are those of sending: from the first event to the last acknowledgement.
    """

    rows: int = 0
    sent: int = 0
    seconds: float = 0.0
    refused: dict[str, Refusals] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows that the mapping leaves out, by its reasons."""
    stopped: str | None = None

    @property
    def refused_rows(self) -> int:
        return sum(refusals.count for refusals in self.refused.values())

    @property
    def skipped_rows(self) -> int:
        return sum(self.skipped.values())

    @property
    def unacknowledged(self) -> int:
        """Rows sent and neither acknowledged nor refused; only when the import stopped early."""
        return self.rows - self.sent - self.refused_rows - self.skipped_rows

    def refuse(self, row: Unusable) -> None:
        refusals = self.refused.setdefault(row.reason, Refusals())
        refusals.count += 1
        if len(refusals.examples) < EXAMPLES:
            refusals.examples.append(row)


class Deliveries:
    """The lines of the events under way; told of each outcome by the client, from whatever thread."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}
        self._lock = threading.Lock()
        self._failed: list[tuple[int, Exception]] = []
        self.acknowledged = 0

    def expect(self, event_id: str, line: int) -> None:
        with self._lock:
            self._lines[event_id] = line

    def report(self, event_id: str, error: Exception | None) -> None:
        """The client's `on_delivery`; `error` is None when the event was acknowledged."""
        with self._lock:
            line = self._lines.pop(event_id, 0)
            if error is None:
                self.acknowledged += 1
            else:
                self._failed.append((line, error))

    def failed(self) -> list[tuple[int, Exception]]:
        """Failures reported since the last call: (line, error)."""
        with self._lock:
            found, self._failed = self._failed, []
        return found


class DryRun:
    """A sink that checks events as the real door does, and sends nothing."""

    def __init__(self, deliveries: Deliveries) -> None:
        self._deliveries = deliveries

    def send(self, event: dict[str, Any]) -> None:
        found = decode(orjson.dumps(event))
        if isinstance(found, Rejected):
            raise Refused(found.reason, found.field, found.detail)
        self._deliveries.report(event["id"], None)

    def flush(self, timeout_s: float) -> None:
        """Nothing is ever under way."""


class Pacer:
    """Lets `rate` events a second through, evenly; None lets through everything at once."""

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._start: float | None = None
        self._count = 0

    def wait(self) -> None:
        """Wait for the next event's turn."""
        if self._rate is None:
            return
        if self._start is None:
            self._start = self._clock()
        ahead = self._start + self._count / self._rate - self._clock()
        if ahead >= _SLEEP_FROM_S:
            self._sleep(ahead)
        self._count += 1


def run_import(
    sink: Sink,
    deliveries: Deliveries,
    path: Path,
    mapping: Mapping,
    *,
    pacer: Pacer | None = None,
    limit: int | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> Summary:
    """Send the first `limit` rows of a file (None: all). Raises MappingError and UnreadableFile only."""
    summary, pacer, total = Summary(), pacer or Pacer(None), None
    rows = in_file_order(path, mapping, limit)
    if mapping.order_by == "time":
        total, rows = in_time_order(rows, lambda read: progress("reading", read, None))
    began = time.monotonic()
    for row in rows:
        summary.rows += 1
        if isinstance(row, Unusable):
            summary.refuse(row)
        elif isinstance(row, Skipped):
            summary.skipped[row.why] = summary.skipped.get(row.why, 0) + 1
        else:
            pacer.wait()
            _send(sink, deliveries, row, summary)
        _collect(deliveries, summary)
        progress("sending", summary.rows, total)
        if summary.stopped is not None:
            break
    _finish(sink, deliveries, summary)
    summary.seconds = time.monotonic() - began
    return summary


def _send(sink: Sink, deliveries: Deliveries, row: Mapped, summary: Summary) -> None:
    deliveries.expect(row.event["id"], row.line)
    try:
        sink.send(row.event)
    except Refused as error:
        summary.refuse(Unusable(row.line, error.reason, error.field, error.detail))
    except Undelivered as error:
        summary.stopped = f"line {row.line}: {error}"


def _collect(deliveries: Deliveries, summary: Summary) -> None:
    for line, error in deliveries.failed():
        if isinstance(error, Refused):
            summary.refuse(Unusable(line, error.reason, error.field, error.detail))
        elif summary.stopped is None:
            summary.stopped = f"line {line}: {error}"


def _finish(sink: Sink, deliveries: Deliveries, summary: Summary) -> None:
    why = "not everything was acknowledged"
    try:
        sink.flush(FLUSH_S if summary.stopped is None else FLUSH_STOPPED_S)
    except Undelivered as error:  # of refused events too, which `_collect` knows line by line
        why = str(error)
    _collect(deliveries, summary)
    summary.sent = deliveries.acknowledged
    if summary.unacknowledged and summary.stopped is None:
        summary.stopped = why
