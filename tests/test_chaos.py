"""A part of the fault suite in a few minutes, and a test of that suite: with a guarantee switched off, it goes red.

The whole of it is `make chaos`; docs/faults.md has its results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tests.chaos.rows  # noqa: F401  (enters the rows)
from segue import faults
from segue.errors import SettingsError
from tests.chaos import report
from tests.chaos.harness import ROWS, Result, World
from tests.chaos.load import Load, Sender, Traffic, encode
from tests.chaos.oracle import Ack, Event, Ledger, Observed, Sighting, Step, Verdict, Watch, judge
from tests.support.kafka_broker import KafkaBroker

pytestmark = pytest.mark.timeout(900)  # a busy machine is waited for


@pytest.fixture(scope="module")
def world(kafka_broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("chaos"), kafka_broker) as world:
        yield world


def told(result: Result) -> str:
    return "\n".join([result.line(), *result.verdict.notes])


@pytest.mark.parametrize("row", ["T1", "T2"])
def test_under_faults_nothing_is_lost_doubled_or_out_of_order(world: World, row: str) -> None:
    result = world.run(ROWS[row], quick=True, replay=True)
    assert result.ok, told(result)


def test_the_row_that_tests_the_judge_is_clean_with_every_guarantee(world: World) -> None:
    result = world.run(ROWS["U"], quick=True)
    assert result.ok, told(result)


@pytest.mark.parametrize("without", ["ids", "silent", "transaction"])
def test_without_a_guarantee_the_judge_reports_a_violation(world: World, without: str) -> None:
    """Without the fence, and without the epoch: tests/test_late_owner.py."""
    result = world.run(ROWS["U"], quick=True, unsafe=without)
    assert "over" in result.verdict.violations(), told(result)


# --- the sender alone


class Report(NamedTuple):
    """A record as its sender's client tells of it, or as a reader finds it."""

    at: int | None
    content: tuple[bytes, bytes]

    def topic(self) -> str:
        return "segue.events.web"

    def partition(self) -> int:
        return 0

    def offset(self) -> int | None:
        return self.at

    def key(self) -> bytes:
        return self.content[0]

    def value(self) -> bytes:
        return self.content[1]

    def timestamp(self) -> tuple[int, int]:
        return 2, 1000


def test_what_was_sent_is_what_stands_in_the_log() -> None:
    """An idempotent producer that sends again after an outage is told "I have it", and not where; or it gives up a
    record that the broker has, or writes it twice."""
    ledger, events = Ledger(), [Event(f"e{n}", "u1", "web", 1000 * n) for n in range(3)]
    sender = Sender("127.0.0.1:1", Traffic(Load(), 1), ledger)
    content = [(b"u1", encode(event)) for event in events]
    for event, offset in zip([*events, events[2]], (7, None, 9, None), strict=True):
        sender.acked(event, Report(offset, content[events.index(event)]))

    ledger.sent(events[0])
    log = [Report(n, content[which]) for n, which in ((7, 0), (8, 1), (9, 2), (12, 2), (13, 0))]
    sender.find(lambda topic: log)

    offsets = {i: [ack.offset for ack in acks] for i, acks in ledger.acks.items()}
    assert offsets == {"e0": [7, 13], "e1": [8], "e2": [9, 12]}
    assert ledger.untold == 1
    with pytest.raises(AssertionError, match="lost by the broker"):
        sender.find(lambda topic: log[1:])
    sender.acked(events[0], Report(None, content[0]))
    with pytest.raises(AssertionError, match="lost by the broker"):
        sender.find(lambda topic: log)


# --- the results


def test_a_row_that_ran_again_replaces_its_line_unless_it_says_less(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}{report.END}after\n")

    def lines() -> list[str]:
        report_lines = page.read_text().splitlines()
        assert (report_lines[0], report_lines[-1]) == ("before", "after")
        return [" ".join(line.split("|")[1:3]).strip() for line in report_lines if line.startswith("| F")]

    for row, size, notes in (("F10", "quick, 1", []), ("F2", "full, 2", []), ("F2", "quick, 3", [])):
        report.enter(page, Result(ROWS[row], Verdict(notes=notes)), size)
    assert [line.split() for line in lines()] == [["F2", "full,", "2"], ["F10", "quick,", "1"]]
    report.enter(page, Result(ROWS["F2"], Verdict(notes=["slow"])), "quick, 4")
    assert lines()[0].split() == ["F2", "quick,", "4"]
    assert "RED: slow" in page.read_text()
    report.enter(page, Result(ROWS["F2"], Verdict()), "full, 5, 3 brokers")
    report.enter(page, Result(ROWS["F2"], Verdict()), "full, 6")
    assert [line.split("  ")[-1].strip() for line in lines()] == ["full, 6", "full, 5, 3 brokers", "quick, 1"]


# --- the judge alone


def history(*, customers: int = 2, each: int = 4) -> tuple[Ledger, Observed]:
    """A clean run: what was sent, and what came of it."""
    ledger, steps, documents, stats = Ledger(), [], [], Counter[str]()
    for c in range(customers):
        events = [Event(f"e{c}.{n}", f"u{c}", "web", 1000 * n, 1.0 if n == 0 else None) for n in range(each)]
        for n, event in enumerate(events):
            ledger.sent(event)
            ledger.acked(event, Ack("segue.events.web", 0, c * each + n, 5000 + n, float(n)))
            steps.append(Step(f"key{c}", n + 1, event.id))
        line = [{"id": event.id, "event_time_ms": event.time_ms} for event in events]
        documents.append(
            {"identifiers": [{"value": f"u{c}"}], "revision": each, "channels": {"web": each}, "timeline": line,
             "stream_time_ms": events[-1].time_ms, "sessions": [{}]}
        )  # fmt: skip
    stats.update({"events|web|page.viewed": customers * each, "fact|customer.created": customers})
    stats.update({"fact|session.opened": customers})
    signals = [{"signal_id": f"s{c}", "rule": "poor-survey-answer", "evidence": [f"e{c}.0"]} for c in range(customers)]
    interactions = Counter(step.event_id for step in steps)
    return ledger, Observed(interactions, steps, signals, [], documents, stats)


def test_the_judge_finds_nothing_in_a_clean_run() -> None:
    assert judge(*history()).ok


def _lose_a_step(ledger: Ledger, seen: Observed) -> None:
    seen.steps.pop()


def _lose_an_interaction(ledger: Ledger, seen: Observed) -> None:
    del seen.interactions["e0.1"]


def _pass_an_event_on_twice(ledger: Ledger, seen: Observed) -> None:
    seen.interactions["e0.1"] += 1
    ledger.sent(ledger.events["e0.1"])  # a second try of which the broker has nothing


def _repeat_a_step(ledger: Ledger, seen: Observed) -> None:
    seen.steps.append(seen.steps[-1])


def _count_twice(ledger: Ledger, seen: Observed) -> None:
    seen.documents[0]["channels"]["web"] += 1


def _swap_two(ledger: Ledger, seen: Observed) -> None:
    first, second = seen.steps[0], seen.steps[1]
    seen.steps[:2] = [first._replace(event_id=second.event_id), second._replace(event_id=first.event_id)]


def _lose_a_signal(ledger: Ledger, seen: Observed) -> None:
    seen.signals.pop()


def _invent_a_signal(ledger: Ledger, seen: Observed) -> None:
    seen.signals.append({"signal_id": "s9", "rule": "poor-survey-answer", "evidence": ["e0.3"]})


def _repeat_a_signal(ledger: Ledger, seen: Observed) -> None:
    seen.signals.append(seen.signals[0])


def _miscount(ledger: Ledger, seen: Observed) -> None:
    seen.stats["events|web|page.viewed"] += 1


def _invent_a_session(ledger: Ledger, seen: Observed) -> None:
    seen.documents[0]["sessions"].append({})


@pytest.mark.parametrize(
    ("damage", "violation"),
    [
        (_lose_a_step, "lost"),
        (_lose_an_interaction, "lost"),
        (_pass_an_event_on_twice, "over"),
        (_repeat_a_step, "over"),
        (_count_twice, "over"),
        (_swap_two, "order"),
        (_lose_a_signal, "missing"),
        (_invent_a_signal, "unexpected"),
        (_repeat_a_signal, "repeated"),
        (_miscount, "counters"),
        (_invent_a_session, "contexts"),
    ],
)
def test_the_judge_sees_each_kind_of_damage(damage: Any, violation: str) -> None:
    ledger, seen = history()
    damage(ledger, seen)
    assert judge(ledger, seen).violations()[violation] > 0


def test_a_retry_outside_the_window_may_complete_its_signal_again() -> None:
    ledger, seen = history(customers=1, each=600)
    event = ledger.events["e0.0"]
    ledger.sent(event)
    ledger.acked(event, Ack("segue.events.web", 0, 10_000, 9000, 9.0))
    seen.steps.append(Step("key0", 601, "e0.0"))
    seen.signals.append(seen.signals[0])
    assert "repeated" not in judge(ledger, seen).violations()
    seen.signals.append(seen.signals[0])
    assert judge(ledger, seen).violations()["repeated"] == 1


def test_a_reader_that_sees_a_revision_fall_is_a_regression_within_an_epoch_and_a_rewind_with_a_new_one() -> None:
    watch = Watch()
    for epoch, revision in ((1, 5), (1, 7), (2, 6), (2, 8), (2, 7)):
        watch.add("u1", Sighting(0.0, epoch, revision))
    assert (len(watch.rewinds), len(watch.regressions)) == (1, 1)


# --- the fail points


def test_a_fail_point_that_does_not_exist_is_refused_by_name() -> None:
    for wrong in ("after_lunch:1", "after_read", "after_read:x", "after_read:1:explode"):
        with pytest.raises(SettingsError, match="SEGUE_TEST_FAILPOINT"):
            faults.failpoint(wrong)
