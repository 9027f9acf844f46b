"""Identity over HTTP, on a whole embedded Segue: the graph, and an operator's word on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from segue.api import models
from segue.settings import Settings
from segue.topics import COMMANDS
from tests.support.shop import Shop, ask
from tests.support.stack import ApiServer, EmbeddedStack
from tests.test_api import problem
from tests.test_identity import COOKIE, USER


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    with EmbeddedStack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def shop(stack: EmbeddedStack) -> Shop:
    """Anna and her tablet are one, Ben used a device of hers, and another device is nobody's yet."""
    shop = Shop(stack)
    shop.event("!" + USER, "cookie_id:phone")
    shop.event(COOKIE)
    shop.event("!" + USER, COOKIE)
    shop.event("!user_id:ben", "cookie_id:phone")
    shop.event("cookie_id:kiosk")
    return shop


@pytest.fixture(scope="module")
def api(shop: Shop, stack: EmbeddedStack) -> Iterator[httpx.Client]:
    with ApiServer(stack.settings) as server, httpx.Client(base_url=server.ready().url, timeout=15) as client:
        yield client


def commands(shop: Shop) -> list[str]:
    return [record["command_id"] for record in shop.records(COMMANDS)]


def test_the_graph_says_who_is_linked_to_whom_by_which_event_as_the_command_line_does(
    api: httpx.Client, stack: EmbeddedStack
) -> None:
    answer = api.get(f"/v1/identity/{COOKIE}")
    body: dict[str, Any] = models.IdentityAnswer.model_validate_json(answer.content).model_dump()
    assert answer.headers["segue-as-of"] == answer.json()["as_of"]
    assert {(link["identifier"], link["event_id"]) for link in body["links"]} == {
        (USER, "e1"), ("cookie_id:phone", "e1"), (COOKIE, "e2"),
    }  # fmt: skip
    (merge,) = body["merges"]
    assert (merge["absorbed"], merge["survivor"]) == (body["belongs_to"], body["customer_key"])
    assert merge["event_id"] == "e3"
    (candidate,) = body["candidates"]
    assert (candidate["identifier"], candidate["reason"]) == ("cookie_id:phone", "another_person")
    assert {k: v for k, v in answer.json().items() if k not in ("as_of", "lag_ms")} == ask(
        stack, "show", COOKIE, "--json"
    )


def test_a_merge_and_its_undoing_are_ordered_and_done(api: httpx.Client, shop: Shop) -> None:
    pair = [USER, "cookie_id:kiosk"]
    keys = [shop.context(each)["customer_key"] for each in pair]
    dry = api.post("/v1/identity/merges", json={"identifiers": pair, "dry_run": True})
    assert (dry.status_code, dry.json()) == (200, {"would_merge": {"survivor": keys[0], "absorbed": keys[1]}})
    assert commands(shop) == []
    ordered = api.post("/v1/identity/merges", json={"identifiers": pair})
    assert ordered.status_code == 202
    assert commands(shop) == [ordered.json()["command_id"]]
    shop.settle()
    assert shop.timeline("cookie_id:kiosk") == ["e1", "e2", "e3", "e5"]
    merges = api.get("/v1/identity/cookie_id:kiosk").json()["merges"]
    assert merges[-1]["event_id"] == ordered.json()["command_id"]

    dry = api.post("/v1/identity/unmerges", json={"identifier": "cookie_id:kiosk", "dry_run": True})
    assert (dry.status_code, dry.json()["would_leave"]["customers"]) == (200, [keys[1]])
    assert len(commands(shop)) == 1
    assert api.post("/v1/identity/unmerges", json={"identifier": "cookie_id:kiosk"}).status_code == 202
    shop.settle()
    assert shop.timeline("cookie_id:kiosk") == ["e5"]


@pytest.mark.parametrize(
    ("path", "body", "status", "reason", "field"),
    [
        ("merges", {"identifiers": [USER, COOKIE]}, 409, "same_customer", "identifiers.1"),
        ("merges", {"identifiers": [USER, USER]}, 409, "same_customer", "identifiers.1"),
        ("merges", {"identifiers": [USER, "email:secret@example.com"]}, 404, "unknown_customer", "identifiers.1"),
        ("merges", {"identifiers": ["email:secret", USER]}, 400, "unusable_identifier", "identifiers.0"),
        ("merges", {"identifiers": ["email:secret@example.com"]}, 400, "too_short", "identifiers"),
        ("merges", {"identifiers": [USER, COOKIE], "survivor": "secret"}, 400, "extra_forbidden", "survivor"),
        ("unmerges", {"identifier": "user_id:ben"}, 409, "not_merged", "identifier"),
        ("unmerges", {"identifier": "user_id:secret"}, 404, "unknown_customer", "identifier"),
        ("unmerges", {"identifier": f"customer_key:{'0' * 8}-0000-4000-8000-{'0' * 12}"}, 400, "customer_key",
         "identifier"),
        ("unmerges", {"identifier": 7}, 400, "string_type", "identifier"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_field_and_nothing_is_ordered(
    api: httpx.Client, shop: Shop, path: str, body: dict[str, Any], status: int, reason: str, field: str
) -> None:
    before = commands(shop)
    answer = api.post(f"/v1/identity/{path}", json=body)
    told = problem(answer, status)
    assert (told["reason"], told["field"]) == (reason, field)
    assert status != 409 or all(told["message"][language] for language in ("en", "zh"))
    assert "secret" not in answer.text
    assert commands(shop) == before


def test_a_body_that_is_no_json_and_an_identifier_that_nobody_has_are_problems(api: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    assert problem(api.post("/v1/identity/merges", content=b'{"x', headers=headers), 400)["reason"] == "json_invalid"
    assert problem(api.post("/v1/identity/merges", content=b"{}"), 415)["field"] == "content-type"
    told = problem(api.get("/v1/identity/email:nobody@example.com"), 404)
    assert told["lag_ms"] is not None
    assert "nobody" not in str(told)


def test_without_a_store_or_a_log_the_answer_is_that_they_are_away(tmp_path: Path) -> None:
    with EmbeddedStack(tmp_path) as stack, ApiServer(stack.settings) as server:
        shop = Shop(stack)
        shop.event("!" + USER)
        shop.event(COOKIE)
        with ApiServer(Settings(data_dir=tmp_path, redis=stack.valkey.url, kafka="127.0.0.1:1")) as no_log:
            merge = httpx.post(f"{no_log.url}/v1/identity/merges", json={"identifiers": [USER, COOKIE]}, timeout=15)
        assert problem(merge, 503)["type"] == "/problems/log-unavailable"
        url = f"{server.ready().url}/v1/identity"
        assert httpx.get(f"{url}/{USER}").status_code == 200
        stack.valkey.stop()
        assert problem(httpx.get(f"{url}/{USER}"), 503)["type"] == "/problems/store-unavailable"
        order = {"identifier": USER}
        assert problem(httpx.post(f"{url}/unmerges", json=order), 503)["type"] == "/problems/store-unavailable"
