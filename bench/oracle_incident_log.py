"""What the incident log must become, counted from the CSV by other means than Segue's: none of its code.

Reads the file with the csv module, sorts it by time and walks over it once, in plain dictionaries. Where
Segue keeps bounded lists and works event by event, this keeps everything, so agreement means something.

    python -m bench.oracle_incident_log FILE [CASES]
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

CHANNEL = {"Phone": "voice", "Self service": "web", "Email": "email", "IVR": "ivr", "Direct opening": "in_person"}
TYPE = {"New": "case.new", "Active": "case.updated", "Resolved": "case.resolved", "Closed": "case.closed"}
STATUS = {"New": "open", "Active": "open", "Resolved": "resolved", "Closed": "closed"}
GAP = timedelta(minutes=30)
LONGEST = timedelta(hours=24)
WEEK = timedelta(days=7)
DAY = timedelta(days=1)

Row = dict[str, str]


@dataclass
class Case:
    """A case as one caller knows it."""

    status: str
    opened: datetime
    group: str | None = None
    missed: bool = False
    reopened: int = 0
    reassigned: int = 0
    attempts: int = 0
    contact: tuple[int | None, str] | None = None
    signalled: datetime | None = None


@dataclass
class Customer:
    cases: dict[str, Case] = field(default_factory=dict)
    openings: list[tuple[datetime, str]] = field(default_factory=list)
    repeated: set[str] = field(default_factory=set)
    channel: str | None = None
    session: int = 0
    session_start: datetime = datetime.min
    session_end: datetime = datetime.min
    session_events: int = 0


def read(path: Path, cases: int | None = None) -> list[Row]:
    """The rows in the file's order; with `cases`, those of the first so many cases."""
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    if cases is None:
        return rows
    kept = set(list(dict.fromkeys(row["number"] for row in rows))[:cases])
    return [row for row in rows if row["number"] in kept]


@cache
def when(text: str) -> datetime:
    """`29/2/2016 01:23`, day first."""
    date, clock = text.split(" ")
    day, month, year = map(int, date.split("/"))
    hour, minute = map(int, clock.split(":"))
    return datetime(year, month, day, hour, minute)


def known(value: str) -> str | None:
    return None if value in ("?", "") else value


class Count:
    """Walks over the rows in time order and counts."""

    def __init__(self, rows: list[Row]) -> None:
        self.counts: Counter[str] = Counter()
        self._customers: dict[str, Customer] = defaultdict(Customer)
        self._owner: dict[str, str] = {}
        self._openers: set[str] = set()
        self._last: dict[str, str] = {}
        for row in sorted(rows, key=lambda row: when(row["sys_updated_at"])):  # stable, as the import
            self._row(row)
        self._standing()

    def _row(self, row: Row) -> None:
        number, caller = row["number"], known(row["caller_id"])
        who = caller or f"nobody but case {number}"
        at, channel = when(row["sys_updated_at"]), CHANNEL[row["contact_type"]]
        state = row["incident_state"]
        waiting = state.startswith("Awaiting")
        self.counts["events"] += 1
        self.counts[f"events.channel.{channel}"] += 1
        self.counts[f"events.type.{'case.waiting' if waiting else TYPE[state]}"] += 1
        customer = self._customers[who]
        by_customer = row["sys_mod_count"] == "0"
        visit = self._session(customer, at, by_customer)
        if by_customer or visit is not None:  # an agent's work without the customer moves nobody
            self._move(customer, channel, visit)
        case = customer.cases.get(number)
        status = "waiting" if waiting else STATUS[state]
        if case is None:
            case = customer.cases[number] = Case(status, when(row["opened_at"]), known(row["assignment_group"]))
            if self._owner.setdefault(number, who) == who:
                by_customer = True  # whoever writes it down, the customer came
                self._opened(customer, number, channel, caller, at)
            else:
                self.counts["cases.joined"] += 1
        case.status = self._last[number] = status
        self._handled(row, case)
        if by_customer:
            self._attempt(case, (visit, channel), at)

    def _session(self, customer: Customer, at: datetime, by_customer: bool) -> int | None:
        """The visit that this row belongs to, by its number. Only the customer opens one."""
        if at - customer.session_end <= GAP and at - customer.session_start <= LONGEST:
            customer.session_events += 1
        elif by_customer:
            self.counts["sessions"] += 1
            customer.session += 1
            customer.session_start, customer.session_events = at, 1
        else:
            return None
        customer.session_end = at
        return customer.session

    def _move(self, customer: Customer, channel: str, visit: int | None) -> None:
        if customer.channel is None:
            customer.channel = channel
        elif customer.channel != channel:
            unresolved = any(case.status in ("open", "waiting") for case in customer.cases.values())
            if (visit is not None and customer.session_events > 1) or unresolved:
                self.counts["handoffs.channel"] += 1
            customer.channel = channel

    def _opened(self, customer: Customer, number: str, channel: str, caller: str | None, at: datetime) -> None:
        self.counts["cases"] += 1
        self.counts[f"cases.channel.{channel}"] += 1
        if caller is not None:
            self._openers.add(caller)
        opened = customer.cases[number].opened
        place = sum(1 for other, _ in customer.openings if other <= opened)
        customer.openings.insert(place, (opened, number))
        for later in (place, place + 1):  # this one, and the one that it now precedes
            if 0 < later < len(customer.openings):
                self._repeated(customer, later, at)

    def _repeated(self, customer: Customer, later: int, at: datetime) -> None:
        (before, earlier_case), (after, later_case) = customer.openings[later - 1], customer.openings[later]
        if after - before > WEEK or later_case in customer.repeated:
            return
        customer.repeated.add(later_case)
        self.counts["contacts.repeated"] += 1
        if customer.cases[earlier_case].status in ("open", "waiting"):
            self._came_back(customer.cases[later_case], at)

    def _handled(self, row: Row, case: Case) -> None:
        group = known(row["assignment_group"])
        if group is not None:
            if case.group is not None and case.group != group:
                self.counts["handoffs.group"] += 1
            case.group = group
        if row["made_sla"] == "false" and not case.missed:
            case.missed = True
            self.counts["sla.missed"] += 1
        reopened, reassigned = int(row["reopen_count"]), int(row["reassignment_count"])
        if reopened > case.reopened:
            self.counts["cases.reopened"] += case.reopened == 0
            self.counts["signals.case-reopened"] += 1
            case.reopened = reopened
        if reassigned > case.reassigned:
            self.counts["cases.reassigned"] += case.reassigned == 0
            case.reassigned = reassigned

    def _attempt(self, case: Case, contact: tuple[int | None, str], at: datetime) -> None:
        if case.status in ("open", "waiting") and case.contact != contact:
            case.contact = contact
            case.attempts += 1
            if case.attempts > 1:
                self._came_back(case, at)

    def _came_back(self, case: Case, at: datetime) -> None:
        """The rule `repeated-contact`: at most once a day about one case."""
        if case.signalled is None or at - case.signalled >= DAY:
            case.signalled = at
            self.counts["signals.repeated-contact"] += 1

    def _standing(self) -> None:
        self.counts["callers"] = len(self._openers)
        self.counts["customers"] = len(self._customers)
        self.counts["signals.missed-sla-or-long-wait"] = self.counts["sla.missed"]
        for status in self._last.values():
            self.counts[f"cases.status.{status}"] += 1


def count(rows: list[Row]) -> dict[str, int]:
    """All counts of some rows, by name."""
    return dict(sorted((name, number) for name, number in Count(rows).counts.items() if number))


if __name__ == "__main__":
    cases = int(sys.argv[2]) if len(sys.argv) > 2 else None
    print(json.dumps(count(read(Path(sys.argv[1]), cases)), indent=1))
