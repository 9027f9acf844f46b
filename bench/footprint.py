"""Memory with many customers seen, and how fast an empty Redis is filled from the log again."""

from __future__ import annotations

from bench.load import events, interactions
from bench.report import Report
from bench.stack import started
from segue import runtime

BATCH = 5000


def memory(report: Report, customers: int) -> None:
    """Each processor after `customers` different customers, every second of whom came twice."""
    section = "memory"
    count = customers + customers // 2
    with started("kafka") as stack:
        stack.fill("writing events", events(count, customers, "seen"), count)
        for name in runtime.PROCESSORS:
            found = stack.worker(name, count)
            report.add(
                section,
                {
                    "processor": name,
                    "customers": customers,
                    "RSS MB at the end": found["rss_mb"],
                    "RSS MB at most": found["rss_max_mb"],
                    "ev/s": found["per_s"],
                    "CPU µs/event": found["cpu_us"],
                },
            )
        used = runtime.open_redis(stack.settings).info("memory")["used_memory"]  # type: ignore[index]
        report.note(section, f"the store holds {used / 1e6:,.0f} MB, {used / customers:,.0f} bytes per customer")
    report.show(section)


def restore(report: Report, count: int, customers: int) -> None:
    """The same records live, and again after Redis was emptied: applied without emitting, up to what was committed."""
    section = "restore"
    with started("kafka", batch_records=BATCH) as stack:
        stack.fill("writing interactions", interactions(count, customers, "again"), count)
        live = stack.worker("context", count)
        stack.empty_store()
        again = stack.worker("context", count)
    for what, found in (("live", live), ("restore from an empty Redis", again)):
        ratio = found["per_s"] / live["per_s"]
        row = {"context": what, "ev/s": found["per_s"], "CPU µs/event": found["cpu_us"], "of live": ratio}
        report.add(section, row)
    report.show(section)
