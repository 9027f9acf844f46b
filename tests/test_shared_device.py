"""One tablet, several people: whose an event is that names the tablet alone, and whose visit it belongs to."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
import redis

from segue.core.event import Actor, Data, Event, Identifier
from segue.log.port import Output
from segue.resolution import Arrival, Resolution
from segue.store.identity import IdentityIndex
from segue.store.keys import Layout
from segue.topics import event_topic
from tests.support.shop import Shop
from tests.support.stack import EmbeddedStack
from tests.test_rebuild_verify import compared

ANNA, BEN, TABLET = "user_id:anna", "user_id:ben", "cookie_id:tablet"


def happens(shop: Shop, name: str, at: str, *identifiers: str, **data: object) -> None:
    """An event at a time of one day, `HH:MM`; not settled."""
    given = [dict(zip(("type", "value"), each.split(":", 1), strict=True)) for each in identifiers]
    event = {
        "specversion": "1.0", "id": name, "source": "/shop", "type": "page.viewed", "channel": "web",
        "time": f"2025-10-09T{at}:00Z", "data": {"identifiers": given, **data},
    }  # fmt: skip
    shop.stack.append([Output(event_topic("web"), identifiers[0].encode(), orjson.dumps(event))])


def visits(shop: Shop, who: str) -> list[tuple[int, str, str]]:
    """Of each session: how many events, and from when to when (`HH:MM`)."""

    def shown(at_ms: int) -> str:
        return f"{at_ms // 3_600_000 % 24:02}:{at_ms // 60_000 % 60:02}"

    return [
        (each["events"], shown(each["started_at_ms"]), shown(each["last_event_at_ms"]))
        for each in shop.context(who)["sessions"]
    ]


@pytest.mark.parametrize("apart", [True, False], ids=["one_by_one", "in_one_batch"])
def test_a_second_persons_login_splits_the_visit_and_what_follows_on_the_device_is_theirs(
    shop: Shop, *, apart: bool
) -> None:
    story = [
        ("a1", "08:00", (ANNA, TABLET)),
        ("a2", "08:05", (TABLET,)),
        ("b1", "08:10", (BEN, TABLET)),
        ("b2", "08:15", (TABLET,)),
        ("b3", "08:20", (TABLET,)),
        ("a3", "08:25", (ANNA, TABLET)),
        ("a4", "08:30", (TABLET,)),
    ]
    if not apart:
        shop.stack.stop("resolve")
    for name, at, identifiers in story:
        happens(shop, name, at, *identifiers)
        if apart:
            shop.settle()
    if not apart:
        shop.stack.start("resolve")
    shop.settle()
    assert shop.timeline(ANNA) == ["a1", "a2", "a3", "a4"]
    assert shop.timeline(BEN) == ["b1", "b2", "b3"]
    assert visits(shop, ANNA) == [(4, "08:00", "08:30")]
    assert visits(shop, BEN) == [(3, "08:10", "08:20")]


def test_the_first_persons_visit_ends_with_their_last_event_when_they_do_not_come_back(shop: Shop) -> None:
    for name, at, who in [("a1", "08:00", ANNA), ("b1", "08:10", BEN), ("b2", "09:00", BEN)]:
        happens(shop, name, at, who, TABLET)
        happens(shop, name + "x", at, TABLET)
        shop.settle()
    assert visits(shop, ANNA) == [(2, "08:00", "08:00")]
    assert visits(shop, BEN) == [(2, "08:10", "08:10"), (2, "09:00", "09:00")]


def test_what_came_before_the_login_is_the_first_persons_however_late_it_arrives(shop: Shop) -> None:
    for name, at, who in [("a1", "08:00", (ANNA, TABLET)), ("b1", "08:10", (BEN, TABLET)), ("a2", "08:09", (TABLET,))]:
        happens(shop, name, at, *who)
        shop.settle()
    assert shop.timeline(ANNA) == ["a1", "a2"]
    assert shop.timeline(BEN) == ["b1"]


def test_an_address_typed_on_the_device_is_of_whoever_sits_there(shop: Shop) -> None:
    for name, at, who in [
        ("a1", "08:00", (ANNA, TABLET)),
        ("b1", "08:10", (BEN, TABLET)),
        ("b2", "08:11", ("email:ben@example.com", TABLET)),
    ]:
        happens(shop, name, at, *who)
        shop.settle()
    assert shop.timeline("email:ben@example.com") == ["b1", "b2"]


def test_an_agents_work_takes_nobodys_seat(shop: Shop) -> None:
    desk = {"actor": {"kind": Actor("agent").kind, "id": "mia"}}
    happens(shop, "a1", "08:00", ANNA, TABLET)
    shop.settle()
    happens(shop, "b1", "08:10", BEN, TABLET, **desk)
    shop.settle()
    happens(shop, "a2", "08:15", TABLET)
    shop.settle()
    assert shop.timeline(ANNA) == ["a1", "a2"]
    assert shop.said("seat") == []


def test_a_device_of_one_person_has_no_seat_and_each_change_is_said_once(shop: Shop) -> None:
    for name, at, who in [
        ("a1", "08:00", (ANNA, TABLET)),
        ("a2", "08:01", (ANNA, TABLET)),
        ("b1", "08:02", (BEN, TABLET)),
        ("b2", "08:03", (BEN, TABLET)),
        ("a3", "08:04", (ANNA, TABLET)),
    ]:
        happens(shop, name, at, *who)
        shop.settle()
    assert [record["event_id"] for record in shop.said("seat")] == ["b1", "a3"]


def test_seats_are_filled_again_from_the_log_byte_for_byte_and_decide_as_before(
    stack: EmbeddedStack, shop: Shop
) -> None:
    for name, at, who in [("a1", "08:00", (ANNA, TABLET)), ("b1", "08:10", (BEN, TABLET))]:
        happens(shop, name, at, *who)
        shop.settle()
    with redis.Redis.from_url(stack.valkey.url) as client:
        report = compared(stack.settings, client)
        assert (report.first, report.unconfirmed) == (None, 0)
        (key,) = client.keys("*.seats:*")  # type: ignore[misc]
        before = client.get(key)
        stack.stop("resolve")
        client.flushall()
        stack.start("resolve")
        happens(shop, "b2", "08:15", TABLET)
        shop.settle()
        assert client.get(key) == before
    assert shop.timeline(BEN) == ["b1", "b2"]


def test_a_taking_whose_transaction_was_never_committed_is_said_again(redis_client: redis.Redis) -> None:
    def attempt(name: str, minute: int, *identifiers: str) -> Arrival:
        given = tuple(Identifier(*each.split(":", 1)) for each in identifiers)
        at = datetime(2025, 10, 9, 8, minute, tzinfo=UTC)
        event = Event("1.0", name, "/shop", "page.viewed", at, "web", Data(given))
        arrival = Arrival(event, given, identifiers, int(at.timestamp() * 1000), devices=(TABLET,))
        Resolution(IdentityIndex(redis_client, Layout(4)), [arrival], []).settle()
        return arrival

    assert attempt("a1", 0, ANNA, TABLET).sat == ()
    assert [attempt("b1", 10, BEN, TABLET).sat for _ in range(2)] == [(TABLET,)] * 2
    assert attempt("b2", 11, BEN, TABLET).sat == ()
