"""Identity through the whole of Segue: who is merged, who is not, what readers see, and what an operator undoes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import redis

from segue.cli import identity as cli
from segue.core import identity
from segue.core.event import Identifier
from segue.core.identity import MAX_ABSORBED, REASONS, REASONS_ZH, REFUSALS
from segue.log.sqlite import SqliteLog
from segue.orders import Plan, give, unmerging
from segue.topics import COMMANDS, JOURNEY_STEPS, SIGNALS
from tests.support.contexts import contexts
from tests.support.processes import environment
from tests.support.shop import Shop, ask
from tests.support.stack import EmbeddedStack, eventually

USER, COOKIE = "user_id:anna", "cookie_id:tablet"


def test_a_login_on_a_known_device_makes_one_customer_of_two_whichever_identifier_one_asks_by(shop: Shop) -> None:
    shop.event("!" + USER)
    shop.event(COOKIE)
    shop.event("!" + USER, COOKIE)
    shop.event(COOKIE)
    assert shop.timeline(USER) == shop.timeline(COOKIE) == ["e1", "e2", "e3", "e4"]
    assert shop.context(USER)["customer_key"] == shop.context(COOKIE)["customer_key"]
    (merge,) = shop.said("merge")
    assert merge["event_id"] == "e3"
    assert merge["merge"]["reason"] == "user_id with cookie_id"
    assert merge["customer_key"] == shop.context(USER)["customer_key"], "the elder survives"
    assert shop.reader.stats()["customers"] == 1
    steps = [step for step in shop.records(JOURNEY_STEPS) if step["entry"]["id"].startswith("e")]
    assert sorted(step["entry"]["id"] for step in steps) == ["e1", "e2", "e3", "e4"]


def test_two_people_on_one_tablet_stay_two_and_what_came_before_is_not_relabelled(shop: Shop) -> None:
    shop.event(COOKIE)
    shop.event("!" + USER, COOKIE)
    shop.event("!user_id:ben", COOKIE)
    shop.event("!user_id:ben", COOKIE)
    assert shop.timeline(USER) == shop.timeline(COOKIE) == ["e1", "e2"]
    assert shop.timeline("user_id:ben") == ["e3", "e4"]
    anna, ben = shop.context(USER)["sessions"], shop.context("user_id:ben")["sessions"]
    assert [session["events"] for session in anna + ben] == [2, 2], "the visit was split at the second login"
    (candidate,) = shop.said("candidate")
    assert (candidate["event_id"], candidate["reason"]) == ("e3", "another_person")


def test_whoever_types_anothers_address_does_not_get_their_context(shop: Shop) -> None:
    shop.event("email:anna@example.com", text="my order is late")
    shop.event("!user_id:eve")
    shop.event("!user_id:eve", "email:anna@example.com")
    assert shop.timeline("user_id:eve") == ["e2", "e3"]
    assert shop.said("merge") == []
    assert [record["reason"] for record in shop.said("candidate")] == ["not_verified"]


def test_undoing_a_merge_gives_each_side_what_is_theirs_and_they_stay_apart(shop: Shop) -> None:
    shop.event("!" + USER)
    shop.event(COOKIE)
    shop.event("!" + USER, COOKIE)
    shop.event(COOKIE, "email:ben@example.com")
    shop.command("unmerge", COOKIE)
    assert shop.timeline(USER) == ["e1", "e3"]
    assert shop.timeline(COOKIE) == shop.timeline("email:ben@example.com") == ["e2", "e4"]
    shop.event("!" + USER, COOKIE)
    shop.event(COOKIE)
    assert shop.timeline(USER) == ["e1", "e3", "e5"]
    assert shop.timeline(COOKIE) == ["e2", "e4", "e6"]
    assert [record["reason"] for record in shop.said("candidate")] == ["kept_apart"]
    assert shop.reader.stats()["customers"] == 2


def test_the_command_line_shows_the_graph_and_takes_an_operators_word(shop: Shop, stack: EmbeddedStack) -> None:
    shop.event("!" + USER)
    shop.event(COOKIE)
    shop.event("!user_id:ben", "cookie_id:ours")
    shop.event("!" + USER, COOKIE)
    shop.event("!" + USER, "cookie_id:ours")
    shop.event("cookie_id:lonely")
    shown = ask(stack, "show", USER, "--json")
    assert [(link["identifier"], link["event_id"]) for link in shown["links"]] == [
        (USER, "e1"), (COOKIE, "e2"), ("cookie_id:ours", "e3"),
    ]  # fmt: skip
    assert shown["links"][2]["customer_key"] == shop.context("user_id:ben")["customer_key"], "used, and another's"
    assert [merge["event_id"] for merge in shown["merges"]] == ["e4"]
    (candidate,) = ask(stack, "candidates", "cookie_id:ours", "--json")
    assert (candidate["reason"], candidate["event_id"]) == ("another_person", "e5")
    assert candidate["customer_key"] == shown["customer_key"]
    assert candidate["why"] == {"en": REASONS["another_person"], "zh": REASONS_ZH["another_person"]}
    words = ask(stack, "show", USER)
    assert all(each in words for each in (USER, COOKIE, "cookie_id:ours", "e4", "20", "双方的唯一标识不同"))
    assert "nobody else" in ask(stack, "candidates", COOKIE.replace("tablet", "lonely"))
    would = ask(stack, "unmerge", COOKIE, "--dry-run")["would_leave"]
    assert (would["identifiers"], would["interactions"]) == ([COOKIE], 1)
    assert shop.timeline(USER) == ["e1", "e2", "e4", "e5"]
    said = ask(stack, "unmerge", COOKIE)
    assert shop.timeline(USER) == ["e1", "e4", "e5"], "what is said to be done can be read"
    assert ("taken out" in said, "拆分完成" in said) == (True, True)
    assert ask(stack, "show", USER, "--json")["apart"] == [shop.context(COOKIE)["customer_key"]]
    would = ask(stack, "merge", COOKIE, USER, "--dry-run")["would_merge"]
    assert (would["survivor"], would["absorbed"]) == (shown["customer_key"], shop.context(COOKIE)["customer_key"])
    said = ask(stack, "merge", USER, COOKIE)
    assert shop.timeline(COOKIE) == ["e1", "e2", "e4", "e5"]
    assert ("merged" in said, "合并完成" in said) == (True, True)
    assert ask(stack, "show", USER, "--json")["apart"] == [], "an operator took it back"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("show", "user_id:nobody"), "identifier: no customer has this identifier\n没有客户使用此标识"),
        (("candidates", "user_id:nobody"), "identifier: no customer has this identifier"),
        (("merge", USER, "user_id:nobody"), "other: no customer has this identifier"),
        (("merge", USER, "cookie_id:ours"), "other: these identifiers are of one customer already"),
        (("merge", USER, USER), "other: these identifiers are of one customer already"),
        (("merge", USER, "user_id:ben"), "other: they have unlike unique identifiers"),
        (("merge", "cookie_id:ours", "user_id:ben", "--dry-run"), "双方的唯一标识不同"),
        (("unmerge", "user_id:nobody"), "identifier: no customer has this identifier"),
        (("unmerge", COOKIE), "identifier: this identifier's customer is not merged into another"),
        (("unmerge", "user_id:ben", "--dry-run"), "该标识的客户当前未并入其他客户"),
        (("unmerge", "anna"), "write type:value"),
    ],
)
def test_what_cannot_be_done_is_said_at_once_with_what_to_do_in_both_languages(
    refusing: Shop, command: tuple[str, ...], says: str
) -> None:
    before = len(refusing.records(COMMANDS))
    assert says in ask(refusing.stack, *command)
    assert len(refusing.records(COMMANDS)) == before


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Anna and her cookie are one; Ben is another; and a tablet was taken out of Anna's customer again."""
    with EmbeddedStack(tmp_path_factory.mktemp("refusing")) as stack:
        shop = Shop(stack)
        shop.event("!" + USER)
        shop.event(COOKIE)
        shop.event("cookie_id:ours")
        shop.event("!" + USER, COOKIE)
        shop.event("!" + USER, "cookie_id:ours")
        shop.event("!user_id:ben")
        shop.command("unmerge", COOKIE)
        yield shop


def test_an_order_that_resolve_refuses_is_said_to_be_refused_and_why(shop: Shop, stack: EmbeddedStack) -> None:
    shop.event("!" + USER)
    shop.event(COOKIE)
    shop.event("!" + USER, COOKIE)
    plan = shop.reader.run(lambda queries: unmerging(queries, (Identifier("cookie_id", "tablet"), "identifier")))
    assert isinstance(plan, Plan)
    shop.command("unmerge", COOKIE)  # by somebody else, meanwhile
    log = SqliteLog(stack.settings.data_dir / "log.sqlite")
    try:
        said = give(log, plan, 20)
    finally:
        log.close()
    assert said is not None
    assert (said.kind, said.reason, said.event_id) == ("refused", "not_merged", plan.command.command_id)


def test_a_merge_that_readers_do_not_see_yet_is_not_undone_and_the_answer_says_so(
    shop: Shop, stack: EmbeddedStack
) -> None:
    shop.event("!" + USER)
    shop.event(COOKIE)
    stack.stop("context")
    shop.event("!" + USER, COOKIE, settle=False)
    eventually(lambda: shop.said("merge"), what="the merge in the log")
    said = ask(stack, "unmerge", COOKIE)
    assert ("has not reached the survivor's context" in said, "一秒后" in said) == (True, True)
    stack.start("context")
    shop.settle()
    assert "taken out" in ask(stack, "unmerge", COOKIE)


def test_every_refusal_is_said_in_both_languages_and_what_does_not_run_is_said_too(
    shop: Shop, stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(re.search("[\u4e00-\u9fff]", chinese) for _, chinese in REFUSALS.values())
    shop.event("!" + USER)
    shop.event(COOKIE)
    stack.stop("resolve")
    for name, value in environment(stack.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "PATIENCE_S", 0.2)
    cli.merge_command(USER, COOKIE)
    said = capsys.readouterr().out
    assert ("not done yet" in said, "尚未完成" in said) == (True, True)
    stack.start("resolve")
    shop.settle()
    assert shop.timeline(COOKIE) == ["e1", "e2"]


def test_an_operator_merges_two_but_not_two_people_with_names(shop: Shop) -> None:
    shop.event("!" + USER)
    shop.event("email:anna@example.com")
    shop.event("!user_id:ben")
    shop.command("merge", USER, "email:anna@example.com")
    assert shop.timeline("email:anna@example.com") == ["e1", "e2"]
    shop.command("merge", "email:anna@example.com", "user_id:ben")
    shop.command("unmerge", "user_id:ben")
    shop.command("unmerge", "user_id:nobody")
    shop.command("merge", USER, USER)
    shop.command("merge", "email:anna@example.com", USER)
    assert sorted((record["event_id"], record["reason"]) for record in shop.said("refused")) == [
        ("c2", "another_person"), ("c3", "not_merged"), ("c4", "unknown_customer"), ("c5", "same_customer"),
        ("c6", "same_customer"),
    ]  # fmt: skip
    assert all(record["reason"] in REFUSALS for record in shop.said("refused"))
    assert shop.timeline("user_id:ben") == ["e3"]


def test_a_name_that_came_with_the_absorbed_leaves_with_it(shop: Shop) -> None:
    shop.event(COOKIE)
    shop.event("!" + USER)
    shop.event("!" + USER, COOKIE)
    shop.event("!user_id:ben", COOKIE)
    assert shop.timeline("user_id:ben") == ["e4"], "the cookie's customer is called anna now"
    shop.command("unmerge", USER)
    assert shop.timeline(COOKIE) == ["e1"]
    assert shop.timeline(USER) == ["e2", "e3"]
    shop.event("!user_id:carl", COOKIE)
    assert shop.timeline(COOKIE) == shop.timeline("user_id:carl") == ["e1", "e5"], "and is free to be called carl"


STORM = 1000


def test_of_a_storm_of_merges_into_one_as_many_are_merged_as_may_and_every_event_counts_once(shop: Shop) -> None:
    """Judged by what was sent, and by the log and the store as anybody reads them."""
    devices = [f"cookie_id:c{number}" for number in range(STORM)]
    shop.event("!" + USER)
    for device in devices:
        shop.event(device, settle=False)
    shop.settle()
    for device in devices:
        shop.event("!" + USER, device, settle=False)
    shop.settle()
    shop.settle()
    merged, alone = devices[: MAX_ABSORBED - 1], devices[MAX_ABSORBED - 1 :]

    assert len(shop.said("merge")) == len(merged)
    pairs = Counter((r["identifier"]["value"], r["reason"]) for r in shop.said("candidate"))
    assert pairs == Counter((device.partition(":")[2], "too_many") for device in alone)
    assert shop.letters() == []

    steps = Counter(step["entry"]["id"] for step in shop.records(JOURNEY_STEPS))
    sent = {f"e{number}" for number in range(1, shop.count + 1)}
    assert {event: steps[event] for event in sent} == dict.fromkeys(sent, 1), "nothing lost, nothing twice"
    facts = Counter(fact["fact"] for step in shop.records(JOURNEY_STEPS) for fact in step.get("facts", ()))
    assert facts["customer.created"] - facts["customer.merged"] == 1 + len(alone)

    one = shop.context(USER)
    assert len(one["kin"]["absorbed"]) == len(merged)
    assert one["channels"] == {"web": 1 + len(merged) + STORM}, "what was theirs, and what named them and another"
    assert {shop.context(device)["customer_key"] for device in merged} == {one["customer_key"]}
    for device in alone:
        theirs = shop.context(device)
        assert (theirs["channels"], theirs.get("kin")) == ({"web": 1}, None), "they stay as they were"
    stats = shop.reader.stats()
    assert (stats["events"]["total"], stats["customers"]) == (1 + 2 * STORM, 1 + len(alone))

    assert f"more than {MAX_ABSORBED} customers" in ask(shop.stack, "merge", USER, alone[0])
    shop.command("merge", USER, alone[0])
    assert [record["reason"] for record in shop.said("refused")] == ["too_many"], "nor by an operator who insists"
    shop.command("unmerge", merged[0])
    shop.event("!" + USER, alone[0])
    shop.settle()
    assert shop.context(alone[0])["customer_key"] == one["customer_key"], "there is room again"


def test_three_who_are_linked_in_a_circle_are_one_and_the_last_link_changes_nothing(shop: Shop) -> None:
    circle = ["!" + USER, COOKIE, "!email:anna@example.com"]
    for each in circle:
        shop.event(each)
    for n in range(3):
        shop.event(circle[n], circle[(n + 1) % 3])
    shop.event(circle[1])
    every = [f"e{n}" for n in range(1, 8)]
    assert shop.timeline(USER) == shop.timeline(COOKIE) == shop.timeline("email:anna@example.com") == every
    assert [record["event_id"] for record in shop.said("merge")] == ["e4", "e5"]
    assert shop.said("candidate") == []


def test_an_operators_circle_ends_where_it_closes_and_the_elder_stays_the_elder(shop: Shop) -> None:
    a, b, c = "phone:+442079460111", "cookie_id:b", "email:c@example.com"
    for each in (a, b, c):
        shop.event(each)
    eldest = shop.context(a)["customer_key"]
    for one, other in ((b, c), (c, a), (a, b)):
        shop.command("merge", one, other)
    assert [record["reason"] for record in shop.said("refused")] == ["same_customer"]
    assert {shop.context(each)["customer_key"] for each in (a, b, c)} == {eldest}
    assert shop.timeline(c) == ["e1", "e2", "e3"]
    shop.command("unmerge", b)
    for one, other in ((a, b), (b, c)):
        shop.command("merge", one, other)
    assert [record["reason"] for record in shop.said("refused")][1:] == ["same_customer"]
    assert {shop.context(each)["customer_key"] for each in (a, b, c)} == {eldest}


def test_a_number_that_was_given_to_somebody_else_stays_the_firsts_and_merges_nobody(shop: Shop) -> None:
    number = "phone:+442079460958"
    shop.event("!" + USER, "!" + number)
    shop.event("!user_id:ben", "!" + number)
    shop.event("!" + number)
    shop.event("!user_id:ben")
    assert (shop.timeline(USER), shop.timeline("user_id:ben")) == (["e1", "e3"], ["e2", "e4"])
    assert [(record["event_id"], record["reason"]) for record in shop.said("candidate")] == [("e2", "another_person")]
    for _ in range(2):
        shop.event("!loyalty_id:l7", "!" + number)
    assert shop.timeline("loyalty_id:l7") == ["e5", "e6"], "a number of several people says nothing of a third"
    assert sorted(record["reason"] for record in shop.said("candidate")) == ["another_person", "shared"]
    assert shop.said("merge") == []


def test_who_is_the_elder_goes_by_receipt_whatever_times_their_events_claim(shop: Shop) -> None:
    shop.event("!" + USER, time="9999-12-31T23:59:59Z")
    shop.event(COOKIE, time="0001-01-01T00:00:00Z")
    shop.event("!" + USER, COOKIE, time="1971-01-01T00:00:00Z")
    shop.settle()
    (merge,) = shop.said("merge")
    assert merge["customer_key"] == shop.context(COOKIE)["customer_key"]
    assert merge["customer_key"] == identity.new_key(Identifier("user_id", "anna"))
    context = shop.context(USER)
    assert sorted(shop.timeline(COOKIE)) == ["e1", "e2", "e3"]
    received = [entry["received_at_ms"] for entry in context["timeline"] if entry["id"] != "e3"]
    claimed = [entry["event_time_ms"] for entry in context["timeline"] if entry["id"] != "e3"]
    assert claimed == received, "neither is a time at which anything can have happened"


def test_signals_of_both_become_the_survivors_and_a_cooldown_holds_for_both(shop: Shop) -> None:
    answer = {"type": "survey.answered", "channel": "survey", "survey": {"metric": "csat", "score": 1}}
    shop.event("!" + USER, **answer)
    shop.event(COOKIE, **answer)
    shop.event("!" + USER, COOKIE)
    shop.settle()
    signals = orjson.loads(shop.reader.signals(shop.reader.find("cookie_id", "tablet") or ""))
    assert [signal["evidence"] for signal in signals] == [["e1"], ["e2"]]
    assert len(shop.records(SIGNALS)) == 2
    shop.command("unmerge", COOKIE)
    shop.settle()
    for identifier, event in ((USER, "e1"), (COOKIE, "e2")):
        key = shop.context(identifier)["customer_key"]
        assert [signal["evidence"] for signal in orjson.loads(shop.reader.signals(key))] == [[event]]
    assert len(shop.records(SIGNALS)) == 2


def documents(client: redis.Redis) -> dict[bytes, Any]:
    keys: Any = client.keys("segue:1:{*}:sig:*")
    return contexts(client) | {key: client.get(key) for key in keys}


def test_an_emptied_redis_is_rebuilt_byte_for_byte_merges_and_all(shop: Shop, stack: EmbeddedStack) -> None:
    shop.event("!" + USER)
    shop.event(COOKIE)
    shop.event("!" + USER, COOKIE)
    shop.event(COOKIE, "email:anna@example.com")
    shop.event("phone:+8613800138000")
    shop.command("merge", USER, "phone:+8613800138000")
    shop.command("unmerge", COOKIE)
    with redis.Redis.from_url(stack.valkey.url) as client:
        before = documents(client)
        for name in ("resolve", "context", "signals"):
            stack.stop(name)
        client.flushall()
        for name in ("resolve", "context", "signals"):
            stack.start(name)
        shop.settle()
        assert documents(client) == before
    shop.event("!" + USER, COOKIE)
    assert [record["reason"] for record in shop.said("candidate")] == ["kept_apart"], "the index knows it again"
