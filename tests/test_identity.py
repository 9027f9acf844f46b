"""Identity through the whole of Segue: who is merged, who is not, what readers see, and what an operator undoes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from segue.cli import identity as cli
from segue.core.event import Identifier
from segue.core.identity import MAX_ABSORBED, REFUSALS
from segue.core.lineage import Command
from segue.log.port import Output, Record
from segue.log.sqlite import SqliteLog
from segue.orders import Plan, give, unmerging
from segue.store.reader import Reader
from segue.topics import COMMANDS, DEAD_LETTERS, IDENTITY, JOURNEY_STEPS, SIGNALS, event_topic
from tests.support.processes import environment
from tests.support.stack import EmbeddedStack

T0 = 1_760_000_000
USER, COOKIE = "user_id:anna", "cookie_id:tablet"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[EmbeddedStack]:
    with EmbeddedStack(tmp_path) as stack:
        yield stack


class Shop:
    """Sends events and reads what became of them."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self.stack = stack
        self.count = self.commands = 0
        self.reader = Reader(redis.Redis.from_url(stack.valkey.url))

    def event(self, *identifiers: str, settle: bool = True, **data: Any) -> str:
        """`type:value`, and `!` in front of a verified one. Returns the event's id."""
        self.count += 1
        given = []
        for each in identifiers:
            kind, _, value = each.lstrip("!").partition(":")
            given.append({"type": kind, "value": value, "level": "verified" if each.startswith("!") else "claimed"})
        event = {
            "specversion": "1.0",
            "id": f"e{self.count}",
            "source": "/shop",
            "type": data.pop("type", "page.viewed"),
            "time": f"2025-10-09T08:{self.count // 60 % 60:02}:{self.count % 60:02}Z",
            "channel": data.pop("channel", "web"),
            "data": {"identifiers": given, **data},
        }
        topic = event_topic(event["channel"])
        self.stack.append([Output(topic, identifiers[0].encode(), orjson.dumps(event))])
        if settle:
            self.settle()
        return event["id"]

    def command(self, action: str, identifier: str, other: str | None = None) -> None:
        self.commands += 1
        command = Command(f"c{self.commands}", action, identifier, other)  # type: ignore[arg-type]
        self.stack.append(
            [Output(COMMANDS, identifier.encode(), orjson.dumps({k: v for k, v in asdict(command) if v}))]
        )
        self.settle()

    def settle(self) -> None:
        for _ in range(3):  # each hop of a merge is a record of its own
            self.stack.drain()

    def context(self, identifier: str) -> dict[str, Any]:
        key = self.reader.find(*identifier.split(":", 1))
        assert key is not None, identifier
        raw = self.reader.context(key)
        assert raw is not None
        found: dict[str, Any] = orjson.loads(raw)
        return found

    def timeline(self, identifier: str) -> list[str]:
        return [entry["id"] for entry in self.context(identifier)["timeline"]]

    def records(self, topic: str) -> list[dict[str, Any]]:
        log = SqliteLog(self.stack.settings.data_dir / "log.sqlite")
        try:
            return [orjson.loads(record.value() or b"{}") for record in log.read(topic)]
        finally:
            log.close()

    def letters(self) -> list[Record]:
        log = SqliteLog(self.stack.settings.data_dir / "log.sqlite")
        try:
            return list(log.read(DEAD_LETTERS))
        finally:
            log.close()

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records(IDENTITY) if record["kind"] == kind]


def asdict(command: Command) -> list[tuple[str, Any]]:
    return [(name, getattr(command, name)) for name in command.__struct_fields__]


@pytest.fixture
def shop(stack: EmbeddedStack) -> Shop:
    return Shop(stack)


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


def ask(stack: EmbeddedStack, *arguments: str) -> Any:
    """Run `segue identity ...`; what it prints, as JSON where it is."""
    done = subprocess.run(
        [sys.executable, "-m", "segue", "identity", *arguments],
        env=environment(stack.settings), capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout if done.returncode == 0 else done.stderr
    return orjson.loads(said) if said.startswith(("{", "[")) else said


def test_the_command_line_shows_the_graph_and_takes_an_operators_word(shop: Shop, stack: EmbeddedStack) -> None:
    shop.event("!" + USER)
    shop.event(COOKIE)
    shop.event("!user_id:ben", "cookie_id:ours")
    shop.event("!" + USER, COOKIE)
    shop.event("!" + USER, "cookie_id:ours")
    shown = ask(stack, "show", USER)
    assert [(link["identifier"], link["event_id"]) for link in shown["links"]] == [
        (USER, "e1"), (COOKIE, "e2"), ("cookie_id:ours", "e3"),
    ]  # fmt: skip
    assert shown["links"][2]["customer_key"] == shop.context("user_id:ben")["customer_key"], "used, and another's"
    assert [merge["event_id"] for merge in shown["merges"]] == ["e4"]
    (candidate,) = ask(stack, "candidates", "cookie_id:ours")
    assert (candidate["reason"], candidate["event_id"]) == ("another_person", "e5")
    assert candidate["customer_key"] == shown["customer_key"]
    would = ask(stack, "unmerge", COOKIE, "--dry-run")["would_leave"]
    assert (would["identifiers"], would["interactions"]) == ([COOKIE], 1)
    assert shop.timeline(USER) == ["e1", "e2", "e4", "e5"]
    said = ask(stack, "unmerge", COOKIE)
    assert shop.timeline(USER) == ["e1", "e4", "e5"], "what is said to be done can be read"
    assert ("taken out" in said, "拆分完成" in said) == (True, True)
    would = ask(stack, "merge", COOKIE, USER, "--dry-run")["would_merge"]
    assert (would["survivor"], would["absorbed"]) == (shown["customer_key"], shop.context(COOKIE)["customer_key"])
    said = ask(stack, "merge", USER, COOKIE)
    assert shop.timeline(COOKIE) == ["e1", "e2", "e4", "e5"]
    assert ("merged" in said, "合并完成" in said) == (True, True)


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


def test_a_storm_of_merges_stops_at_the_limit_and_loses_nothing(shop: Shop) -> None:
    storm = MAX_ABSORBED + 50
    shop.event("!" + USER)
    for number in range(storm):
        shop.event(f"cookie_id:c{number}", settle=False)
    shop.settle()
    for number in range(storm):
        shop.event("!" + USER, f"cookie_id:c{number}", settle=False)
    shop.settle()
    shop.settle()
    kin = shop.context(USER)["kin"]
    assert len(kin["absorbed"]) == MAX_ABSORBED - 1
    assert shop.context(USER)["channels"] == {"web": 1 + storm + MAX_ABSORBED - 1}
    stats = shop.reader.stats()
    assert stats["events"]["total"] == 1 + 2 * storm
    assert stats["customers"] == 1 + storm - (MAX_ABSORBED - 1)
    assert {record["reason"] for record in shop.said("candidate")} == {"too_many"}


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
    keys: Any = client.keys("segue:1:{*}:*")
    return {key: client.get(key) for key in keys if b":ctx:" in key or b":sig:" in key}


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
