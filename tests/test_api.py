"""The HTTP API, over a real socket, on a whole embedded Segue."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
import redis
from structlog.testing import capture_logs

from segue.api import app as api_app
from segue.api import models
from segue.api.problems import KINDS
from segue.client import event
from segue.log.port import Output
from segue.log.sqlite import SqliteLog
from segue.metrics import Snapshot
from segue.settings import Settings
from segue.store.connect import layout
from segue.store.keys import METRICS
from segue.store.reader import Queries, Reader
from segue.topics import event_topic
from tests.support.stack import ApiServer, EmbeddedStack, eventually
from tests.support.streams import SseClient

BATCH = "application/cloudevents-batch+json"
CLOUDEVENT = "application/cloudevents+json"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    with EmbeddedStack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def server(stack: EmbeddedStack) -> Iterator[ApiServer]:
    with ApiServer(stack.settings) as running:
        yield running.ready()


@pytest.fixture
def api(server: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=15) as client:
        yield client


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[EmbeddedStack, httpx.Client]]:
    """A stack that the test may break."""
    with (
        EmbeddedStack(tmp_path) as stack,
        ApiServer(stack.settings) as server,
        httpx.Client(base_url=server.ready().url, timeout=15) as client,
    ):
        yield stack, client


def who() -> str:
    return f"u-{uuid.uuid4().hex[:12]}"


def an_event(user: str, **fields: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "type": "page.viewed",
        "channel": "web",
        "identifiers": {"user_id": user},
        "time": datetime.now(UTC),
        "source": "tests",
    }
    return event(**defaults | fields)


def send(api: httpx.Client, *events: dict[str, Any]) -> None:
    answer = api.post("/v1/events", json=list(events))
    assert answer.status_code == 202, answer.text
    assert answer.json()["accepted"] == len(events)


def read(api: httpx.Client, identifier: str, what: str = "context") -> httpx.Response:
    return api.get(f"/v1/customers/{quote(identifier, safe='')}/{what}")


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem that an answer is, with what every problem must have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"].startswith("/problems/")
    assert body["title"]
    assert body["detail"]
    assert body["reason"]
    assert body["instance"].startswith("urn:uuid:")
    return body


# --- reading


def test_an_accepted_event_is_readable_by_any_identifier_of_the_customer(
    stack: EmbeddedStack, api: httpx.Client
) -> None:
    user = who()
    identifiers = {"user_id": user, "email": f"{user}@Example.COM", "phone": "+44 20 7946 0958"}
    send(api, an_event(user, identifiers=identifiers))
    stack.drain()
    ways = (f"user_id:{user}", f"email:{user.upper()}@example.com", "phone:+442079460958", "phone:+44 (20) 79460958")
    keys = {read(api, way).json()["context"]["customer_key"] for way in ways}
    assert len(keys) == 1
    (key,) = keys
    assert read(api, f"customer_key:{key}").json()["context"]["customer_key"] == key
    assert read(api, f"customer_key:{key.upper()}").status_code == 200


@pytest.mark.parametrize("odd", ["a/b", "a/context", "a:b", "a+b", "a@b", "a b", "a%2Fb", "a?b#c", "客户"])
def test_an_identifier_may_hold_any_character(stack: EmbeddedStack, api: httpx.Client, odd: str) -> None:
    user = f"{who()}{odd}"
    send(api, an_event(user))
    stack.drain()
    for what in ("context", "timeline", "signals"):
        assert read(api, f"user_id:{user}", what).status_code == 200


def test_a_slash_needs_no_escaping(stack: EmbeddedStack, api: httpx.Client) -> None:
    user = f"{who()}/eu/1"
    send(api, an_event(user))
    stack.drain()
    assert api.get(f"/v1/customers/user_id:{user}/context").status_code == 200


def test_the_context_answer_is_the_document_with_what_depends_on_the_present(
    stack: EmbeddedStack, api: httpx.Client
) -> None:
    user, opened = who(), datetime.fromtimestamp(time.time() - 3600, UTC)
    send(
        api,
        an_event(user, item={"kind": "order", "id": "A1", "status": "waiting", "opened_at": opened.isoformat()}),
        an_event(user, item={"kind": "case", "id": "7", "status": "closed"}),
        an_event(user, text="hello", properties={"basket": [1, 2]}),
    )
    stack.drain()
    answer = read(api, f"user_id:{user}")
    body = answer.json()
    models.ContextAnswer.model_validate(body)
    with redis.Redis.from_url(stack.valkey.url) as client:
        stored = json.loads(Reader(client).context(body["context"]["customer_key"]) or b"")
    order = body["context"]["items"]["order:A1"]
    assert 3_600_000 <= order.pop("age_ms") < 3_700_000
    assert "age_ms" not in body["context"]["items"]["case:7"]
    assert body["context"].pop("session_active") is True
    for bookkeeping in ("seen", "openings", "loose", "due_ms", "fired_ms"):
        stored.pop(bookkeeping, None)
    assert body["context"] == stored
    assert body["context"]["timeline"][-1]["properties"] == {"basket": [1, 2]}


def test_a_session_is_not_active_once_the_gap_has_passed(stack: EmbeddedStack, api: httpx.Client) -> None:
    user = who()
    send(api, an_event(user, time=datetime.fromtimestamp(time.time() - 1801, UTC)))
    stack.drain()
    assert read(api, f"user_id:{user}").json()["context"]["session_active"] is False


def test_the_timeline_gives_the_latest_entries_in_event_time_order(stack: EmbeddedStack, api: httpx.Client) -> None:
    user, now = who(), time.time()
    send(api, *(an_event(user, id=f"{user}-{n}", time=datetime.fromtimestamp(now + n, UTC)) for n in range(5)))
    stack.drain()
    body = api.get(f"/v1/customers/user_id:{user}/timeline", params={"limit": 2}).json()
    models.TimelineAnswer.model_validate(body)
    assert [entry["id"] for entry in body["entries"]] == [f"{user}-3", f"{user}-4"]
    assert len(read(api, f"user_id:{user}", "timeline").json()["entries"]) == 5


def test_signals_come_with_the_context_and_by_themselves(stack: EmbeddedStack, api: httpx.Client) -> None:
    user = who()
    send(api, *complaint(user))
    stack.drain()
    body = read(api, f"user_id:{user}", "signals").json()
    models.SignalsAnswer.model_validate(body)
    assert [signal["rule"] for signal in body["signals"]] == ["channel-ping-pong"]
    assert body["signals"][0]["evidence"]
    assert read(api, f"user_id:{user}").json()["signals"] == body["signals"]


def complaint(user: str) -> list[dict[str, Any]]:
    """Three changes of channel within minutes."""
    now = time.time()
    return [
        an_event(user, channel=channel, type="contact.made", time=datetime.fromtimestamp(now - 60 + n, UTC))
        for n, channel in enumerate(("web", "chat", "web", "voice"))
    ]


def test_every_read_says_until_when_it_is_complete_in_body_and_headers(stack: EmbeddedStack, api: httpx.Client) -> None:
    user = who()
    send(api, an_event(user))
    stack.drain()
    paths = [f"/v1/customers/user_id:{user}/{what}" for what in ("context", "timeline", "signals")]
    for path in [*paths, "/v1/stats", "/readyz"]:
        answer = api.get(path)
        body = answer.json()
        assert answer.headers["segue-as-of"] == body["as_of"]
        assert answer.headers["segue-lag-ms"] == str(body["lag_ms"])
        age_ms = (datetime.now(UTC) - datetime.fromisoformat(body["as_of"])).total_seconds() * 1000
        assert body["lag_ms"] <= age_ms < 5_000
        assert answer.headers["cache-control"] == "no-store"


def test_an_unknown_customer_is_a_404_that_tells_the_type_and_not_the_value(api: httpx.Client) -> None:
    for what in ("context", "timeline", "signals", "stream"):
        answer = read(api, "email:nobody.here@example.com", what)
        body = problem(answer, 404)
        assert body["type"] == "/problems/unknown-customer"
        assert body["identifier_type"] == "email"
        assert "may not have been applied yet" in body["detail"]
        assert isinstance(body["lag_ms"], int)
        assert answer.headers["segue-lag-ms"] == str(body["lag_ms"])
        assert "nobody" not in answer.text


@pytest.mark.parametrize(
    ("identifier", "reason"),
    [
        ("bo@example.org", "malformed_identifier"),
        ("email:", "malformed_identifier"),
        (":5150", "malformed_identifier"),
        ("E-Mail:bo@example.org", "malformed_identifier"),
        ("user_id:" + "x" * 257, "malformed_identifier"),
        ("customer_key:5150", "malformed_identifier"),
        ("email:ana.example.com", "unusable_identifier"),
        ("phone:020 7946", "unusable_identifier"),
        ("user_id:null", "unusable_identifier"),
        ("anonymous_id:0000-0000", "unusable_identifier"),
    ],
)
def test_an_identifier_that_names_nobody_is_a_400_naming_the_field(
    api: httpx.Client, identifier: str, reason: str
) -> None:
    answer = read(api, identifier)
    body = problem(answer, 400)
    assert (body["type"], body["reason"], body["field"]) == ("/problems/invalid-identifier", reason, "identifier")
    value = identifier.rpartition(":")[2]
    assert value in ("null", "") or value not in answer.text


def test_a_parameter_out_of_bounds_is_a_problem_naming_it(api: httpx.Client) -> None:
    body = problem(api.get("/v1/customers/user_id:4711/timeline", params={"limit": 0}), 400)
    assert body["type"] == "/problems/invalid-request"
    assert body["field"] == "query.limit"


# --- sending


def raw(**changes: Any) -> bytes:
    return json.dumps(an_event(who()) | changes).encode()


BAD_EVENTS: dict[str, tuple[bytes, int, str, str]] = {
    "not UTF-8": (raw().replace(b"tests", b"te\xffts"), 400, "not_utf8", "$"),
    "cut off": (raw()[:-20], 400, "not_json", "$"),
    "empty": (b"", 400, "not_json", "$"),
    "a type that is a number": (raw(type=5), 400, "schema", "$.type"),
    "a wait that is text": (
        raw(data={"identifiers": [{"type": "user_id", "value": "1a"}], "wait_ms": "long"}),
        400,
        "schema",
        "$.data.wait_ms",
    ),
    "a field nobody knows": (
        raw(data={"identifiers": [{"type": "user_id", "value": "1a"}], "colour": "red"}),
        400,
        "schema",
        "$.data.colour",
    ),
    "no identifiers": (raw(data={}), 400, "missing_identifiers", "$.data.identifiers"),
    "an empty list of identifiers": (raw(data={"identifiers": []}), 400, "missing_identifiers", "$.data.identifiers"),
    "identifiers that name nobody": (
        raw(data={"identifiers": [{"type": "user_id", "value": "null"}]}),
        400,
        "missing_identifiers",
        "$.data.identifiers",
    ),
    "two people in one event": (
        raw(data={"identifiers": [{"type": "user_id", "value": "1a"}, {"type": "user_id", "value": "2b"}]}),
        400,
        "contradictory_identifiers",
        "$.data.identifiers",
    ),
    "an unknown channel": (raw(channel="fax"), 400, "unknown_channel", "$.channel"),
    "a time without a zone": (raw(time="2026-03-01T09:30:00"), 400, "time_without_zone", "$.time"),
    "2 MB": (
        raw(data={"identifiers": [{"type": "user_id", "value": "1a"}], "properties": {"x": "y" * 2_000_000}}),
        413,
        "too_large",
        "$",
    ),
    "nested forty thousand deep": (b'{"a":' * 40_000, 400, "not_json", "$"),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_a_bad_event_comes_back_as_a_problem_that_names_the_field(api: httpx.Client, name: str) -> None:
    body, status, reason, field = BAD_EVENTS[name]
    told = problem(api.post("/v1/events", content=body, headers={"content-type": CLOUDEVENT}), status)
    assert (told["reason"], told["field"]) == (reason, field)
    assert told["errors"] == [{"field": field, "reason": reason, "detail": told["detail"]}]


def test_one_event_is_acknowledged_and_stands_in_its_topic_byte_for_byte(
    stack: EmbeddedStack, api: httpx.Client
) -> None:
    user = who()
    body = b' { "specversion" : "1.0",\n' + json.dumps(an_event(user, channel="store", id=user)).encode()[1:-1]
    body = body.replace(b'"specversion": "1.0", ', b"") + b' , "extension" : 1 } '
    for media in (CLOUDEVENT, "application/json", "application/json; charset=utf-8"):
        answer = api.post("/v1/events", content=body, headers={"content-type": media})
        assert answer.status_code == 202, answer.text
        assert answer.json() == {"accepted": 1, "ids": [user]}
    with closing(SqliteLog(stack.settings.data_dir / "log.sqlite")) as log:
        found = [record for record in log.read(event_topic("store")) if record.key() == f"user_id:{user}".encode()]
    assert [record.value() for record in found] == [body] * 3


def test_the_record_is_keyed_by_the_strongest_identifier_in_one_spelling(
    stack: EmbeddedStack, api: httpx.Client
) -> None:
    user = who()
    send(api, an_event(user, channel="kiosk", identifiers={"device_id": "d9", "email": f"{user}@EXAMPLE.com"}))
    with closing(SqliteLog(stack.settings.data_dir / "log.sqlite")) as log:
        keys = [record.key() for record in log.read(event_topic("kiosk"))]
    assert f"email:{user}@example.com".encode() in keys


@pytest.mark.parametrize("media", [BATCH, "application/json"])
def test_of_a_batch_the_valid_events_are_accepted_and_the_others_come_back(
    stack: EmbeddedStack, api: httpx.Client, media: str
) -> None:
    user = who()
    events = [
        an_event(user, id=f"{user}-0"),
        an_event(user, id=f"{user}-1", channel="fax"),
        an_event(user, id=f"{user}-2"),
        {"nonsense": True},
    ]
    answer = api.post("/v1/events", content=json.dumps(events).encode(), headers={"content-type": media})
    assert answer.status_code == 202
    body = answer.json()
    models.AcceptedAnswer.model_validate(body)
    assert (body["accepted"], body["ids"]) == (2, [f"{user}-0", f"{user}-2"])
    assert [(one["index"], one.get("id")) for one in body["rejected"]] == [(1, f"{user}-1"), (3, None)]
    assert body["rejected"][0]["problem"]["reason"] == "unknown_channel"
    stack.drain()
    assert len(read(api, f"user_id:{user}", "timeline").json()["entries"]) == 2


def test_a_batch_in_which_nothing_is_valid_is_a_400_that_names_each(api: httpx.Client) -> None:
    events = [an_event(who(), channel="fax"), an_event(who(), time="yesterday")]
    body = problem(api.post("/v1/events", json=events), 400)
    assert [(error["index"], error["field"]) for error in body["errors"]] == [(0, "$.channel"), (1, "$.time")]
    assert [one["problem"]["field"] for one in body["rejected"]] == ["$.channel", "$.time"]


def test_a_batch_of_500_is_taken_and_one_of_501_is_too_large(api: httpx.Client) -> None:
    user = who()
    send(api, *(an_event(user) for _ in range(500)))
    body = problem(api.post("/v1/events", json=[an_event(user)] * 501), 413)
    assert body["reason"] == "too_many"


def test_a_batch_that_is_no_array_and_an_empty_one(api: httpx.Client) -> None:
    one = api.post("/v1/events", content=raw(), headers={"content-type": BATCH})
    assert problem(one, 400)["field"] == "$"
    cut = api.post("/v1/events", content=b"[" + raw(), headers={"content-type": BATCH})
    assert problem(cut, 400)["reason"] == "not_json"
    assert api.post("/v1/events", json=[]).json() == {"accepted": 0, "ids": []}


def test_a_body_beyond_four_megabytes_is_refused_without_being_kept(api: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(48):
            yield b" " * 256 * 1024

    answer = api.post("/v1/events", content=chunks(), headers={"content-type": "application/json"})
    assert problem(answer, 413)["reason"] == "too_large"


@pytest.mark.parametrize("media", ["text/plain", "application/xml", None])
def test_another_content_type_is_a_415(api: httpx.Client, media: str | None) -> None:
    headers = {} if media is None else {"content-type": media}
    body = problem(api.post("/v1/events", content=raw(), headers=headers), 415)
    assert body["field"] == "content-type"


def test_while_the_log_does_not_answer_nothing_is_accepted(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, kafka="127.0.0.1:1", api_port=0)
    with ApiServer(settings) as server:
        answer = httpx.post(f"{server.url}/v1/events", json=an_event(who()), timeout=15)
        body = problem(answer, 503)
    assert body["type"] == "/problems/log-unavailable"
    assert int(answer.headers["retry-after"]) > 0
    assert "accepted" not in body


def test_before_any_processor_has_run_the_api_is_up_and_says_what_is_missing(tmp_path: Path) -> None:
    with ApiServer(Settings(data_dir=tmp_path)) as server, httpx.Client(base_url=server.url) as api:
        assert api.get("/healthz").json() == {"status": "ok"}
        body = problem(api.get("/readyz"), 503)
        assert [error["field"] for error in body["errors"]] == ["store"]
        assert problem(api.get("/v1/customers/user_id:4711/context"), 503)["type"] == "/problems/store-unavailable"
        assert problem(api.post("/v1/events", json=an_event(who())), 503)["type"] == "/problems/log-unavailable"
        assert "segue_api_store_up 0.0" in api.get("/metrics").text
        with EmbeddedStack(tmp_path, redis=None) as late:  # no address set: the API finds the note that it leaves
            server.ready()
            send(api, an_event("late-riser"))
            late.drain()
            assert read(api, "user_id:late-riser").status_code == 200


# --- streams


def test_a_stream_begins_with_the_current_context_and_goes_on_with_changes(
    stack: EmbeddedStack, api: httpx.Client, server: ApiServer
) -> None:
    user = who()
    send(api, an_event(user))
    stack.drain()
    with SseClient(f"{server.url}/v1/customers/user_id:{user}/stream") as stream:
        first = stream.next()
        assert (first.event, first.id) == ("context", "1")
        models.ContextAnswer.model_validate(first.json())
        send(api, an_event(user, channel="chat", text="hello"))
        second = stream.next()
        assert (second.event, second.id) == ("context", "2")
        assert second.json()["context"]["current"]["channel"] == "chat"
        assert stream.headers["segue-as-of"]


def test_a_client_that_has_the_current_revision_gets_nothing_until_the_next_change(
    stack: EmbeddedStack, api: httpx.Client, server: ApiServer
) -> None:
    user = who()
    send(api, an_event(user), an_event(user))
    stack.drain()
    url = f"{server.url}/v1/customers/user_id:{user}/stream"
    with SseClient(url, last_event_id="2") as stream:
        assert stream.nothing_for(0.5)
        send(api, an_event(user))
        assert stream.next().id == "3"
    with SseClient(url, last_event_id="2") as stream:
        assert stream.next().id == "3"


def test_a_signal_is_pushed_too(stack: EmbeddedStack, api: httpx.Client, server: ApiServer) -> None:
    user = who()
    *before, last = complaint(user)
    send(api, *before)
    stack.drain()
    with SseClient(f"{server.url}/v1/customers/user_id:{user}/stream") as stream:
        assert stream.next().json()["signals"] == []
        send(api, last)
        told: list[dict[str, Any]] = []
        while not told:  # with the context or by itself, as it comes
            told = stream.next().json()["signals"]
        assert told[0]["rule"] == "channel-ping-pong"


def test_a_burst_reaches_a_client_as_the_newest_document(
    stack: EmbeddedStack, api: httpx.Client, server: ApiServer
) -> None:
    user = who()
    send(api, an_event(user))
    stack.drain()
    with SseClient(f"{server.url}/v1/customers/user_id:{user}/stream") as stream:
        stream.next()
        send(api, *(an_event(user) for _ in range(400)))
        seen = [stream.next()]
        while seen[-1].id != "401":
            seen.append(stream.next())
        assert len(seen) < 100
        assert stream.nothing_for(0.3)


def test_other_customers_changes_are_not_pushed(stack: EmbeddedStack, api: httpx.Client, server: ApiServer) -> None:
    one, other = who(), who()
    send(api, an_event(one), an_event(other))
    stack.drain()
    with SseClient(f"{server.url}/v1/customers/user_id:{one}/stream") as stream:
        stream.next()
        send(api, an_event(other))
        stack.drain()
        assert stream.nothing_for(0.3)


def test_the_server_stops_within_three_seconds_with_streams_open(stack: EmbeddedStack, api: httpx.Client) -> None:
    user = who()
    send(api, an_event(user))
    stack.drain()
    with ApiServer(stack.settings) as server:
        streams = [SseClient(f"{server.url}/v1/customers/user_id:{user}/stream") for _ in range(20)]
        for stream in streams:
            stream.next()
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 3
        for stream in streams:
            assert stream.ended()
            stream.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux cuts off who takes nothing")
def test_a_client_that_stops_reading_is_cut_off_and_one_that_has_nothing_to_read_is_not(
    stack: EmbeddedStack, api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_app, "STALLED_S", 3)
    busy, quiet = who(), who()
    send(api, an_event(busy), an_event(quiet))
    stack.drain()
    with (
        ApiServer(stack.settings) as server,
        socket.socket() as stalled,
        capture_logs() as logs,
        SseClient(f"{server.url}/v1/customers/user_id:{quiet}/stream") as waiting,
    ):
        waiting.next()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        stalled.sendall(f"GET /v1/customers/user_id:{busy}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        streams = re.compile(r"^segue_api_streams (\d+)", re.MULTILINE)

        def more_until(count: str) -> Callable[[], bool]:
            def look() -> bool:
                send(api, *(an_event(busy, text="n" * 4000) for _ in range(10)))
                found = streams.search(httpx.get(f"{server.url}/metrics").text)
                return found is not None and found[1] == count

            return look

        eventually(more_until("2"), 10, "both streams")
        eventually(more_until("1"), 20, "the end of the one that is not read")
        assert waiting.nothing_for(1.5)
        send(api, an_event(quiet))
        assert waiting.next().id == "2"
    assert not [line for line in logs if line["log_level"] == "error"]


# --- outages


def test_reads_and_streams_come_back_after_the_store_was_killed(own: tuple[EmbeddedStack, httpx.Client]) -> None:
    stack, api = own
    send(api, an_event("steady"))
    stack.drain()
    with SseClient(f"{api.base_url}/v1/customers/user_id:steady/stream") as stream:
        assert stream.next().id == "1"
        stack.valkey.kill()
        answer = read(api, "user_id:steady")
        assert problem(answer, 503)["type"] == "/problems/store-unavailable"
        assert int(answer.headers["retry-after"]) > 0
        assert problem(api.get("/readyz"), 503)["errors"][0]["field"] == "store"
        send(api, an_event("steady"))  # the log is there: an event is accepted all the same
        stack.valkey.start()
        eventually(lambda: read(api, "user_id:steady").status_code == 200, what="the read's return")
        assert stream.next().id == "2"


def test_a_store_that_hangs_is_a_503_in_time_and_stops_nothing_else(own: tuple[EmbeddedStack, httpx.Client]) -> None:
    stack, api = own
    send(api, an_event("patient"))
    stack.drain()
    os.kill(stack.valkey.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        problem(read(api, "user_id:patient"), 503)
        assert time.monotonic() - began < 4
        assert api.get("/healthz").status_code == 200
        send(api, an_event("patient"))
    finally:
        os.kill(stack.valkey.pid, signal.SIGCONT)
    eventually(lambda: read(api, "user_id:patient").status_code == 200, what="the read's return")


def test_the_lag_grows_while_the_context_processor_is_away(own: tuple[EmbeddedStack, httpx.Client]) -> None:
    stack, api = own
    send(api, an_event("waiting"))
    stack.drain()
    stack.stop("context")
    first = read(api, "user_id:waiting").json()
    send(api, an_event("newcomer"))
    eventually(lambda: read(api, "user_id:waiting").json()["lag_ms"] >= 1500, what="the lag's growth")
    second = read(api, "user_id:waiting").json()
    gained = datetime.fromisoformat(second["as_of"]) - datetime.fromisoformat(first["as_of"])
    assert gained.total_seconds() < 1  # what was reported last, and nothing after it
    assert problem(read(api, "user_id:newcomer"), 404)["lag_ms"] >= 1500
    stack.start("context")
    stack.drain()
    assert read(api, "user_id:newcomer").status_code == 200
    eventually(lambda: read(api, "user_id:waiting").json()["lag_ms"] < 1000, what="the lag's end")


def test_a_processor_ten_seconds_behind_makes_the_api_unready_by_name(
    own: tuple[EmbeddedStack, httpx.Client], tmp_path: Path
) -> None:
    stack, _ = own
    stack.stop("signals")
    with ApiServer(stack.settings) as server:
        # The same store, seen by a clock that is eleven seconds ahead.
        services = server.server.config.app.state.services  # type: ignore[union-attr]
        services.store.queries = Queries(clock=lambda: time.time_ns() // 1_000_000 + 11_000)
        body = problem(httpx.get(f"{server.url}/readyz"), 503)
        assert {"signals", "context", "resolve"} == {error["field"] for error in body["errors"]}
    with redis.Redis.from_url(stack.valkey.url) as client:
        client.delete(layout(client).progress("signals"))
    with ApiServer(stack.settings) as server:
        body = problem(httpx.get(f"{server.url}/readyz"), 503)
        assert [error["field"] for error in body["errors"]] == ["signals"]
        context = httpx.get(f"{server.url}/v1/customers/user_id:x1/signals")
        assert context.status_code == 404


def test_a_defect_is_a_500_that_shows_nothing_of_the_customer(
    own: tuple[EmbeddedStack, httpx.Client], capfd: pytest.CaptureFixture[str]
) -> None:
    stack, api = own
    send(api, an_event("broken-document"))
    stack.drain()
    key = read(api, "user_id:broken-document").json()["context"]["customer_key"]
    with redis.Redis.from_url(stack.valkey.url) as client:
        found = layout(client)
        for shard in range(found.partitions):
            name = found.document(str(shard), "ctx", key)
            if client.exists(name):
                client.set(name, b'{"secret": broken-document')
    capfd.readouterr()
    body = problem(read(api, "user_id:broken-document"), 500)
    logged = capfd.readouterr()
    assert body["instance"] in logged.out + logged.err
    assert "broken-document" not in json.dumps(body) + logged.out + logged.err


# --- operation


def test_stats_add_up_to_what_was_sent(own: tuple[EmbeddedStack, httpx.Client]) -> None:
    stack, api = own
    now = time.time()
    at = [datetime.fromtimestamp(now - 100 + n, UTC) for n in range(10)]
    twice = an_event("a1", time=at[0], touchpoint="/cart")
    send(
        api,
        twice,
        twice,
        an_event("a1", time=at[1], channel="chat", item={"kind": "case", "id": "1"}),
        an_event("a1", time=at[2], channel="chat", item={"kind": "case", "id": "1", "status": "closed"}),
        an_event("b1", time=at[3], channel="voice", type="call.started", item={"kind": "case", "id": "2"}),
        an_event("b1", time=at[4], channel="voice", item={"kind": "case", "id": "2", "sla_missed": True}),
        an_event("b1", time=at[5], channel="voice", item={"kind": "order", "id": "9", "status": "waiting"}),
        an_event("b1", time=at[6], channel="voice", item={"kind": "case", "id": "3"}),
    )
    stack.append([Output(event_topic("web"), b"k", b"not an event")])
    stack.drain()
    body = api.get("/v1/stats").json()
    models.Stats.model_validate(body)
    assert (body["accepted"], body["duplicates"], body["late"]) == (8, 1, 0)
    assert body["rejected"] == {"total": 1, "by_reason": {"not_json": 1}}
    assert body["events"]["total"] == 7
    assert body["events"]["by_channel"] == {"chat": 2, "voice": 4, "web": 1}
    assert body["events"]["by_type"] == {"call.started": 1, "page.viewed": 6}
    assert body["events"]["by_channel_and_type"]["voice"] == {"call.started": 1, "page.viewed": 3}
    assert body["touchpoints"] == {"web": {"/cart": 1}}
    assert (body["customers"], body["sessions"]) == (2, 2)
    assert body["handoffs"] == {"total": 1, "by_kind": {"channel": 1}}
    assert body["customers_with_items"] == {"total": 2, "by_identifier": {"user_id": 2}}
    assert body["items"]["case"] == {
        "opened": 3,
        "by_channel": {"chat": 1, "voice": 2},
        "by_status": {"closed": 1, "open": 2},
        "open": 2,
    }
    assert body["items"]["order"]["open"] == 1
    assert body["items_with"] == {"reopened": 0, "reassigned": 0, "sla_missed": 1}
    assert body["contacts_repeated"] == 1
    assert body["signals"]["total"] == sum(body["signals"]["by_rule"].values())
    with redis.Redis.from_url(stack.valkey.url) as client:
        reader = Reader(client)
        assert reader.stats()["events"] == body["events"]
        assert reader.find("user_id", "a1") == read(api, "user_id:a1").json()["context"]["customer_key"]
        assert reader.find("user_id", "null") is None
        assert reader.freshness("resolve").as_of_ms > 0
        assert {snapshot.processor for snapshot in reader.snapshots()} == {"resolve", "context", "signals"}


def test_nothing_is_ready_while_a_partition_is_restored(stack: EmbeddedStack, api: httpx.Client) -> None:
    eventually(lambda: api.get("/readyz").status_code == 200, 20, "readiness")
    with redis.Redis.from_url(stack.valkey.url) as client:
        ghost = Snapshot("context", "ghost", time.time_ns() // 1_000_000, {}, [0], 0.0, restoring=2)
        client.hset(METRICS, "context:ghost", msgspec.json.encode(ghost))
        answer = api.get("/readyz")
        client.hdel(METRICS, "context:ghost")
    assert answer.status_code == 503
    assert "is restoring 2 partitions" in answer.text
    assert api.get("/readyz").status_code == 200


def test_metrics_show_every_process_and_no_customer(stack: EmbeddedStack, api: httpx.Client) -> None:
    user = who()
    send(api, an_event(user))
    stack.drain()
    read(api, f"user_id:{user}")
    time.sleep(0.3)  # the processors report five times a second
    text = api.get("/metrics").text
    for processor in ("resolve", "context", "signals"):
        assert 'segue_partitions_owned{instance="' in text
        assert f'processor="{processor}"' in text
    assert 'segue_api_requests_total{method="GET",route="/v1/customers/{identifier:path}/context",status="200"}' in text
    assert "segue_api_request_seconds_bucket" in text
    assert user not in text


def test_a_path_or_method_that_is_not_there_is_a_problem(api: httpx.Client) -> None:
    assert problem(api.get("/v2/customers"), 404)["type"] == "/problems/no-such-path"
    assert problem(api.get("/v1/customers/user_id:1"), 404)["type"] == "/problems/no-such-path"
    answer = api.put("/v1/events", json={})
    assert problem(answer, 405)["type"] == "/problems/method-not-allowed"
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_problem_has_a_page(api: httpx.Client, kind: str) -> None:
    page = api.get(f"/problems/{kind}").json()
    assert page["status"] == KINDS[kind].status
    assert page["remedy"]


def test_the_openapi_description_names_every_path_and_only_schemas_that_exist(api: httpx.Client) -> None:
    description = api.get("/openapi.json").json()
    assert set(description["paths"]) >= {
        "/v1/events",
        "/v1/customers/{identifier}/context",
        "/v1/customers/{identifier}/timeline",
        "/v1/customers/{identifier}/signals",
        "/v1/customers/{identifier}/stream",
        "/v1/identity/{identifier}",
        "/v1/identity/merges",
        "/v1/identity/unmerges",
        "/v1/stats",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    text = json.dumps(description)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(description["components"]["schemas"])
    assert api.get("/docs").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_in_order_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "from segue.api.app import serve; from segue.settings import load; serve(load())"
    environment = os.environ | {"SEGUE_API_PORT": str(port), "SEGUE_DATA_DIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    try:
        eventually(lambda: answers_at(port), 20, what="the API's start")
        process.send_signal(number)
        _, complaints = process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == 0
    assert b"Traceback" not in complaints


def answers_at(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_port_that_is_taken_is_refused_by_the_setting_s_name() -> None:
    from segue.api.app import serve
    from segue.errors import SettingsError

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingsError, match="SEGUE_API_PORT"):
        serve(Settings(api_port=taken.getsockname()[1]))


def test_many_readers_and_writers_at_once_all_get_their_answer(stack: EmbeddedStack, server: ApiServer) -> None:
    failed: list[str] = []

    def work(n: int) -> None:
        with httpx.Client(base_url=server.url, timeout=15) as client:
            for turn in range(20):
                sent = client.post("/v1/events", json=an_event(f"crowd-{n}-{turn}"))
                got = client.get(f"/v1/customers/user_id:crowd-{n}-{turn}/context")
                if sent.status_code != 202 or got.status_code not in (200, 404):
                    failed.append(f"{sent.status_code} {got.status_code}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
