"""A Redis that is slow, or that answers nothing: everything goes on as far as it can, and nothing waits for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import redis
from typer.testing import CliRunner

from segue.cli import app
from segue.log.port import Output
from segue.store.reader import Reader
from segue.topics import event_topic
from tests.support.kafka_broker import free_ports
from tests.support.proxy import Proxy
from tests.support.stack import ApiServer, EmbeddedStack, eventually
from tests.test_api import problem

CUSTOMERS, ROUNDS = 20, 3


class Shop:
    """A stack whose Redis stands behind a proxy; `reader` goes past it."""

    def __init__(self, stack: EmbeddedStack, proxy: Proxy, api: httpx.Client) -> None:
        self.stack, self.proxy, self.api = stack, proxy, api
        self.reader = Reader(redis.Redis.from_url(stack.valkey.url))

    def events(self, round_: int) -> list[dict[str, Any]]:
        """One of each customer: by name, by device, then by both with a tablet that all of them use."""
        names = ["user_id:u{n}", "cookie_id:c{n}", "user_id:u{n} cookie_id:c{n} cookie_id:tablet"][round_].split()
        return [
            {
                "specversion": "1.0", "id": f"e{round_}-{n}", "source": "/shop", "type": "page.viewed",
                "channel": "web", "time": f"2025-10-09T08:{round_:02}:{n:02}Z",
                "data": {"identifiers": [
                    dict(zip(("type", "value"), name.format(n=n).split(":"), strict=True)) | {"level": "verified"}
                    for name in names
                ]},
            }
            for n in range(CUSTOMERS)
        ]  # fmt: skip

    def append(self, round_: int) -> None:
        told = self.events(round_)
        keys = [f"{event['data']['identifiers'][0]['value']}".encode() for event in told]
        topic = event_topic("web")
        self.stack.append([Output(topic, k, orjson.dumps(e)) for k, e in zip(keys, told, strict=True)])

    def accepted(self) -> int:
        found: int = self.reader.stats()["accepted"]
        return found

    def each_once(self) -> None:
        """Every event is in the document of its own customer, once."""
        self.stack.drain(60)
        self.stack.drain(60)  # a merge's hops are records of their own
        stats = self.reader.stats()
        assert (stats["accepted"], stats["events"]["total"], stats["duplicates"]) == (ROUNDS * CUSTOMERS,) * 2 + (0,)
        for n in range(CUSTOMERS):
            document = orjson.loads(self.reader.context(self.reader.find("user_id", f"u{n}") or "") or b"")
            assert [line["id"] for line in document["timeline"]] == [f"e{round_}-{n}" for round_ in range(ROUNDS)]

    def health(self, monkeypatch: pytest.MonkeyPatch, processor: str) -> str:
        monkeypatch.setenv("SEGUE_REDIS", str(self.stack.settings.redis))
        done = CliRunner().invoke(app, ["health", processor])
        assert done.exit_code == 0, "a restart would not mend it"
        return done.output


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    (port,) = free_ports(1)
    with (
        Proxy(("127.0.0.1", port)) as proxy,
        EmbeddedStack(tmp_path, valkey_port=port, redis=f"redis://127.0.0.1:{proxy.port}/0") as stack,
        ApiServer(stack.settings) as server,
        httpx.Client(base_url=server.ready().url, timeout=30) as api,
    ):
        yield Shop(stack, proxy, api)
        proxy.delay_s, proxy.hold_replies = 0.0, False


def test_a_store_that_takes_a_second_for_each_call_is_slow_and_no_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.append(0)
    shop.stack.drain()
    shop.proxy.delay_s = 0.5
    shop.append(1)
    eventually(lambda: shop.accepted() == 2 * CUSTOMERS, 90, "the events of a second round")
    assert shop.api.get("/v1/customers/user_id:u1/context").status_code == 200
    eventually(lambda: "waits for the store, which took" in shop.health(monkeypatch, "resolve"), 60, "the word on it")
    told = shop.api.get("/metrics").text
    waits = [line for line in told.splitlines() if line.startswith("segue_store_answer_seconds{instance=")]
    assert waits
    assert max(float(line.rpartition(" ")[2]) for line in waits) > 0.5
    shop.append(2)
    eventually(lambda: shop.accepted() == 3 * CUSTOMERS, 90, "the events of a third round")
    shop.proxy.delay_s = 0.0
    shop.each_once()


def test_a_store_that_answers_nothing_holds_nobody_for_ever(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.append(0)
    shop.stack.drain()
    shop.proxy.hold_replies = True
    sent = shop.api.post("/v1/events", json=shop.events(1))
    assert (sent.status_code, sent.json()["accepted"]) == (202, CUSTOMERS), "the log takes them"
    read = shop.api.get("/v1/customers/user_id:u1/context")
    assert problem(read, 503)["type"] == "/problems/store-unavailable"
    assert read.headers["retry-after"]
    assert [error["field"] for error in problem(shop.api.get("/readyz"), 503)["errors"]] == ["store"]
    assert "segue_api_store_up 0.0" in shop.api.get("/metrics").text
    assert "cannot be reached" in shop.health(monkeypatch, "resolve")
    shop.proxy.cut_all()  # what waited is told now; what it tries next is held again
    shop.append(2)
    shop.proxy.hold_replies = False
    shop.proxy.cut_all()
    eventually(lambda: shop.accepted() == ROUNDS * CUSTOMERS, 60, "all events, with no restart")
    shop.each_once()
    assert shop.api.get("/v1/customers/user_id:u1/context").status_code == 200
    outages = [s.counts.get("outages", 0) for s in shop.reader.snapshots()]
    assert all(outages), "each processor says that it had to wait"
