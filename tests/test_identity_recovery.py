"""Redis lost links of the identity index that were committed: nobody becomes two customers of it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import redis

from segue.log.port import Output
from segue.log.sqlite import SqliteLog
from segue.store.keys import LAYOUT
from segue.topics import IDENTITY, INTERACTIONS
from tests.support.stack import EmbeddedStack


def event(n: int, **identifiers: str) -> Output:
    body = {
        "specversion": "1.0", "id": f"e{n}", "source": "/test", "type": "page.viewed", "channel": "web",
        "time": f"2026-01-05T08:00:{n:02}Z",
        "data": {"identifiers": [{"type": kind, "value": value} for kind, value in identifiers.items()]},
    }  # fmt: skip
    return Output("segue.events.web", b"k", orjson.dumps(body))


def owners(stack: EmbeddedStack) -> dict[str, str]:
    """Whose each event is, as the log says."""
    log = SqliteLog(stack.settings.data_dir / "log.sqlite")
    found = [orjson.loads(record.value() or b"") for record in log.read(INTERACTIONS)]
    return {each["entry"]["id"]: each["customer_key"] for each in found}


@pytest.mark.parametrize("meanwhile", ["runs", "is stopped"])
def test_links_that_redis_lost_are_taken_from_the_log(tmp_path: Path, meanwhile: str) -> None:
    with EmbeddedStack(tmp_path) as stack:
        stack.append(
            [event(1, user_id="anna", email="anna@example.com"), event(2, user_id="ben", phone="+442079460000")]
        )
        stack.drain()
        if meanwhile == "is stopped":
            stack.stop("resolve")
        with redis.Redis.from_url(stack.valkey.url) as client:
            lost = [key for key in client.keys("*") if b"email:anna" in key or b":.customer:" in key]  # type: ignore[union-attr]
            assert lost
            client.delete(*lost)
        stack.valkey.kill()
        stack.valkey.start()
        if meanwhile == "is stopped":
            stack.start("resolve")
        stack.append([event(3, email="anna@example.com"), event(4, user_id="carl", email="anna@example.com")])
        stack.drain()
        whose = owners(stack)
        assert whose["e3"] == whose["e1"]
        assert len({whose[name] for name in ("e1", "e2", "e4")}) == 3  # carl is not anna, though he uses her address
        log = SqliteLog(stack.settings.data_dir / "log.sqlite")
        links = [orjson.loads(record.value() or b"") for record in log.read(IDENTITY)]
        assert sorted(each["identifier"]["value"] for each in links if each["kind"] == "link") == [
            "+442079460000", "anna", "anna@example.com", "ben", "carl",
        ]  # fmt: skip


def test_an_index_that_is_emptied_under_a_running_process_is_taken_from_the_log(tmp_path: Path) -> None:
    """By hand, say; the server goes on, and another process has laid it out again before this one looks."""
    with EmbeddedStack(tmp_path) as stack:
        stack.append([event(1, user_id="anna", email="anna@example.com")])
        stack.drain()
        stack.stop("resolve")
        stack.start("resolve")  # its cache is empty
        stack.append([event(2, user_id="ben")])
        stack.drain()
        with redis.Redis.from_url(stack.valkey.url) as client, client.pipeline() as pipe:
            layout = client.get(LAYOUT)
            assert isinstance(layout, bytes)
            pipe.flushall().set(LAYOUT, layout).execute()
        stack.append([event(3, email="anna@example.com")])
        stack.drain()
        whose = owners(stack)
        assert whose["e3"] == whose["e1"]
