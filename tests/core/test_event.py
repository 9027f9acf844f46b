"""The public contract: what is accepted, and that a refusal names the field and the remedy."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from segue.core.channels import CHANNELS
from segue.core.event import MAX_EVENT_BYTES, NO_PROPERTIES, Event, Rejected, decode, encode
from segue.core.interaction import entry_of, to_ms

SMALLEST: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e1",
    "source": "/shop",
    "type": "page.viewed",
    "time": "2025-10-09T08:53:20Z",
    "channel": "web",
    "data": {"identifiers": [{"type": "user_id", "value": "anna"}]},
}


def event(**changes: Any) -> dict[str, Any]:
    """The smallest event, with other attributes."""
    return SMALLEST | changes


def data(**changes: Any) -> dict[str, Any]:
    """The smallest event, with other data."""
    return SMALLEST | {"data": SMALLEST["data"] | changes}


def accepted(given: dict[str, Any]) -> Event:
    found = decode(json.dumps(given, ensure_ascii=False).encode())
    assert isinstance(found, Event), found
    return found


def refused(given: dict[str, Any] | bytes) -> Rejected:
    found = decode(given if isinstance(given, bytes) else json.dumps(given, ensure_ascii=False).encode())
    assert isinstance(found, Rejected)
    return found


def test_the_smallest_event_is_accepted() -> None:
    found = accepted(SMALLEST)
    assert (found.id, found.channel, found.data.identifiers[0].level) == ("e1", "web", "claimed")
    assert found.data.properties is NO_PROPERTIES


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_channel_is_accepted(channel: str) -> None:
    assert accepted(event(channel=channel)).channel == channel


def test_extension_attributes_of_the_envelope_are_allowed_and_ignored() -> None:
    accepted(event(traceparent="00-1-2-01", datacontenttype="application/json", subject="x", partitionkey=None))


def test_text_in_any_language_is_kept_as_it_is() -> None:
    assert accepted(data(text="我要退款 😀", properties={"备注": "重复"})).data.text == "我要退款 😀"


# --- what is refused, where, and why


@pytest.mark.parametrize("field", ["specversion", "id", "source", "type", "time", "channel", "data"])
def test_a_missing_attribute_is_named(field: str) -> None:
    found = refused({name: value for name, value in SMALLEST.items() if name != field})
    assert (found.reason, found.field) == ("schema", f"$.{field}")


@pytest.mark.parametrize(
    ("given", "reason", "field"),
    [
        (event(specversion="0.3"), "schema", "$.specversion"),
        (event(id=""), "schema", "$.id"),
        (event(id="x" * 129), "schema", "$.id"),
        (event(id=7), "schema", "$.id"),
        (event(source=""), "schema", "$.source"),
        (event(type="viewed"), "schema", "$.type"),
        (event(type="Page.viewed"), "schema", "$.type"),
        (event(type="page.viewed\n"), "schema", "$.type"),
        (event(time="yesterday"), "schema", "$.time"),
        (event(time="2025-02-30T00:00:00Z"), "schema", "$.time"),
        (event(time=1_760_000_000), "schema", "$.time"),
        (event(time="2025-10-09T08:53:20"), "time_without_zone", "$.time"),
        (event(channel="fax"), "unknown_channel", "$.channel"),
        (event(channel=None), "schema", "$.channel"),
        (event(data=[]), "schema", "$.data"),
        (data(identifiers=[]), "missing_identifiers", "$.data.identifiers"),
        (event(data={}), "missing_identifiers", "$.data.identifiers"),
        (data(identifiers=[{"type": "user_id"}]), "schema", "$.data.identifiers[0].value"),
        (data(identifiers=[{"type": "user_id", "value": ""}]), "schema", "$.data.identifiers[0].value"),
        (data(identifiers=[{"type": "User", "value": "1"}]), "schema", "$.data.identifiers[0].type"),
        (data(identifiers=[{"type": "a\n", "value": "1"}]), "schema", "$.data.identifiers[0].type"),
        (data(identifiers=[{"type": "a", "value": "1"}] * 17), "schema", "$.data.identifiers"),
        (data(identifiers=[{"type": "a", "value": "1", "level": "sure"}]), "schema", "$.data.identifiers[0].level"),
        (data(colour="red"), "schema", "$.data.colour"),
        (data(actor={"kind": "robot"}), "schema", "$.data.actor.kind"),
        (data(item={"kind": "case", "id": "1", "status": "done"}), "schema", "$.data.item.status"),
        (data(item={"kind": "case", "id": "1", "due_at": "2025-01-01"}), "schema", "$.data.item.due_at"),
        (data(item={"kind": "case", "id": "1", "reopen_count": -1}), "schema", "$.data.item.reopen_count"),
        (data(wait_ms=-1), "schema", "$.data.wait_ms"),
        (data(wait_ms=7 * 86_400_000 + 1), "schema", "$.data.wait_ms"),
        (data(text="字" * 4001), "schema", "$.data.text"),
        (data(properties=[1]), "schema", "$.data.properties"),
        (data(properties=None), "schema", "$.data.properties"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(given: dict[str, Any], reason: str, field: str) -> None:
    found = refused(given)
    assert (found.reason, found.field) == (reason, field)
    assert found.detail


@pytest.mark.parametrize(
    ("metric", "score", "good"),
    [
        ("nps", 0, True), ("nps", 10, True), ("nps", -0.1, False), ("nps", 10.1, False),
        ("csat", 1, True), ("csat", 5, True), ("csat", 0.9, False), ("csat", 5.1, False),
        ("ces", 1, True), ("ces", 5, True), ("ces", 0, False), ("ces", 6, False),
        ("stars", 3, False),
    ],
)  # fmt: skip
def test_a_score_lies_on_the_scale_of_its_metric(metric: str, score: float, good: bool) -> None:
    given = data(survey={"metric": metric, "score": score})
    assert isinstance(decode(json.dumps(given).encode()), Event) is good
    if not good:
        assert refused(given).field.startswith("$.data.survey")


def test_limits_are_inclusive() -> None:
    identifiers = [{"type": "a", "value": "值" * 256}] * 16
    accepted(event(id="x" * 128))
    accepted(data(identifiers=identifiers, text="字" * 4000, wait_ms=7 * 86_400_000))


def test_an_event_of_exactly_the_largest_size_is_accepted_and_one_byte_more_is_not() -> None:
    padding = MAX_EVENT_BYTES - len(json.dumps(data(properties={"p": ""})).encode())
    largest = json.dumps(data(properties={"p": "x" * padding})).encode()
    assert len(largest) == MAX_EVENT_BYTES
    assert isinstance(decode(largest), Event)
    assert refused(largest + b" ").reason == "too_large"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not_json"),
        (b"hello", "not_json"),
        (b'{"specversion": "1.0"', "not_json"),
        (b"\xff\xfe{}", "not_utf8"),
        (json.dumps(data(properties={"p": "?"})).encode().replace(b"?", b"\xe9"), "not_utf8"),
        (b'{"data": {"properties": ' + b"[" * 100_000, "not_json"),
        (b"[]", "schema"),
        (b"null", "schema"),
    ],
)
def test_what_is_no_event_at_all_is_refused_and_nothing_is_raised(raw: bytes, reason: str) -> None:
    assert refused(raw).reason == reason


def test_an_unknown_field_is_sent_to_where_it_belongs() -> None:
    assert "data.properties" in refused(data(colour="red")).detail


# --- what becomes of an accepted event


def test_an_encoded_event_decodes_to_itself() -> None:
    found = accepted(data(properties={"a": [1, 2]}, actor={"kind": "bot"}, sent_at="2025-10-09T08:53:21+08:00"))
    assert decode(encode(found)) == found


def test_times_become_milliseconds_in_any_zone_rounded_down() -> None:
    times = ["1970-01-01T00:00:00.001999Z", "1970-01-01T08:00:00.001+08:00", "1969-12-31T23:59:59.9999Z"]
    assert [to_ms(accepted(event(time=time)).time) for time in times] == [1, 1, -1]


def test_no_millisecond_is_lost_on_the_way() -> None:
    moments = [1_090_294_698_031, 546_791_652_420, 2_180_100_738_569, *range(1_760_000_000_000, 1_760_000_001_000)]
    assert [
        to_ms(datetime.fromtimestamp(ms // 1000, UTC) + timedelta(milliseconds=ms % 1000)) for ms in moments
    ] == moments


def test_the_entry_holds_what_the_event_said() -> None:
    found = accepted(
        data(
            touchpoint="结算页",
            actor={"kind": "agent", "id": "a-1", "group": "billing"},
            item={"kind": "case", "id": "7", "status": "open", "due_at": "2025-10-09T08:53:20Z", "reopen_count": 0},
            survey={"metric": "nps", "score": 9},
            wait_ms=5,
            text="hello",
            device="phone-1",
        )
    )
    entry = entry_of(found, 1_760_000_000_012, found.data.properties)
    assert (entry.id, entry.type, entry.channel, entry.source) == ("e1", "page.viewed", "web", "/shop")
    assert (entry.event_time_ms, entry.received_at_ms) == (1_760_000_000_000, 1_760_000_000_012)
    assert (entry.touchpoint, entry.wait_ms, entry.text, entry.device) == ("结算页", 5, "hello", "phone-1")
    assert entry.actor is not None
    assert (entry.actor.kind, entry.actor.id, entry.actor.group) == ("agent", "a-1", "billing")
    assert entry.item is not None
    assert (entry.item.ref, entry.item.due_at_ms, entry.item.reopen_count) == ("case:7", 1_760_000_000_000, 0)
    assert entry.survey is not None
    assert (entry.survey.metric, entry.survey.score) == ("nps", 9)
