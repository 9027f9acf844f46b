"""Does an exact key ever make one customer of two people? The Febrl persons, of whom the truth is known.

    11,000 records of 6,500 people in three sets, up to six per person, with typing errors and gaps

Every record is an event that names its person by what is exactly alike in records of one person if nobody mistyped:
the social security number, the full name with the date of birth, the address with the date of birth. All are given as
verified, so that whatever the rules allow to merge does. They go through the whole embedded stack; who became one
customer is read from `segue.identity`. The sets are independent, so their keys are kept apart.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from bench.counts import Line
from segue.log.port import Output
from segue.log.sqlite import SqliteLog
from segue.topics import IDENTITY, event_topic
from tests.support.stack import EmbeddedStack

DATA = Path(__file__).parents[1] / "tests" / "data" / "identity_febrl"
SETS = {"dataset1": (1000, 500), "dataset2": (5000, 4000), "dataset3": (5000, 2000)}
"""Records and people of each set, as its authors say."""

KEYS = (
    ("number", ("soc_sec_id",)),
    ("name", ("given_name", "surname", "date_of_birth")),
    ("address", ("street_number", "address_1", "postcode", "date_of_birth")),
)
CHUNK = 1000


class Person(NamedTuple):
    """One record: its id, who it is in truth, and its exact keys."""

    record: str
    entity: str
    keys: tuple[str, ...]


class Found(NamedTuple):
    """What became of the records."""

    customers: dict[str, str]
    """Whose each record is in the end."""
    links: int
    merges: list[tuple[str, str]]
    candidates: int
    """Pairs of customers whom one record named and who were not merged."""


class Pairs(NamedTuple):
    """Pairs of records: put together rightly, put together wrongly, of one person in truth."""

    right: int
    wrong: int
    true: int

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.true if self.true else 1.0


def people(name: str) -> Iterator[Person]:
    """The records of a set, in the file's order."""
    with gzip.open(DATA / f"{name}.csv.gz", "rt", newline="") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        for row in rows:
            record = row["rec_id"]
            keys = [
                f"{name}/{kind}/" + "/".join(row[column].strip() for column in columns)
                for kind, columns in KEYS
                if all(row[column].strip() for column in columns)
            ]
            yield Person(f"{name}/{record}", f"{name}/{record.split('-')[1]}", tuple(keys))


def through(stack: EmbeddedStack, records: list[Person]) -> Found:
    """Send every record as an event and read who became whom."""
    for start in range(0, len(records), CHUNK):
        stack.append(_event(each) for each in records[start : start + CHUNK])
    for _ in range(3):  # each hop of a merge is a record of its own
        stack.drain(300)
    log = SqliteLog(stack.settings.data_dir / "log.sqlite")
    try:
        said = [orjson.loads(record.value() or b"{}") for record in log.read(IDENTITY)]
    finally:
        log.close()
    return _told(said)


def _event(person: Person) -> Output:
    identifiers = [{"type": "external_id", "value": key, "level": "verified"} for key in person.keys]
    identifiers.append({"type": "record_id", "value": person.record, "level": "inferred"})
    event = {
        "specversion": "1.0",
        "id": person.record,
        "source": "/febrl",
        "type": "person.recorded",
        "time": "2025-10-09T08:00:00Z",
        "channel": "other",
        "data": {"identifiers": identifiers},
    }
    return Output(event_topic("other"), person.record.encode(), orjson.dumps(event))


def _told(said: Iterable[dict[str, Any]]) -> Found:
    owners: dict[str, str] = {}
    into: dict[str, str] = {}
    links = candidates = 0
    for record in said:
        if record["kind"] == "merge":
            into[record["other_customer_key"]] = record["customer_key"]
        elif record["kind"] == "candidate":
            candidates += 1
        elif record["identifier"]["type"] == "record_id":
            owners[record["identifier"]["value"]] = record["customer_key"]
        else:
            links += 1
    customers = {record: _root(into, key) for record, key in owners.items()}
    return Found(customers, links, sorted(into.items()), candidates)


def _root(into: dict[str, str], key: str) -> str:
    while key in into:
        key = into[key]
    return key


def pairs(records: Iterable[Person], customers: dict[str, str]) -> Pairs:
    """The judgement over all pairs of records."""
    together: dict[str, list[str]] = defaultdict(list)
    same: dict[str, int] = defaultdict(int)
    for person in records:
        together[customers[person.record]].append(person.entity)
        same[person.entity] += 1
    verdicts = [one == other for entities in together.values() for one, other in combinations(entities, 2)]
    return Pairs(sum(verdicts), len(verdicts) - sum(verdicts), sum(n * (n - 1) // 2 for n in same.values()))


def connected(records: Iterable[Person]) -> dict[str, str]:
    """The customer of each record, counted from the file with none of Segue's code: whoever shares a key, directly or
    through others, is one."""
    into: dict[str, str] = {}
    for person in records:
        for key in person.keys:
            one, other = _root(into, person.record), _root(into, key)
            if one != other:
                into[one] = other
    return {person.record: _root(into, person.record) for person in records}


def lines(records: list[Person], found: Found, expected: tuple[int, int]) -> list[Line]:
    """The figures. `expected` are records and people."""
    customers = connected(records)
    counted, judged = pairs(records, customers), pairs(records, found.customers)
    return [
        Line("records", expected[0], len(records), len(found.customers)),
        Line("people", expected[1], None, len({person.entity for person in records})),
        Line("pairs of unlike people put together", 0, counted.wrong, judged.wrong),
        Line("pairs of one person put together", None, counted.right, judged.right),
        Line("customers", None, len(set(customers.values())), len(set(found.customers.values()))),
        Line("exact keys linked", None, len({key for person in records for key in person.keys}), found.links),
        Line("merges", None, None, len(found.merges)),
        Line("candidates", None, None, found.candidates),
    ]
