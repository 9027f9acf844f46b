"""A shop whose customers do things on a whole embedded Segue, and what can be read of them afterwards."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import orjson
import redis

from segue.core.lineage import Command
from segue.log.port import Output, Record
from segue.log.sqlite import SqliteLog
from segue.store.reader import Reader
from segue.topics import COMMANDS, DEAD_LETTERS, IDENTITY, event_topic
from tests.support.processes import environment
from tests.support.stack import EmbeddedStack


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
            "time": data.pop("time", f"2025-10-09T08:{self.count // 60 % 60:02}:{self.count % 60:02}Z"),
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


def ask(stack: EmbeddedStack, *arguments: str) -> Any:
    """Run `segue identity ...`; what it prints, as JSON where it is."""
    done = subprocess.run(
        [sys.executable, "-m", "segue", "identity", *arguments],
        env=environment(stack.settings), capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout if done.returncode == 0 else done.stderr
    return orjson.loads(said) if said.startswith(("{", "[")) else said
