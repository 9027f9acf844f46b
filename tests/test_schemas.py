"""The published schemas say what the code does: same files, same examples, same verdict on any event."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core.apply import Applied, apply, new_context
from segue.core.channels import CHANNELS
from segue.core.context import Context, Policy, encoder
from segue.core.event import MAX_EVENT_BYTES, Event, Rejected, decode
from segue.core.interaction import Entry, Interaction, Step, StepView, entry_of
from segue.core.lineage import Command, Transfer
from segue.core.rules import Signal
from segue.core.timers import TimerDue
from segue.deadletters import Action, dead_letter
from segue.identity_records import IdentityRecord
from segue.log.sqlite import Row
from segue.schemas_tool import DIRECTORY, PUBLISHED, DeadLetterHeaders, generate

Accepts = Callable[[bytes], object]


def judge(name: str) -> jsonschema_rs.Draft202012Validator:
    """The schema as an independent implementation reads it, formats asserted."""
    schema = json.loads((DIRECTORY / f"{name}.schema.json").read_text())
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True)


# --- what the code says


def a(struct: type) -> Accepts:
    return lambda raw: msgspec.json.decode(raw, type=struct)


def an_event(raw: bytes) -> None:
    found = decode(raw)
    if isinstance(found, Rejected):
        raise msgspec.ValidationError(found.detail)


def a_step(raw: bytes) -> None:
    a(Step)(raw)
    a(StepView)(raw)  # the same record as the signals processor reads it: the entry decoded


def a_context(raw: bytes) -> None:
    for entry in msgspec.json.decode(raw, type=Context).timeline:
        a(Entry)(bytes(entry))


def a_timer_or_transfer(raw: bytes) -> None:
    msgspec.json.decode(raw, type=TimerDue | Transfer)  # told apart by their type, as the context processor does


CODE: dict[str, Accepts] = {
    "event": an_event,
    "interaction": a(Interaction),
    "journey-step": a_step,
    "signal": a(Signal),
    "identity": a(IdentityRecord),
    "command": a(Command),
    "transfer": a_timer_or_transfer,
    "timer-due": a_timer_or_transfer,
    "dead-letter-headers": a(DeadLetterHeaders),
    "dead-letter-action": a(Action),
    "context": a_context,
}


def accepted_by_code(name: str, value: Any) -> bool:
    try:
        CODE[name](json.dumps(value).encode())
    except msgspec.DecodeError:
        return False
    return True


# --- files


def test_the_committed_schemas_are_those_of_the_code() -> None:
    for name, text in generate().items():
        assert (DIRECTORY / name).read_text() == text, f"{name}: run `python -m segue.schemas_tool write`"


def test_the_tool_says_so_with_its_exit_code() -> None:
    command = [sys.executable, "-m", "segue.schemas_tool", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "out of date: none\n")


def test_every_schema_is_published_under_its_own_address() -> None:
    files = {path.name for path in DIRECTORY.glob("*.schema.json")}
    assert files == {f"{name}.schema.json" for name in PUBLISHED}
    for name in files:
        schema = json.loads((DIRECTORY / name).read_text())
        assert schema["$id"] == f"https://segue.dev/schemas/{name}"
        assert schema["examples"]
        jsonschema_rs.meta.validate(schema)


def examples(kind: str) -> list[Any]:
    paths = sorted((DIRECTORY / "examples").glob(f"*/{kind}/*.json"))
    return [pytest.param(path, id=f"{path.parts[-3]}-{path.stem}") for path in paths]


@pytest.mark.parametrize("path", examples("valid"))
def test_a_valid_example_is_accepted_by_schema_and_code(path: Path) -> None:
    name, value = path.parts[-3], json.loads(path.read_text())
    judge(name).validate(value)
    CODE[name](path.read_bytes())


@pytest.mark.parametrize("path", examples("invalid"))
def test_an_invalid_example_is_refused_by_schema_and_code(path: Path) -> None:
    name, value = path.parts[-3], json.loads(path.read_text())
    assert not judge(name).is_valid(value)
    assert not accepted_by_code(name, value)


def test_every_schema_has_examples_of_both_kinds() -> None:
    for name in PUBLISHED:
        for kind in ("valid", "invalid"):
            assert len(list((DIRECTORY / "examples" / name / kind).glob("*.json"))) >= 2, f"{name} {kind}"


# --- one verdict on any event

IDENTIFIER = st.fixed_dictionaries(
    {"type": st.sampled_from(["user_id", "email", "our_key2"]), "value": st.sampled_from(["1", "客户", "x" * 256])},
    optional={"level": st.sampled_from(["verified", "claimed", "inferred"])},
)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC) | ZONES).map(
    lambda moment: moment.isoformat().replace("+00:00", "Z")
)
SHORT = st.sampled_from(["a", "结算页", "x" * 256])


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


ITEM = st.fixed_dictionaries(
    {"kind": st.sampled_from(["case", "order"]), "id": SHORT},
    optional={
        "status": optional(st.sampled_from(["open", "waiting", "resolved", "closed"])),
        "title": optional(st.sampled_from(["", "退款"])),
        "due_at": optional(TIMES),
        "sla_missed": optional(st.booleans()),
        "reopen_count": optional(st.integers(0, 1_000_000)),
    },
)
SURVEY = st.one_of(
    st.fixed_dictionaries({"metric": st.just("nps"), "score": st.integers(0, 10) | st.floats(0, 10)}),
    st.fixed_dictionaries({"metric": st.sampled_from(["csat", "ces"]), "score": st.integers(1, 5) | st.floats(1, 5)}),
)
DATA = st.fixed_dictionaries(
    {"identifiers": st.lists(IDENTIFIER, min_size=1, max_size=16)},
    optional={
        "touchpoint": optional(SHORT),
        "actor": optional(
            st.fixed_dictionaries({}, optional={"kind": st.sampled_from(["bot", "agent"]), "id": optional(SHORT)})
        ),
        "item": optional(ITEM),
        "survey": optional(SURVEY),
        "wait_ms": optional(st.integers(0, 7 * 86_400_000)),
        "text": optional(st.sampled_from(["", "我要投诉", "x" * 4000])),
        "sent_at": optional(TIMES),
        "properties": st.dictionaries(st.sampled_from(["a", "备注"]), st.none() | st.integers() | st.lists(SHORT)),
    },
)
EVENTS = st.fixed_dictionaries(
    {
        "specversion": st.just("1.0"),
        "id": st.sampled_from(["1", "订单-7", "x" * 128]),
        "source": SHORT,
        "type": st.sampled_from(["page.viewed", "a.b.c", "complaint.made", "x2_y." + "z" * 123]),
        "time": TIMES,
        "channel": st.sampled_from(CHANNELS),
        "data": DATA,
    },
    optional={"traceparent": SHORT, "subject": optional(SHORT)},
)
ODD = st.one_of(
    st.sampled_from(
        [None, True, "", " ", "x" * 257, "x" * 4001, "fax", "微信", "A.b", "a.b\n", "a\n", "a.", ".b", "é.b"]
    ),
    st.sampled_from([-1, 0, 0.5, 10.5, 11, 10**6 + 1, 7 * 86_400_000 + 1, 10**30, [], {}, [{}], {"a": 1}]),
    st.sampled_from(["2025-01-01", "2025-01-01T00:00:00", "2025-13-01T00:00:00Z", "2025-02-29T00:00:00Z", "now"]),
    st.sampled_from(["2025-01-01T24:00:00Z", "2025-01-01T00:00:60Z", "0000-01-01T00:00:00Z", "2025-01-01T00:00Z"]),
    st.sampled_from(["2025-01-01t00:00:00z", "2024-02-29T00:00:00-00:00", "2025-01-01T00:00:00.123456789+23:59"]),
    st.sampled_from(["2025-01-01T00:00:00+24:00", "2025-01-01T00:00:00+08", "２025-01-01T00:00:00Z", "csat", "nps"]),
    IDENTIFIER,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every field and element; what is in `properties` is nobody's business."""
    if isinstance(value, dict):
        within = list(value.items())
    elif isinstance(value, list):
        within = list(enumerate(value))
    else:
        return []
    found = []
    for name, inner in within:
        here = (*path, name)
        found += [here] if name == "properties" else [here, *places(inner, here)]
    return found


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """An event with one to three things changed: a field taken away, put in, or given another value."""
    event = json.loads(json.dumps(draw(EVENTS)))
    for _ in range(draw(st.integers(1, 3))):
        ways = places(event)
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        holder = event
        for part in way:
            holder = holder[part]
        change = draw(st.sampled_from(["take", "put", "set", "set"]))
        if change == "take":
            del holder[last]
        elif change == "put" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["extra", "time", "survey", "备注"]))] = draw(ODD)
        else:
            holder[last] = draw(ODD)
    return event


EVENT_SCHEMA = judge("event")


@settings(deadline=None)
@given(EVENTS)
def test_schema_and_code_accept_every_well_formed_event(event: dict[str, Any]) -> None:
    EVENT_SCHEMA.validate(event)
    assert isinstance(decode(json.dumps(event).encode()), Event)
    assert isinstance(decode(json.dumps(event, ensure_ascii=False).encode()), Event)


@settings(deadline=None, max_examples=200)
@given(mutated())
def test_schema_and_code_agree_on_events_that_were_tampered_with(event: Any) -> None:
    assert EVENT_SCHEMA.is_valid(event) == accepted_by_code("event", event)


# Where the two differ, by name: what a JSON Schema cannot say, or where the code is kinder than the contract.
BASE: dict[str, Any] = json.loads((DIRECTORY / "examples/event/valid/smallest.json").read_text())
DIFFERENCES: dict[str, tuple[Any, bool, bool]] = {
    "size: the schema does not count bytes": (BASE | {"filler": "x" * MAX_EVENT_BYTES}, True, False),
    "1.0 is an integer in JSON Schema and a float here": (
        BASE | {"data": BASE["data"] | {"wait_ms": 1.0}},
        True,
        False,
    ),
    "a space instead of T: RFC 3339 leaves that to the application": (
        BASE | {"time": "2025-01-01 00:00:00Z"},
        False,
        True,
    ),
    "an offset without colon, as ISO 8601 allows": (BASE | {"time": "2025-01-01T00:00:00+0800"}, False, True),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_known_differences_are_these_and_still_there(name: str) -> None:
    event, by_schema, by_code = DIFFERENCES[name]
    assert (EVENT_SCHEMA.is_valid(event), accepted_by_code("event", event)) == (by_schema, by_code)


# --- what the processors write


@settings(deadline=None, max_examples=30)
@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_what_the_core_makes_of_any_events_is_as_published(events: list[dict[str, Any]]) -> None:
    key, context = "e4667feb-976a-5061-ad7b-1ee3a964eb33", None
    schemas = {name: judge(name) for name in ("interaction", "journey-step", "context")}
    for number, given_event in enumerate(events):
        event = decode(json.dumps(given_event | {"id": str(number)}).encode())
        assert isinstance(event, Event)
        entry = entry_of(event, 0, event.data.properties)
        interaction = Interaction(key, entry, event.data.identifiers)
        schemas["interaction"].validate(json.loads(msgspec.json.encode(interaction)))
        context = context or new_context(key, entry)
        outcome = apply(context, interaction, Policy())
        assert isinstance(outcome, Applied)
        step = Step(key, context.revision, outcome.raw, outcome.facts, outcome.previous)
        schemas["journey-step"].validate(json.loads(msgspec.json.encode(step)))
        schemas["context"].validate(json.loads(encoder.encode(context)))


def test_the_headers_of_a_dead_letter_are_those_published_beside_the_records_own() -> None:
    record = Row(("segue.events.web", 2), 4711, 0, b"k", b"{}", b'[["traceparent", "00"]]')
    headers = dict(dead_letter(record, Rejected("schema", "$.id", "编号为空"), "resolve").headers or ())
    found = {name: value.decode() for name, value in headers.items()}
    judge("dead-letter-headers").validate(found)
    assert set(found) == {"traceparent", *msgspec.json.decode(msgspec.json.encode(DeadLetterHeaders(*"abcdefgh")))}
    assert msgspec.convert(found, DeadLetterHeaders).offset == "4711"
