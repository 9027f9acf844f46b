"""Reading by an identifier that several people use: all of them, with reasons, and never one by a guess."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from segue.api import models
from segue.core.identity import REASONS, REASONS_ZH
from segue.store.users import REMEMBERED
from tests.support.shop import Shop
from tests.support.stack import ApiServer, EmbeddedStack
from tests.support.streams import SseClient
from tests.test_api import problem

PHONE = "phone:+442079460958"
ANNA, BEN = "user_id:anna", "user_id:ben"


@pytest.fixture
def shop(stack: EmbeddedStack) -> Shop:
    """Anna and Ben have one telephone; Ben has a case and was here last."""
    shop = Shop(stack)
    shop.event("!" + ANNA, "!" + PHONE)
    shop.event("!" + BEN, "!" + PHONE, channel="voice", item={"kind": "case", "id": "7"})
    return shop


@pytest.fixture
def api(shop: Shop, stack: EmbeddedStack) -> Iterator[httpx.Client]:
    with ApiServer(stack.settings) as server, httpx.Client(base_url=server.ready().url, timeout=15) as client:
        yield client


def read(api: httpx.Client, identifier: str, what: str = "context") -> httpx.Response:
    return api.get(f"/v1/customers/{identifier}/{what}")


def key_of(api: httpx.Client, identifier: str) -> Any:
    return read(api, identifier).json()["context"]["customer_key"]


@pytest.mark.parametrize("what", ["context", "timeline", "signals", "stream"])
def test_a_shared_number_is_answered_with_everybody_who_uses_it_and_why_and_with_nobodys_context(
    api: httpx.Client, what: str
) -> None:
    answer = read(api, PHONE, what)
    told = problem(answer, 409)
    body = models.AmbiguousAnswer.model_validate(told)
    assert (body.reason, body.identifier_type) == ("ambiguous_identifier", "phone")
    assert answer.headers["segue-as-of"] == told["as_of"]
    ben, anna = body.candidates  # the one seen last first
    assert (ben.customer_key, anna.customer_key) == (key_of(api, BEN), key_of(api, ANNA))
    assert (ben.reason, ben.event_id, ben.channels, ben.open_items) == ("another_person", "e2", ["voice"], 1)
    assert (anna.reason, anna.event_id, anna.channels, anna.open_items) == ("first", "e1", ["web"], 0)
    assert (body.complete, body.remembered) == (True, 17)
    for candidate in body.candidates:
        assert candidate.why["en"]
        assert re.search("[\u4e00-\u9fff]", candidate.why["zh"])
    assert body.message["en"].startswith("2 customers")
    assert "2 位客户" in body.message["zh"]
    assert not re.search("anna|ben|9460958|timeline", answer.text), "nothing that belongs to either is shown"


def test_of_very_many_who_use_a_number_the_answer_says_that_it_does_not_list_all(api: httpx.Client, shop: Shop) -> None:
    def told() -> models.AmbiguousAnswer:
        return models.AmbiguousAnswer.model_validate(problem(read(api, PHONE), 409))

    for n in range(3, REMEMBERED):
        shop.event(f"!user_id:u{n}", "!" + PHONE, settle=False)
    shop.settle()
    assert (told().complete, len(told().candidates)) == (True, REMEMBERED - 1)
    for n in range(REMEMBERED, REMEMBERED + 3):
        shop.event(f"!user_id:u{n}", "!" + PHONE)
    body = told()
    assert (body.complete, body.remembered, len(body.candidates)) == (False, REMEMBERED, REMEMBERED)
    assert f"{REMEMBERED} customers or more" in body.detail
    assert f"only the first {REMEMBERED} are remembered" in body.message["en"]
    assert f"至少有 {REMEMBERED} 位" in body.message["zh"]
    assert f"只记录最先的 {REMEMBERED} 位" in body.message["zh"]


def test_whoever_chooses_one_of_them_or_names_a_person_is_answered(api: httpx.Client) -> None:
    for candidate in problem(read(api, PHONE), 409)["candidates"]:
        chosen = api.get(candidate["context"])
        assert chosen.status_code == 200
        assert chosen.json()["context"]["customer_key"] == candidate["customer_key"]
    assert key_of(api, ANNA) != key_of(api, BEN)


def test_an_event_that_names_two_people_is_neithers_and_both_are_read_as_before(api: httpx.Client, shop: Shop) -> None:
    shop.event("!" + ANNA, "!" + BEN)
    shop.event("!" + ANNA, "user_id:cleo")
    assert [dict(letter.headers() or ())["segue.err.code"] for letter in shop.letters()] == [
        b"contradictory_identifiers", b"contradictory_identifiers",
    ]  # fmt: skip
    assert (shop.timeline(ANNA), shop.timeline(BEN)) == (["e1"], ["e2"])
    assert read(api, BEN).status_code == read(api, ANNA).status_code == 200
    assert read(api, "user_id:cleo").status_code == 404


def test_two_users_of_a_number_who_turn_out_to_be_one_person_are_one_answer(api: httpx.Client, shop: Shop) -> None:
    shop.event("email:cleo@example.com")
    shop.event("loyalty_id:c1", "phone:+442079460111")
    shop.event("email:cleo@example.com", "phone:+442079460111")
    assert problem(read(api, "phone:+442079460111"), 409)["candidates"][-1]["reason"] == "first"
    shop.command("merge", "email:cleo@example.com", "loyalty_id:c1")
    answer = read(api, "phone:+442079460111")
    assert answer.status_code == 200
    assert answer.json()["context"]["customer_key"] == key_of(api, "email:cleo@example.com")
    shop.command("unmerge", "loyalty_id:c1")
    assert read(api, "phone:+442079460111").status_code == 409


def test_a_stream_by_an_identifier_that_a_second_person_begins_to_use_says_so_and_ends(
    api: httpx.Client, shop: Shop
) -> None:
    shop.event("!" + ANNA, "cookie_id:tablet")
    with SseClient(f"{api.base_url}/v1/customers/cookie_id:tablet/stream") as stream:
        assert stream.next().event == "context"
        shop.event("!" + BEN, "cookie_id:tablet")
        shop.event("!" + ANNA)
        last = stream.next()
        assert last.event == "ambiguous"
        assert {each["customer_key"] for each in last.json()["candidates"]} == {key_of(api, ANNA), key_of(api, BEN)}
        assert stream.ended()


def test_every_reason_is_said_in_both_languages() -> None:
    assert REASONS.keys() == REASONS_ZH.keys()
