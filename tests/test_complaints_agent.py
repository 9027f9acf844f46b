"""The agents in Faust: what is a burst, and that kill -9 neither loses a signal nor makes one up."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.agents import burst
from segue.agents.burst import Burst, BurstState, Policy, Seen, observe
from segue.agents.worker import EXIT_FAILED, app
from segue.core import ids
from segue.core.interaction import Entry, Fact, Step, StepView
from segue.core.rules import Signal
from segue.errors import SettingsError
from segue.log.kafka import KafkaLog
from segue.log.port import Output, Record
from segue.runtime import rule_book
from segue.settings import Settings
from segue.topics import DEAD_LETTERS, INTERACTIONS, JOURNEY_STEPS, SIGNALS, Topic
from streams.complaints import NAME, POLICY, Complaint, complaint_of, poor_limits, signal_of
from tests.behaviour.seats import Seat

ROOT = Path(__file__).parents[1]
MINUTE = 60_000
HALF_HOUR = 30 * MINUTE
# A full half hour of the clock, so that offsets from it read as times within a period.
T0 = 1_760_000_400_000 - 1_760_000_400_000 % HALF_HOUR
LIMITS = poor_limits(rule_book(None))


def told(events: list[tuple[int, str]], policy: Policy = POLICY) -> list[Burst]:
    """Every burst that events in this order of arrival give."""
    state = BurstState()
    return [found for at, event_id in events for found in observe(state, at, event_id, policy)]


def at_minutes(*minutes: float) -> list[tuple[int, str]]:
    return [(T0 + round(minute * MINUTE), f"e{number}") for number, minute in enumerate(minutes)]


# --- bursts


def test_the_fifth_event_exactly_ten_minutes_after_the_first_is_a_burst() -> None:
    (found,) = told(at_minutes(0, 1, 2, 3, 10))
    assert [event.event_id for event in found.events] == ["e0", "e1", "e2", "e3", "e4"]
    assert found.period_ms == T0


def test_a_millisecond_later_it_is_none() -> None:
    assert told([*at_minutes(0, 1, 2, 3), (T0 + 10 * MINUTE + 1, "e4")]) == []


def test_the_same_event_again_does_not_count_again() -> None:
    assert told([*at_minutes(0, 1, 2, 3), (T0, "e0"), (T0 + 4 * MINUTE, "e1")]) == []


def test_a_period_is_told_once_however_long_the_storm() -> None:
    assert len(told(at_minutes(*range(20)))) == 1


def test_a_storm_that_goes_on_is_told_again_when_a_burst_begins_in_the_next_period() -> None:
    found = told(at_minutes(*range(25, 35)))
    assert [burst.period_ms - T0 for burst in found] == [0, HALF_HOUR]
    assert found[1].events[0].at_ms == T0 + 30 * MINUTE


def test_a_burst_over_the_half_hour_belongs_to_the_period_in_which_it_begins() -> None:
    (found,) = told(at_minutes(26, 27, 28, 31, 32))
    assert found.period_ms == T0


def test_events_far_behind_the_newest_are_ignored_for_they_may_have_counted_already() -> None:
    policy = Policy(count=2, within_ms=MINUTE, period_ms=HALF_HOUR, keep_ms=60 * MINUTE)
    assert told(at_minutes(0, 61, 0.5), policy) == []
    assert len(told(at_minutes(0, 60, 0.5), policy)) == 1


def test_the_state_stays_small_in_a_storm_without_end() -> None:
    state = BurstState()
    for number in range(3000):
        observe(state, T0 + number * 1000, f"e{number}", POLICY)
    assert len(state.events) == POLICY.keep_events
    assert len(state.told) <= 2
    assert burst.decode(burst.encode(state)) == state


def expected_periods(events: set[tuple[int, str]], policy: Policy = POLICY) -> set[int]:
    """The definition, by brute force: periods in which a run of enough events within the time begins."""
    ordered = sorted(events)
    runs = zip(ordered, ordered[policy.count - 1 :], strict=False)
    return {
        first[0] // policy.period_ms * policy.period_ms
        for first, last in runs
        if last[0] - first[0] <= policy.within_ms
    }


ARRIVALS = st.lists(st.integers(0, 300), max_size=60).map(
    lambda halves: [(T0 + half * MINUTE // 2, f"e{half}") for half in halves]
)


@settings(deadline=None)
@given(ARRIVALS, st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_tells_the_same_periods_once_each(
    arrivals: list[tuple[int, str]], chance: random.Random
) -> None:
    again = arrivals + [chance.choice(arrivals) for _ in arrivals]
    chance.shuffle(again)
    for order in (arrivals, again):
        periods = [found.period_ms for found in told(order)]
        assert len(periods) == len(set(periods))
        assert set(periods) == expected_periods(set(arrivals))


@settings(deadline=None)
@given(ARRIVALS, st.integers(0, 60))
def test_a_state_written_and_read_goes_on_as_before(arrivals: list[tuple[int, str]], at: int) -> None:
    state, found = BurstState(), []
    for number, (at_ms, event_id) in enumerate(arrivals):
        if number == at:
            state = burst.decode(burst.encode(state))
        found += observe(state, at_ms, event_id, POLICY)
    assert found == told(arrivals)


@settings(deadline=None)
@given(ARRIVALS)
def test_a_burst_names_its_events_oldest_first_and_all_within_the_time(arrivals: list[tuple[int, str]]) -> None:
    for found in told(arrivals):
        assert len(found.events) >= POLICY.count
        assert all(before < after for before, after in pairwise(found.events))
        assert found.events[-1].at_ms - found.events[0].at_ms <= POLICY.within_ms
        assert found.period_ms <= found.events[0].at_ms < found.period_ms + POLICY.period_ms


# --- complaints


def step(event_id: str, at: int, *facts: Fact, kind: str = "page.viewed", place: str | None = "checkout") -> StepView:
    made = Entry(event_id, kind, "web", T0 + at, T0 + at + 5, touchpoint=place)
    return StepView(f"customer-of-{event_id}", 1, made, facts)


def answered(metric: str, score: float) -> Fact:
    return Fact("survey.answered", after=metric, value=score)


def test_a_complaint_counts_where_it_was_made() -> None:
    assert complaint_of(step("e", 7, kind="complaint.made"), LIMITS) == Complaint("web/checkout", "e", T0 + 7)
    assert complaint_of(step("e", 7, kind="complaint.made", place=None), ()) == Complaint("web/-", "e", T0 + 7)


@pytest.mark.parametrize(
    ("fact", "poor"),
    [
        (answered("nps", 6), True), (answered("nps", 6.1), False),
        (answered("csat", 2), True), (answered("ces", 2.1), False),
        (Fact("wait", value=1), False),
    ],
)  # fmt: skip
def test_an_answer_at_or_below_the_limits_of_the_rule_file_is_a_complaint(fact: Fact, poor: bool) -> None:
    assert (complaint_of(step("e", 0, fact), LIMITS) is not None) is poor


def test_a_clock_that_runs_ahead_does_not_hide_the_others() -> None:
    ahead = step("e", 0, kind="complaint.made")
    ahead.entry.event_time_ms += 365 * 86_400_000
    assert complaint_of(ahead, LIMITS) == Complaint("web/checkout", "e", T0 + 5)


def test_a_signal_says_in_two_languages_how_many_within_what_time_and_where() -> None:
    found = Burst(T0, tuple(Seen(T0 + n * MINUTE, f"e{n}") for n in range(6)))
    made = signal_of("chat/售后客服", found)
    assert made.subject == "touchpoint:chat/售后客服"
    assert made.reason == {
        "en": "6 complaints within 5 min at chat/售后客服.",
        "zh": "chat/售后客服 在 5 分钟内收到 6 次投诉。",
    }
    assert (made.rule, made.rule_version, made.evidence) == ("complaint-burst", 1, tuple(f"e{n}" for n in range(6)))
    assert (made.first_seen_ms, made.last_seen_ms) == (T0, T0 + 5 * MINUTE)


# --- the app


def test_without_kafka_there_is_no_app_and_the_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="SEGUE_KAFKA"):
        app("agent", Settings())


def test_security_options_are_carried_over_or_refused_by_name() -> None:
    sasl = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "p"}
    credentials = app("agent", Settings(kafka="a:1,b:2", kafka_options=sasl)).conf.broker_credentials
    assert (credentials.username, credentials.password, credentials.protocol.value) == ("u", "p", "SASL_SSL")
    with pytest.raises(SettingsError, match=r"sasl\.oauthbearer\.method"):
        app("agent", Settings(kafka="a:1", kafka_options={"sasl.oauthbearer.method": "oidc"}))


# --- on a real Kafka


@pytest.fixture(scope="module")
def log(kafka_bootstrap: str) -> Iterator[KafkaLog]:
    """Our topics, with as many partitions as another test may have given them."""
    found = KafkaLog(kafka_bootstrap)
    names = (INTERACTIONS, JOURNEY_STEPS, SIGNALS, DEAD_LETTERS)
    found.create_topics([Topic(name, found.partitions(name) or 2, {}) for name in names])
    yield found
    found.close()


@contextmanager
def running(log: KafkaLog, bootstrap: str, *command: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[bytes]]:
    """An agent in a process of its own, under one name over all its restarts."""
    environment = {
        **os.environ,
        "SEGUE_KAFKA": bootstrap,
        "SEGUE_PARTITIONS": str(log.partitions(JOURNEY_STEPS)),
        "SEGUE_INSTANCE": "test",
        "SEGUE_LOG_LEVEL": os.environ.get("LL", "warning"),
        "PYTHONPATH": str(ROOT),
    }
    with subprocess.Popen([sys.executable, "-m", *command], cwd=cwd, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def encoded(found: StepView) -> Output:
    entry = msgspec.Raw(msgspec.json.encode(found.entry))
    key = found.customer_key
    return Output(JOURNEY_STEPS, key.encode(), msgspec.json.encode(Step(key, found.revision, entry, found.facts)))


def in_transactions(log: KafkaLog, name: str, outputs: list[Output], size: int) -> None:
    """Write as the context processor does: committed batches, whose markers take an offset each."""
    with Seat(log.join(name, [INTERACTIONS], name)) as writer:
        writer.until(lambda: writer.owned)
        (tp, *_) = sorted(writer.owned)
        for at in range(0, len(outputs), size):
            writer.commit(*outputs[at : at + size], up_to={tp: 0})


def aborted(bootstrap: str, name: str, outputs: list[Output]) -> None:
    """Steps that reach the log and whose transaction is then aborted."""
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": name})
    producer.init_transactions(15)
    producer.begin_transaction()
    for output in outputs:
        producer.produce(output.topic, output.value, output.key)
    producer.flush(15)
    producer.abort_transaction(15)


def ids_told(found: list[Record], place: str) -> set[str]:
    """The distinct ids of signals about touchpoints that begin so; other tests may write signals too."""
    decoded = [msgspec.json.decode(record.value() or b"", type=Signal) for record in found]
    return {each.signal_id for each in decoded if each.subject.startswith(f"touchpoint:web/{place}")}


def storms(place: str, chance: random.Random) -> list[StepView]:
    """Half a day at three touchpoints: complaints in storms and alone, poor and good answers, page views."""
    steps = []
    for number in range(900):
        hour = chance.randrange(12) * 60 * MINUTE
        near = chance.randrange(8 * MINUTE) if chance.random() < 0.5 else chance.randrange(60 * MINUTE)
        kind, facts = chance.choice(
            [
                ("complaint.made", ()),
                ("survey.answered", (answered("nps", chance.randrange(11)),)),
                ("page.viewed", ()),
                ("page.viewed", ()),
            ]
        )
        where = f"{place}-{chance.choice(['checkout', '售后客服', 'returns'])}"
        steps.append(step(f"{place}-{number}", hour + near, *facts, kind=kind, place=where))
    return sorted(steps, key=lambda found: found.entry.event_time_ms)


def expected_ids(steps: list[StepView]) -> set[str]:
    """The ids, computed from the steps alone: nothing here is the agent's code but the name of the rule."""
    complaints: dict[str, set[tuple[int, str]]] = {}
    for found in steps:
        poor = any((fact.value or 0) <= 6 for fact in found.facts)
        if poor or found.entry.type == "complaint.made":
            at = (found.entry.event_time_ms, found.entry.id)
            complaints.setdefault(f"web/{found.entry.touchpoint}", set()).add(at)
    return {
        ids.derive(ids.SIGNAL, f"complaint-burst/1/{place}/{period}")
        for place, events in complaints.items()
        for period in expected_periods(events)
    }


def test_kill_9_in_the_middle_neither_loses_nor_adds_a_signal(log: KafkaLog, kafka_bootstrap: str, unique: str) -> None:
    chance = random.Random(7)
    steps = storms(unique, chance)
    expected, half = expected_ids(steps), expected_ids(steps[:450])
    assert 10 < len(half) < len(expected)
    records = [encoded(found) for found in steps]
    again = chance.sample(records, 60)
    never = [encoded(step(f"never-{n}", n * 1000, kind="complaint.made", place=f"{unique}-never")) for n in range(5)]
    unreadable = Output(JOURNEY_STEPS, unique.encode(), b"{not a step")
    with Seat(log.join(f"{unique}.reader", [SIGNALS], unique)) as reader:
        in_transactions(log, f"{unique}-1", [unreadable, *records[:450]], 40)
        aborted(kafka_bootstrap, unique, never)
        with running(log, kafka_bootstrap, "streams.complaints") as agent:
            reader.until(lambda: len(ids_told(reader.records, unique)) > len(half) // 3, 60)
            agent.send_signal(signal.SIGKILL)
            agent.wait()
        in_transactions(log, f"{unique}-2", [*again, *records[450:], *again], 40)
        with running(log, kafka_bootstrap, "streams.complaints") as agent:
            reader.until(lambda: ids_told(reader.records, unique) >= expected, 60)
            up_to_date(log, kafka_bootstrap, reader)
            assert ids_told(reader.records, unique) == expected
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(30) == 0
    dead = [record for record in log.read(DEAD_LETTERS) if record.key() == unique.encode()]
    assert {record.value() for record in dead} == {b"{not a step"}
    assert dict(dead[0].headers() or ())["segue.err.stage"] == NAME.encode()


def up_to_date(log: KafkaLog, bootstrap: str, reader: Seat) -> None:
    """Wait until the agent has committed every step there is, transaction markers and all."""
    group = Consumer({"bootstrap.servers": bootstrap, "group.id": NAME})
    try:
        places = [TopicPartition(JOURNEY_STEPS, p) for p in range(log.partitions(JOURNEY_STEPS))]
        ends = {p.partition: group.get_watermark_offsets(p, 10)[1] for p in places}

        def lag() -> int:
            # The last offset of a partition is a marker's, which no consumer is given.
            return max(ends[p.partition] - 1 - max(p.offset, 0) for p in group.committed(places, 10))

        reader.until(lambda: lag() <= 0, 30)
    finally:
        group.close()


def snippet() -> str:
    """The agent of docs/agents.md."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(), re.S)
    assert found is not None
    return found[1]


def test_the_documented_agent_is_six_lines_and_works(
    log: KafkaLog, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    code = snippet()
    assert len([line for line in code.splitlines() if line and "import" not in line]) == 6
    (tmp_path / "refunds.py").write_text(code.replace('"refunds"', f'"{unique}-refunds"'))
    log.append([encoded(step(unique, 0, kind="refund.requested"))] * 2)

    def signals_of(rule: str) -> set[str]:
        found = [msgspec.json.decode(record.value() or b"", type=Signal) for record in reader.records]
        return {s.signal_id for s in found if s.rule == rule and s.evidence == (unique,)}

    with (
        Seat(log.join(f"{unique}.reader", [SIGNALS], unique)) as reader,
        running(log, kafka_bootstrap, "faust", "-A", "refunds", "worker", "-l", "warn", "--without-web", cwd=tmp_path),
    ):
        reader.until(lambda: signals_of("refund-requested"), 60)
        # Twice in the log, one id: at least once, and the repetition collapses.
        reader.until(lambda: sum(b"refund-requested" in (r.value() or b"") for r in reader.records) >= 2)
        assert len(signals_of("refund-requested")) == 1


FAILING = """
from segue.agents import worker

app = worker.app("{name}")


@app.agent(app.topic("segue.journey-steps", value_type=bytes, value_serializer="raw"))
async def fail(steps):
    async for step in steps:
        if b"{name}" in step:
            raise RuntimeError("a bug")
"""


def test_an_exception_ends_the_process_and_the_restarted_one_reads_the_record_again(
    log: KafkaLog, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    (tmp_path / "failing.py").write_text(FAILING.format(name=unique))
    log.append([encoded(step(unique, 0, kind="refund.requested"))])
    for _ in ("the first time", "after a restart"):
        with running(log, kafka_bootstrap, "faust", "-A", "failing", "worker", "-l", "error", cwd=tmp_path) as agent:
            assert agent.wait(60) == EXIT_FAILED
