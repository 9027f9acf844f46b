"""Counting in the processors, and one metrics page for all of them.

A processor counts in plain dicts (`Meter`) and leaves a snapshot in Redis a few times a second; the API
turns the snapshots of all processes into Prometheus' format. So one scrape sees the whole deployment,
embedded or spread over machines, and no event pays for a metrics library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct, field
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

BOUNDS_MS: tuple[float, ...] = tuple(round(1.25**n, 1) for n in range(56))
"""Upper bounds of the latency buckets: 1 ms to about 3.5 minutes, each 25 % above the last."""

STALE_MS = 60_000
FORGOTTEN_MS = 86_400_000
"""A process that has said nothing for a day is not coming back under its name."""


class Snapshot(Struct):
    """What one process has counted since it started."""

    processor: str
    instance: str
    at_ms: int
    counts: dict[str, int]
    latency: list[int]
    latency_sum_ms: float
    owned: int = 0
    behind_ms: int = 0
    stopped: int = 0
    restoring: int = 0
    """Partitions being taken over, or replayed up to where they were committed."""
    stalled_ms: int = 0
    """The longest that a partition has neither moved on nor been at its end; stopped ones are not counted."""
    store_ms: int = 0
    """How long it took to leave the snapshot before this one: a few round trips to Redis and nothing else."""


class Meter(Struct):
    """The counters of one process. `latency` counts event-to-readable times per bucket of BOUNDS_MS."""

    counts: Counter[str] = field(default_factory=Counter)
    latency: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))
    latency_sum_ms: float = 0.0

    def readable(self, received_ms: Iterable[int], now_ms: int) -> None:
        """Count events that became readable now; `received_ms` is when the log received each."""
        latency, total = self.latency, 0
        for received, times in Counter(received_ms).items():
            took = max(0, now_ms - received)
            latency[bisect_left(BOUNDS_MS, took)] += times
            total += took * times
        self.latency_sum_ms += total


def quantiles(buckets: list[int], wanted: tuple[float, ...] = (0.5, 0.95, 0.99)) -> list[float | None]:
    """Quantiles in ms from bucket counts, interpolated within a bucket; None when nothing was counted."""
    total = sum(buckets)
    found: list[float | None] = []
    for q in wanted:
        left = q * total
        for at, count in enumerate(buckets):
            if count and left <= count:
                low = BOUNDS_MS[at - 1] if at else 0.0
                high = BOUNDS_MS[min(at, len(BOUNDS_MS) - 1)]
                found.append(low + (high - low) * left / count)
                break
            left -= count
        else:
            found.append(None)
    return found


def merged(snapshots: Iterable[Snapshot]) -> list[int]:
    """The latency buckets of several processes as one."""
    return [sum(column) for column in zip(*(s.latency for s in snapshots), strict=True)]


def decode(raw: bytes) -> Snapshot:
    return msgspec.json.decode(raw, type=Snapshot)


class Collector:
    """A prometheus_client collector over snapshots."""

    def __init__(self, snapshots: list[Snapshot]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterable[Metric]:
        who = ["processor", "instance"]
        records = CounterMetricFamily("segue_records", "Records by outcome.", labels=[*who, "outcome"])
        latency = HistogramMetricFamily(
            "segue_event_to_readable_seconds",
            "From the log's receipt of an event to its effect being readable.",
            labels=who,
        )
        owned = GaugeMetricFamily("segue_partitions_owned", "Partitions that a process owns.", labels=who)
        behind = GaugeMetricFamily(
            "segue_behind_seconds", "Age of the state: since when it may lack something.", labels=who
        )
        stopped = GaugeMetricFamily(
            "segue_partitions_stopped", "Partitions not read on, because too much of them was refused.", labels=who
        )
        restoring = GaugeMetricFamily(
            "segue_partitions_restoring", "Partitions being taken over or replayed.", labels=who
        )
        stalled = GaugeMetricFamily(
            "segue_stalled_seconds", "Longest that a partition has neither moved on nor been at its end.", labels=who
        )
        store = GaugeMetricFamily(
            "segue_store_answer_seconds", "How long a process's last report to the store took.", labels=who
        )
        for s in self._snapshots:
            labels = [s.processor, s.instance]
            restoring.add_metric(labels, s.restoring)
            stalled.add_metric(labels, s.stalled_ms / 1000)
            store.add_metric(labels, s.store_ms / 1000)
            for outcome, count in s.counts.items():
                records.add_metric([*labels, outcome], count)
            owned.add_metric(labels, s.owned)
            behind.add_metric(labels, s.behind_ms / 1000)
            stopped.add_metric(labels, s.stopped)
            if sum(s.latency):
                latency.add_metric(labels, *_histogram(s))
        return [records, latency, owned, behind, stopped, restoring, stalled, store]


_STORE = (
    ("segue_store_used_bytes", "Memory that the store uses.", "used_memory"),
    ("segue_store_limit_bytes", "Memory that the store may use; 0 is no limit.", "maxmemory"),
    ("segue_store_evicted_keys", "Keys that the store threw away: contexts lost. Must be 0.", "evicted_keys"),
    ("segue_store_rdb_ok", "1 when its last snapshot to disk succeeded.", "rdb_last_bgsave_status"),
    (
        "segue_store_aof_rewrite_ok",
        "1 when its last rewrite of the append-only file succeeded.",
        "aof_last_bgrewrite_status",
    ),
    ("segue_store_aof_write_ok", "1 when its last write to the append-only file succeeded.", "aof_last_write_status"),
)


class StoreCollector:
    """A prometheus_client collector over what Redis says of itself (INFO)."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self._info = info

    def collect(self) -> Iterable[Metric]:
        for name, what, field_name in _STORE:
            told = self._info.get(field_name)
            if told is not None:
                yield GaugeMetricFamily(name, what, value=float(told == "ok" if isinstance(told, str) else told))


def _histogram(snapshot: Snapshot) -> tuple[list[tuple[str, float]], float]:
    total, buckets = 0, []
    for bound, count in zip((*BOUNDS_MS, float("inf")), snapshot.latency, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound / 1000:g}", float(total)))
    return buckets, snapshot.latency_sum_ms / 1000
