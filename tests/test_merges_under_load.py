"""Customers who turn out to be one person, on a real Kafka and Valkey, while processes die; and who judges that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

import tests.chaos.rows  # noqa: F401  (enters the rows)
from tests.chaos.harness import ROWS, World
from tests.chaos.oracle import Ack, Event, Ledger, Observed, Step
from tests.chaos.oracle_merges import Documents, Persons, judge
from tests.support.kafka_broker import KafkaBroker


@pytest.mark.timeout(400)
def test_pairs_that_merge_while_both_receive_events_and_processes_die_lose_and_double_nothing(
    kafka_broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with World(tmp_path_factory.mktemp("merges"), kafka_broker) as world:
        result = world.run(ROWS["M"], quick=True, customers=60)
    assert result.ok, "\n".join([result.line(), *result.verdict.notes])


# --- the judge alone


def history() -> tuple[Persons, Ledger, Observed, Documents]:
    """Two sides, two events each before they are one person and one each after it, and what came of it."""
    persons, ledger, steps = Persons(), Ledger(), []
    persons.unite("u1", "d1")
    for n, (side, key) in enumerate([("u1", "a"), ("d1", "b"), ("u1", "a"), ("d1", "b"), ("u1", "a"), ("d1", "a")]):
        event = Event(f"e{n}", side, "web", 1000 * (n + 1), 1.0 if n == 3 else None)
        ledger.sent(event)
        ledger.acked(event, Ack("segue.events.web", 0, n, 5000 + n, float(n)))
        if n == 4:
            steps += [Step("b", 3, "absorbed", True), Step("a", 4, "merged", True, "b")]
        revision = {0: 1, 1: 1, 2: 2, 3: 2, 4: 5, 5: 6}[n]
        steps.append(Step(key, revision, event.id))
    line = [{"id": f"e{n}", "event_time_ms": 1000 * (n + 1)} for n in range(6)]
    whole = {
        "customer_key": "a", "revision": 6, "kin": {"absorbed": [{"absorbed": "b"}]}, "channels": {"web": 6},
        "timeline": line, "stream_time_ms": 6000, "sessions": [{}], "identifiers": [{"value": "u1"}, {"value": "d1"}],
    }  # fmt: skip
    stub = {"customer_key": "b", "kin": {"into": {"survivor": "a"}}, "channels": {"web": 2}}
    stats = Counter({"events|web|page.viewed": 6, "fact|customer.created": 2, "fact|customer.merged": 1})
    stats += Counter({"fact|session.opened": 2, "fact|session.merged": 1})
    signals = [{"signal_id": "s", "rule": "poor-survey-answer", "evidence": ["e3"]}]
    part = {"channels": {"web": 3}}
    held = Documents({"a": {"a": part, "b": part}}, {"a": ["s"]})
    seen = Observed(Counter(f"e{n}" for n in range(6)), steps, signals, [], [whole, stub], stats)
    return persons, ledger, seen, held


def test_the_judge_of_merges_finds_nothing_in_a_clean_run() -> None:
    verdict = judge(*history())
    assert verdict.ok, verdict.notes


def _lose_what_came_by_the_stub(seen: Observed, held: Documents) -> None:
    seen.steps.pop()


def _double_what_was_under_way(seen: Observed, held: Documents) -> None:
    seen.steps.append(Step("a", 7, "e3"))


def _fold_nothing_in(seen: Observed, held: Documents) -> None:
    seen.documents[0]["channels"]["web"] = 4


def _leave_the_stub_alone(seen: Observed, held: Documents) -> None:
    del seen.documents[1]["kin"]


def _forget_a_part(seen: Observed, held: Documents) -> None:
    del held.parts["a"]["b"]


def _leave_signals_behind(seen: Observed, held: Documents) -> None:
    held.signals.clear()


def _lose_a_signal(seen: Observed, held: Documents) -> None:
    seen.signals.clear()


def _count_a_session_twice(seen: Observed, held: Documents) -> None:
    seen.stats["fact|session.merged"] = 0


@pytest.mark.parametrize(
    ("damage", "violation"),
    [
        (_lose_what_came_by_the_stub, "lost"),
        (_double_what_was_under_way, "over"),
        (_fold_nothing_in, "lost"),
        (_leave_the_stub_alone, "contexts"),
        (_forget_a_part, "contexts"),
        (_leave_signals_behind, "contexts"),
        (_lose_a_signal, "missing"),
        (_count_a_session_twice, "counters"),
    ],
)
def test_the_judge_of_merges_sees_each_kind_of_damage(
    damage: Callable[[Observed, Documents], None], violation: str
) -> None:
    persons, ledger, seen, held = history()
    damage(seen, held)
    assert judge(persons, ledger, seen, held).violations()[violation] > 0
