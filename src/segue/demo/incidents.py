"""Real input: an excerpt of the shipped incident log, and what it implies.

The log is the UCI "Incident management process enriched event log" (Amaral, Fantinato, Peres 2018,
CC BY 4.0; see `segue/data/incident_log/CREDIT.txt`): service cases of some 2,600 callers. Nearly all of
them came by telephone, so the excerpt takes whole histories of callers who also came otherwise, of callers
whose case was reopened, and then of others. What it implies is counted here from the rows alone.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import as_file, files
from itertools import chain, islice, pairwise
from typing import Any

from segue.demo.counts import Counts
from segue.errors import SegueError
from segue.importer.convert import Converter
from segue.importer.loading import load as load_mapping
from segue.importer.readers import Row, Unusable

MAPPING = "incident_log"
FILE = "incident_event_log.csv.gz"

CASES = 300
REOPENED_CALLERS = 20
LONGEST = 40
"""Rows of one caller at most: nobody's history shall fill the demo."""

CHANNELS = {"Phone": "voice", "Self service": "web", "Email": "email", "IVR": "ivr", "Direct opening": "in_person"}
WAITING = ("Awaiting User Info", "Awaiting Vendor", "Awaiting Problem", "Awaiting Evidence")
UNRESOLVED = ("New", "Active", *WAITING)
AGAIN = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the log: its number in the file, from 1, and its values by column."""

    number: int
    columns: dict[str, int]
    row: list[str]

    def __getitem__(self, column: str) -> str:
        return self.row[self.columns[column]]

    @property
    def values(self) -> dict[str, str]:
        return dict(zip(self.columns, self.row, strict=True))

    @property
    def at(self) -> datetime:
        return _moment(self["sys_updated_at"])


Caller = dict[str, list[Entry]]
"""A caller's cases: the entries of each, in the file's order."""


@dataclass(frozen=True)
class Excerpt:
    """The rows chosen, in the order of time, those of one minute in the file's order."""

    entries: list[Entry]
    file_rows: int

    def events(self) -> list[dict[str, Any]]:
        """The rows as events. The ids are those that an import of the whole file gives."""
        converter = Converter(load_mapping(MAPPING), FILE)
        events = []
        for entry in self.entries:
            event = converter.convert(Row(entry.number + 1, entry.number, entry.values))
            if isinstance(event, Unusable):
                raise SegueError(f"{FILE}, line {event.line}: {event.reason} at {event.field}: {event.detail}")
            if isinstance(event, dict):
                events.append(event)
        return events

    def expected(self) -> Counts:
        """What the rows imply, counted from them alone."""
        cases = _by_case(self.entries)
        return Counts(
            events=Counter(CHANNELS[entry["contact_type"]] for entry in self.entries),
            customers=len({entry["caller_id"] for entry in self.entries}),
            cases=len(cases),
            handoffs=Counter({"group": sum(_group_changes(case) for case in cases.values())}),
            signals=Counter({
                "missed-sla-or-long-wait": sum(_missed(case) for case in cases.values()),
                "case-reopened": sum(_reopenings(case) for case in cases.values()),
                "repeated-contact": _came_back(self.entries),
            }),
            partly=True,
        )  # fmt: skip


def excerpt() -> Excerpt:
    """Read the log and choose. Always the same rows."""
    callers: dict[str, Caller] = defaultdict(lambda: defaultdict(list))
    rows = 0
    with (
        as_file(files("segue").joinpath("data", "incident_log", FILE)) as path,
        gzip.open(path, "rt", encoding="utf-8", newline="") as text,
    ):
        reader = csv.reader(text)
        columns = {name: at for at, name in enumerate(next(reader))}
        caller, case = columns["caller_id"], columns["number"]
        for rows, row in enumerate(reader, 1):
            callers[row[caller]][row[case]].append(Entry(rows, columns, row))
    callers.pop("?", None)  # nobody knows who that was
    chosen = _chosen([caller_ for caller_ in callers.values() if sum(map(len, caller_.values())) <= LONGEST])
    entries = [entry for caller_ in chosen for case_ in caller_.values() for entry in case_]
    return Excerpt(sorted(entries, key=lambda entry: (entry.at, entry.number)), rows)


def _chosen(callers: list[Caller]) -> list[Caller]:
    """Those with another channel than the telephone, some with a reopened case, then as they come."""
    other = [caller for caller in callers if any(entry["contact_type"] != "Phone" for entry in _all(caller))]
    reopened = (caller for caller in callers if any(entry["reopen_count"] != "0" for entry in _all(caller)))
    chosen: list[Caller] = []
    cases = 0
    for caller in chain(other, islice(filter(_tidy, reopened), REOPENED_CALLERS), callers):
        if cases >= CASES:
            break
        if caller not in chosen and _tidy(caller):
            chosen.append(caller)
            cases += len(caller)
    return chosen


def _tidy(caller: Caller) -> bool:
    """Whether the file's order is that of time, so that the counts below need no theory of late arrivals."""
    for case in caller.values():
        if any(later.at < earlier.at for earlier, later in pairwise(case)):
            return False
    first_seen = sorted(caller.values(), key=lambda case: (case[0].at, case[0].number))
    opened = [_moment(case[0]["opened_at"]) for case in first_seen]
    return opened == sorted(opened)


def _all(caller: Caller) -> Iterable[Entry]:
    return (entry for case in caller.values() for entry in case)


def _by_case(entries: list[Entry]) -> dict[str, list[Entry]]:
    cases: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        cases[entry["number"]].append(entry)
    return cases


def _group_changes(case: list[Entry]) -> int:
    groups = [entry["assignment_group"] for entry in case if entry["assignment_group"] != "?"]
    return sum(before != after for before, after in pairwise(groups))


def _missed(case: list[Entry]) -> bool:
    return any(entry["made_sla"] == "false" for entry in case)


def _reopenings(case: list[Entry]) -> int:
    """How often the desk's count of reopenings rose above what it had been."""
    highest = rises = 0
    for entry in case:
        if int(entry["reopen_count"]) > highest:
            highest, rises = int(entry["reopen_count"]), rises + 1
    return rises


def _came_back(entries: list[Entry]) -> int:
    """Cases opened within a week of the caller's last one, when that was not resolved yet."""
    state: dict[str, str] = {}
    last: dict[str, Entry] = {}
    times = 0
    for entry in entries:
        number, caller = entry["number"], entry["caller_id"]
        if number not in state:
            before, last[caller] = last.get(caller), entry
            if before is not None and state[before["number"]] in UNRESOLVED:
                times += _opened(entry) - _opened(before) <= AGAIN
        if entry["incident_state"] != "-100" or number not in state:
            state[number] = entry["incident_state"]
    return times


def _opened(entry: Entry) -> datetime:
    return _moment(entry["opened_at"])


def _moment(text: str) -> datetime:
    """Read d/m/yyyy HH:MM. By hand, because strptime takes ten times as long and there are 140,000."""
    date, _, time = text.partition(" ")
    day, month, year = date.split("/")
    hour, minute = time.split(":")
    return datetime(int(year), int(month), int(day), int(hour), int(minute), tzinfo=UTC)
