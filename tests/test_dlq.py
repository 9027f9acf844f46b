"""`segue dlq`: what it shows, what it sends again, and that a replay ends in the customer's context exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

import streams.context
from segue import runtime
from segue.core.event import Rejected
from segue.core.rules import RuleBook
from segue.deadletters import Action, Letter, dead_letter, read
from segue.letterbox import Case, Choice, look, replay
from segue.log.port import Headers, Log, Output
from segue.log.sqlite import Row, SqliteLog
from segue.settings import Settings
from segue.store.connect import layout
from segue.store.keys import Layout
from segue.store.reader import Reader
from segue.topics import DEAD_LETTERS, INTERACTIONS, JOURNEY_STEPS, SIGNALS, all_topics, event_topic
from tests.support.contexts import contexts
from tests.support.processes import Processes, environment
from tests.support.stack import EmbeddedStack, eventually
from tests.test_dead_letters import KEY, good
from tests.test_dead_letters import settings as either_log  # noqa: F401
from tests.test_engine import interactions

SURVEY, WEB, CHAT = (event_topic(channel) for channel in ("survey", "web", "chat"))
POOR = good("poor", channel="survey", type="survey.answered") | {
    "data": {"identifiers": [{"type": "user_id", "value": "u1"}], "survey": {"metric": "csat", "score": 9}}
}
"""A CSAT of 9 does not exist."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[EmbeddedStack]:
    with EmbeddedStack(tmp_path) as stack:
        yield stack


@pytest.fixture
def log(stack: EmbeddedStack) -> Iterator[Log]:
    log = SqliteLog(stack.settings.data_dir / "log.sqlite")
    yield log
    log.close()


def dlq(settings: Settings, *arguments: str, exit_code: int = 0) -> str:
    """Run the command as an operator does. Returns what it wrote to standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "segue", "dlq", *arguments],
        env=environment(settings), check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout if exit_code < 2 else done.stderr


def cases(log: Log) -> dict[str, Case]:
    return {case.letter.id: case for case in look(log).cases}


def everything(log: Log) -> list[Case]:
    return look(log, lambda _: True).cases


def contacts(stack: EmbeddedStack, identifier: str = "u1") -> list[str]:
    """The event ids on a customer's timeline."""
    with redis.Redis.from_url(stack.valkey.url) as client:
        reader = Reader(client)
        key = reader.find("user_id", identifier)
        raw = None if key is None else reader.context(key)
    return [] if raw is None else [entry["id"] for entry in orjson.loads(raw)["timeline"]]


def put_away(stack: EmbeddedStack, *outputs: Output) -> None:
    stack.append(outputs)
    stack.drain()


# --- what lies there


def test_the_list_says_what_lies_there_and_nothing_of_what_it_holds(stack: EmbeddedStack, log: Log) -> None:
    put_away(
        stack,
        Output(WEB, b"user_id:lin@example.com", b'{"lin@example.com', 0),
        Output(CHAT, None, orjson.dumps(good("x", channel="chat")), 1),
        Output(WEB, KEY, b"\xff lin@example.com", 1),
    )
    text = dlq(stack.settings, "ls")
    for expected in (
        f"{WEB}-0-0",
        f"{CHAT}-1-0",
        f"{WEB}-1-0",
        "not_json",
        "null_key",
        "not_utf8",
        "open",
        "3 letters",
    ):
        assert expected in text
    listed = dlq(stack.settings, "ls", "--json")
    assert {each["id"]: (each["reason"], each["state"]) for each in json.loads(listed)} == {
        f"{WEB}-0-0": ("not_json", "open"), f"{CHAT}-1-0": ("null_key", "open"), f"{WEB}-1-0": ("not_utf8", "open"),
    }  # fmt: skip
    assert "lin@" not in text + listed


def test_the_list_can_be_narrowed_down(stack: EmbeddedStack) -> None:
    put_away(stack, *(Output(WEB, KEY, b"{cut") for _ in range(3)), Output(CHAT, KEY, b"\xff"))

    def listed(*arguments: str) -> list[str]:
        return [each["reason"] for each in json.loads(dlq(stack.settings, "ls", "--json", *arguments))]

    assert listed("--reason", "not_utf8") == ["not_utf8"]
    assert listed("--channel", "web") == ["not_json"] * 3
    assert listed("--topic", CHAT) == ["not_utf8"]
    assert listed("--limit", "2", "--channel", "web") == ["not_json"] * 2
    assert sorted(listed("--since", "1h")) == ["not_json"] * 3 + ["not_utf8"]
    assert listed("--since", "2999-01-01T00:00:00Z") == []
    assert "2 of 3 shown" in dlq(stack.settings, "ls", "--channel", "web", "--limit", "2")
    for wrong in (("--since", "yesterday"), ("--since", "2026-01-05T09:00:00"), ("--channel", "fax")):
        assert wrong[0] in dlq(stack.settings, "ls", *wrong, exit_code=2)


def test_a_letter_is_shown_whole_and_raw_is_byte_for_byte(stack: EmbeddedStack) -> None:
    value = b'{"text": "\xe4\xbd\xa0\xe5\xa5\xbd \x1b[2J", "cut'
    binary = bytes(range(256))
    put_away(
        stack, Output(WEB, KEY, value, 0, [("sender", b"shop")]), Output(WEB, KEY, binary, 0), Output(WEB, KEY, None, 0)
    )
    shown = dlq(stack.settings, "show", f"{WEB}-0-0")
    for expected in ("not_json", "to mend", "sender: shop", "user_id:u1", "你好"):
        assert expected in shown
    assert "\x1b" not in shown
    assert "fc fd fe ff" in dlq(stack.settings, "show", f"{WEB}-0-1")
    assert "tombstone" in dlq(stack.settings, "show", f"{WEB}-0-2")
    for at, expected in ((0, value), (1, binary), (2, b"")):
        command = [sys.executable, "-m", "segue", "dlq", "show", f"{WEB}-0-{at}", "--raw"]
        done = subprocess.run(command, env=environment(stack.settings), check=True, capture_output=True)
        assert done.stdout == expected
    assert f"{WEB}-7-7" in dlq(stack.settings, "show", f"{WEB}-7-7", exit_code=2)


def test_a_letter_that_a_crash_doubled_is_one_and_what_is_none_is_counted_apart(stack: EmbeddedStack, log: Log) -> None:
    letter = dead_letter(Row((WEB, 0), 5, 0, KEY, b"{", None), Rejected("not_json", "$", "mend it"), "resolve")
    stranger = Output(DEAD_LETTERS, b"k", b"v", -1, [("segue.err.code", b"schema")])
    stack.append([letter, letter, stranger])
    box = look(log)
    assert [case.letter.id for case in box.cases] == [f"{WEB}-0-5"]
    assert box.strangers == 1


@pytest.mark.parametrize(
    "own",
    [
        [],
        [("segue.err.code", b"theirs")],
        [("a", b"1"), ("a", b"2")],
        [("segue.err.version", b"\xff"), ("segue.dlq.action", b"x")],
    ],
)
def test_a_letter_gives_back_the_record_as_its_sender_wrote_it(own: Headers) -> None:
    raw = orjson.dumps([(name, value.decode("latin-1")) for name, value in own])
    output = dead_letter(Row((WEB, 3), 77, 0, KEY, b"{", raw), Rejected("not_json", "$.x", "mend it"), "resolve")
    found = read(Row((DEAD_LETTERS, 0), 0, 9, output.key, output.value, _packed(output.headers)))
    assert isinstance(found, Letter)
    assert (found.key, found.value, list(found.headers)) == (KEY, b"{", list(own))
    assert (found.id, found.reason, found.field, found.detail) == (f"{WEB}-3-77", "not_json", "$.x", "mend it")


def _packed(headers: Headers | None) -> bytes:
    return orjson.dumps([(name, value.decode("latin-1")) for name, value in headers or ()])


# --- replay


def test_a_mended_event_ends_in_the_context_once_even_replayed_twice(stack: EmbeddedStack, log: Log) -> None:
    put_away(stack, Output(SURVEY, KEY, orjson.dumps(POOR), 1, [("sender", b"shop")]))
    (name,) = cases(log)
    assert contacts(stack) == []
    fix = ("--set", "$.data.survey.score=1")
    assert "1 would be sent" in dlq(stack.settings, "replay", name, *fix, "--dry-run")
    assert len(list(log.read(SURVEY))) == 1
    assert "would be refused again: schema at $.data.survey.score" in dlq(stack.settings, "replay", name, exit_code=1)
    assert len(list(log.read(SURVEY))) == 1
    for _ in range(2):
        assert "1 sent, 0 not" in dlq(stack.settings, "replay", name, *fix)
    stack.drain()
    assert contacts(stack) == ["poor"]
    first, second, third = log.read(SURVEY)
    assert (first.key(), second.key(), third.key()) == (KEY,) * 3
    assert (second.partition(), third.partition()) == (1, 1)
    assert orjson.loads(second.value() or b"") == POOR | {
        "data": POOR["data"] | {"survey": {"metric": "csat", "score": 1}}
    }
    assert dict(second.headers() or ())["sender"] == b"shop"
    assert [dict(r.headers() or ())["segue.replay.attempt"] for r in (second, third)] == [b"1", b"2"]
    case = cases(log)[name]
    assert (case.state, case.attempts) == ("replayed", 2)
    assert case.actions[0][1] == Action(name, "replayed", 1, None, ("$.data.survey.score",))


def test_what_is_open_is_replayed_by_reason_in_its_order_and_not_again(stack: EmbeddedStack, log: Log) -> None:
    keyless = [orjson.dumps(good(f"k{n}")) for n in range(6)]
    put_away(stack, *(Output(WEB, None, value, 0) for value in keyless), Output(WEB, KEY, b"{cut"))
    fix = ("--reason", "null_key", "--key", "user_id:u1")
    assert "2 sent" in dlq(stack.settings, "replay", *fix, "--limit", "2")
    assert "4 sent" in dlq(stack.settings, "replay", *fix)
    assert "0 sent, 0 not" in dlq(stack.settings, "replay", *fix)
    stack.drain()
    assert contacts(stack) == [f"k{n}" for n in range(6)]
    assert "0 sent, 1 not" in dlq(stack.settings, "replay", "--all", exit_code=1)
    table = dlq(stack.settings, "ls")
    assert "replayed (1)" in table
    assert "--all" in dlq(stack.settings, "replay", exit_code=2)
    assert "--all" in dlq(stack.settings, "replay", f"{WEB}-0-0", "--all", exit_code=2)


def test_an_event_in_the_wrong_topic_can_be_sent_to_the_right_one(stack: EmbeddedStack, log: Log) -> None:
    put_away(stack, Output(WEB, KEY, orjson.dumps(good("lost", channel="chat")), 0))
    (name,) = cases(log)
    assert "--to" in dlq(stack.settings, "replay", name, "--to", "elsewhere", exit_code=2)
    dlq(stack.settings, "replay", name, "--to", CHAT)
    stack.drain()
    assert contacts(stack) == ["lost"]
    assert cases(log)[name].actions[0][1].topic == CHAT


def test_a_discarded_letter_is_left_alone(stack: EmbeddedStack, log: Log) -> None:
    put_away(stack, Output(WEB, None, orjson.dumps(good("a")), 0), Output(WEB, None, orjson.dumps(good("b")), 0))
    assert "1 discarded" in dlq(stack.settings, "discard", f"{WEB}-0-0", "--reason-text", "test traffic")
    assert "1 sent" in dlq(stack.settings, "replay", "--all", "--key", "user_id:u1")
    stack.drain()
    assert contacts(stack) == ["b"]
    assert "discarded" in dlq(stack.settings, "ls", "--reason", "null_key")
    assert "test traffic" in dlq(stack.settings, "show", f"{WEB}-0-0")
    assert dlq(stack.settings, "ls", "--open").startswith("0 letters")


def bug(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    """The context processor's code fails at one event."""
    sound = streams.context.apply

    def failing(context: Any, interaction: Any, policy: Any) -> Any:
        outcome = sound(context, interaction, policy)
        if interaction.entry.id == bad:
            raise ZeroDivisionError
        return outcome

    monkeypatch.setattr("streams.context.apply", failing)


def test_what_our_own_code_failed_at_is_applied_after_the_fix_once_and_later(
    stack: EmbeddedStack, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        bug(patch, "b")
        put_away(stack, *(Output(WEB, KEY, orjson.dumps(good(name))) for name in "abc"))
    assert contacts(stack) == ["a", "c"]
    (case,) = everything(log)
    assert (case.letter.topic, case.letter.reason, case.letter.stage) == (INTERACTIONS, "processing", "context")
    for _ in range(2):
        dlq(stack.settings, "replay", case.letter.id)
    stack.drain()
    assert sorted(contacts(stack)) == ["a", "b", "c"]
    again = [record for record in log.read(INTERACTIONS) if record.value() == case.letter.value]
    assert {(record.key(), record.partition()) for record in again} == {(case.letter.key, case.letter.partition)}
    assert len(again) == 3
    steps = [orjson.loads(record.value() or b"") for record in log.read(JOURNEY_STEPS)]
    assert [(step["revision"], step["entry"]["id"]) for step in steps] == [(1, "a"), (2, "c"), (3, "b")]


def test_a_record_that_fails_again_and_again_is_parked(
    stack: EmbeddedStack, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch, "b")
    put_away(stack, Output(WEB, KEY, orjson.dumps(good("b"))))
    names: list[str] = []
    for attempt in range(4):
        (case,) = [case for case in everything(log) if case.letter.id not in names]
        names.append(case.letter.id)
        assert case.letter.attempt == case.attempts == attempt
        sent = list(replay(log, [case]))
        assert (sent[0].why_not is None) == (attempt < 3)
        stack.drain()
    found = cases(log)
    assert [found[name].state for name in names] == ["replayed"] * 3 + ["parked"]
    assert [found[name].came_back_as for name in names] == [*names[1:], None]
    assert sent[0].why_not is not None
    assert "parked" in sent[0].why_not
    assert len({tuple(h for h in everything(log)[-1].letter.headers if h[0] == "segue.replay.of")}) == 1


def test_a_step_that_signals_failed_at_is_counted_once_after_later_ones(
    stack: EmbeddedStack, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = RuleBook.apply

    def failing(self: RuleBook, state: Any, step: Any, found: Any) -> Any:
        signals = sound(self, state, step, found)
        if step.entry.id == "first":
            raise KeyError
        return signals

    def answer(name: str, minute: int) -> Output:
        data = POOR["data"] | {"survey": {"metric": "csat", "score": 1}}
        return Output(
            SURVEY, KEY, orjson.dumps(POOR | {"id": name, "time": f"2026-01-05T09:{minute:02}:00Z", "data": data})
        )

    with monkeypatch.context() as patch:
        patch.setattr(RuleBook, "apply", failing)
        put_away(stack, answer("first", 1), answer("second", 2))

    def told() -> list[str]:
        return sorted(orjson.loads(record.value() or b"")["evidence"][-1] for record in log.read(SIGNALS))

    (case,) = everything(log)
    assert (case.letter.topic, case.letter.stage) == (JOURNEY_STEPS, "signals")
    assert told() == ["second"]
    for _ in range(2):
        assert [sent.why_not for sent in replay(log, everything(log))] == [None]
        stack.drain()
    assert told() == ["first", "second"]


def test_replays_for_others_and_from_unknown_places_are_told_apart(stack: EmbeddedStack, log: Log) -> None:
    why = Rejected("not_readable", "$", "mend it")
    theirs = dead_letter(Row((JOURNEY_STEPS, 1), 4, 0, KEY, b"{", None), why, "complaints")
    ours = dead_letter(Row((JOURNEY_STEPS, 1), 4, 0, KEY, b"{", None), why, "signals")
    foreign = dead_letter(Row(("payments", 0), 1, 0, KEY, b"{", None), why, "resolve")
    stack.append([theirs, ours, foreign])
    assert set(cases(log)) == {f"{JOURNEY_STEPS}-1-4@complaints", f"{JOURNEY_STEPS}-1-4", "payments-0-1"}
    (refused,) = replay(log, [case for case in everything(log) if case.letter.topic == "payments"])
    assert "payments is no topic" in str(refused.why_not)


def test_an_interaction_goes_where_interactions_are_read_since_a_rebuild(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.sqlite")
    moved = Layout(5, epoch=2, interactions=f"{INTERACTIONS}.2-of-5", steps=2)
    log.create_topics(all_topics(5, 1, moved.interactions, 2))
    runtime.log_layout(log, moved)
    (record,) = interactions(1)
    why = Rejected("processing", "$", "mend it")
    for origin in (INTERACTIONS, f"{INTERACTIONS}.1-of-3"):
        log.append([dead_letter(Row((origin, 1), 4, 0, record.key, record.value, None), why, "context")])
    assert [sent.why_not for sent in replay(log, everything(log))] == [None, None]
    arrived = [(found.key(), found.value()) for found in log.read(moved.interactions)]
    assert arrived == [(record.key, record.value)] * 2


def test_a_choice_takes_what_all_of_its_parts_take() -> None:
    letter = read(_letter_row())
    assert isinstance(letter, Letter)
    case = Case(letter)
    assert Choice().takes(case)
    assert Choice(reason="schema", topic=WEB, since_ms=1000).takes(case)
    for none in (
        Choice(reason="x"),
        Choice(topic=CHAT),
        Choice(since_ms=1001),
        Choice(states=("parked",)),
        Choice(ids=frozenset()),
    ):
        assert not none.takes(case)


def _letter_row() -> Row:
    output = dead_letter(Row((WEB, 0), 1, 0, KEY, b"{", None), Rejected("schema", "$", "mend it"), "resolve")
    return Row((DEAD_LETTERS, 0), 0, 1000, output.key, output.value, _packed(output.headers))


# --- through the real processes, on both logs


def test_mended_and_replayed_by_command_on_either_log(either_log: Settings) -> None:  # noqa: F811
    settings = either_log
    log = runtime.open_log(settings)
    with Processes(settings) as processes, redis.Redis.from_url(settings.redis or "") as client:
        processes.start("resolve", "context")
        log.append([Output(SURVEY, KEY, orjson.dumps(POOR))])
        log.append([Output(WEB, KEY, orjson.dumps(good("after")))])

        def found() -> list[str]:
            return sorted(entry["id"] for raw in contexts(client).values() for entry in orjson.loads(raw)["timeline"])

        eventually(lambda: found() == ["after"] and len(cases(log)) == 1, 60, "the event that followed")
        (name,) = cases(log)
        for _ in range(2):
            dlq(settings, "replay", name, "--set", "$.data.survey.score=2")
        log.append([Output(SURVEY, KEY, orjson.dumps(good("last", channel="survey")))])
        eventually(lambda: "last" in found(), 60, "what was sent after the replays")
        assert found() == ["after", "last", "poor"]
        assert layout(client).partitions == settings.partitions
    assert (cases(log)[name].state, cases(log)[name].attempts) == ("replayed", 2)
    assert "replayed (2)" in dlq(settings, "ls")
