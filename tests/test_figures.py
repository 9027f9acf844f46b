"""The figures on a slice of the incident log: every count of Segue's beside the oracle's, which shares no code."""

from __future__ import annotations

import csv
import gzip
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from bench import febrl, oracle_incident_log, snowplow_web
from bench.counts import Line, compare, of_incident_log, of_sf311, of_stats
from segue.cli.stats import fetch, tables
from segue.client import Client
from segue.importer.loading import load
from segue.importer.run import Deliveries, run_import
from tests.support.stack import ApiServer, EmbeddedStack

DATA = Path(__file__).parent / "data"
INCIDENT_LOG = Path(str(files("segue").joinpath("data/incident_log/incident_event_log.csv.gz")))
SF311 = DATA / "sf311" / "sf311_service_requests.csv.gz"
CASES = 400


def imported(stack: EmbeddedStack, path: Path, mapping: str) -> dict[str, Any]:
    """The stats after an import through the API, of which no row was refused."""
    deliveries = Deliveries()
    with ApiServer(stack.settings) as api:
        with Client(url=api.ready().url, on_delivery=deliveries.report) as client:
            summary = run_import(client, deliveries, path, load(mapping))
        assert (summary.sent, summary.refused, summary.stopped) == (summary.rows, {}, None)
        stack.drain(60)
        return fetch(api.url)


def as_text(stats: dict[str, Any]) -> str:
    """What `segue stats` prints."""
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables(stats):
        console.print(table)
    return console.export_text()


def assert_all_equal(lines: list[Line]) -> None:
    assert [line for line in lines if not line.right] == []


def test_every_count_of_a_slice_of_the_incident_log_is_the_oracles(tmp_path: Path) -> None:
    rows = oracle_incident_log.read(INCIDENT_LOG, CASES)
    path = tmp_path / "slice.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with EmbeddedStack(tmp_path / "stack") as stack:
        found = imported(stack, path, "incident_log")
    oracle = oracle_incident_log.count(rows)
    assert oracle["cases"] == CASES
    assert {"handoffs.group", "sla.missed", "cases.reopened", "contacts.repeated"} <= oracle.keys()  # a slice with all
    assert_all_equal(compare({}, oracle, of_stats(found), but="touchpoint."))
    shown = as_text(found)
    for name in (
        "events",
        "customers",
        "sessions",
        "events.type.case.closed",
        "handoffs.group",
        "signals.case-reopened",
    ):
        assert f"{oracle[name]:,}" in shown


def test_a_thousand_service_requests_come_out_by_source_and_status(tmp_path: Path) -> None:
    with gzip.open(SF311, "rt", newline="") as whole:
        rows = [row for row, _ in zip(csv.DictReader(whole), range(1000), strict=False)]
    path = tmp_path / "slice.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    given: dict[str, Any] = {"rows": 1000, "source": {}, "status": {}}
    for column in ("source", "status"):
        for row in rows:
            given[column][row[column]] = given[column].get(row[column], 0) + 1
    with EmbeddedStack(tmp_path / "stack") as stack:
        found = imported(stack, path, "sf311")
    assert_all_equal(compare(of_sf311(given), None, of_stats(found)))


def test_the_oracle_reproduces_every_reference_number_of_the_incident_log() -> None:
    reference = of_incident_log(orjson.loads((DATA / "reference_numbers.json").read_bytes())["incident_log"])
    oracle = oracle_incident_log.count(oracle_incident_log.read(INCIDENT_LOG))
    assert len(reference) == 13
    assert {name: oracle[name] for name in reference} == reference


def test_exact_keys_put_no_two_people_together_and_all_records_that_share_one(tmp_path: Path) -> None:
    everybody = list(febrl.people("dataset3"))
    some = set(sorted({person.entity for person in everybody})[:400])
    records = [person for person in everybody if person.entity in some]
    with EmbeddedStack(tmp_path, event_partitions=1) as stack:
        found = febrl.through(stack, records)
    assert_all_equal(febrl.lines(records, found, (len(records), 400)))
    assert found.merges  # some records have nothing in common but a third


def test_a_record_put_with_somebody_else_and_one_left_alone_are_both_seen() -> None:
    people = [febrl.Person(f"r{n}", entity, (f"k{entity}",)) for n, entity in enumerate("aab")]
    judged = febrl.pairs(people, {"r0": "1", "r1": "2", "r2": "2"})
    assert (judged.right, judged.wrong, judged.true) == (0, 1, 1)
    found = febrl.Found({"r0": "1", "r1": "2", "r2": "2"}, 2, [], 0)
    wrong = [line.name for line in febrl.lines(people, found, (3, 2)) if not line.right]
    assert wrong == ["pairs of unlike people put together", "pairs of one person put together"]
    assert len(set(febrl.connected(people).values())) == 2


def test_a_web_trackers_events_become_the_sessions_users_and_page_views_of_its_own_model(tmp_path: Path) -> None:
    truth = snowplow_web.expected()
    assert (len(truth.sessions), truth.users, truth.page_views, len(truth.quarantined)) == (18, 11, 43, 1)
    assert len(snowplow_web.rows()) == 160
    with snowplow_web.stack(tmp_path) as stack:
        snowplow_web.through(stack, snowplow_web.EVENTS)
        found, stats = snowplow_web.read(stack)
        assert found == truth
        assert_all_equal(snowplow_web.lines(truth, found, stats))
        snowplow_web.replayed(stack)
        assert snowplow_web.read(stack)[0] == truth


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_web_trackers_events_in_any_order_within_the_grace_become_the_same(tmp_path: Path, seed: int) -> None:
    truth, path = snowplow_web.expected(), tmp_path / "shuffled.csv"
    with snowplow_web.stack(tmp_path / "stack") as stack:
        snowplow_web.shuffled(path, stack.settings.policy.grace_ms, seed)
        snowplow_web.through(stack, path, in_file_order=True)
        assert_all_equal(snowplow_web.lines(truth, *snowplow_web.read(stack)))


@pytest.mark.parametrize(
    ("reference", "oracle", "found", "differing"),
    [
        ({"cases": 2}, {"cases": 2}, {"cases": 2}, []),
        ({"cases": 2}, {"cases": 2}, {"cases": 3}, ["cases"]),
        ({"cases": 3}, {"cases": 2}, {"cases": 2}, ["cases"]),
        ({}, {"cases": 2}, {}, ["cases"]),
        ({}, {"cases": 2}, {"cases": 2, "signals.odd": 1}, ["signals.odd"]),
        ({"cases": 2}, None, {"cases": 2, "signals.odd": 1}, ["signals.odd"]),
        ({}, {}, {"rejected": 1, "late": 0}, ["rejected"]),
    ],
)
def test_a_count_that_differs_from_either_expectation_is_marked_also_one_nobody_expects(
    reference: dict[str, int], oracle: dict[str, int] | None, found: dict[str, int], differing: list[str]
) -> None:
    assert [line.name for line in compare(reference, oracle, found) if not line.right] == differing
