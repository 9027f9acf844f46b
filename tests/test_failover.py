"""A Redis behind Sentinels: what is a right address of one, and who follows its primary."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from segue.api.doors import StoreDoor
from segue.errors import SettingsError, StoreUnavailable
from segue.settings import load
from segue.store.address import Address, parse
from segue.store.connect import connect, connect_async, reachable
from tests.support.sentinels import SentinelGroup
from tests.support.stack import eventually


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost:6379/0", Address("redis://localhost:6379/0")),
        ("unix:///tmp/valkey.sock?db=1", Address("unix:///tmp/valkey.sock?db=1")),
        ("redis+sentinel://one/main", Address("redis://sentinel/0", (("one", 26379),), "main")),
        (
            "rediss+sentinel://me:p%40ss@one:1,two,[::1]:3/main/7?ssl_cert_reqs=none&sentinel_password=s",
            Address(
                "rediss://me:p%40ss@sentinel/7?ssl_cert_reqs=none",
                (("one", 1), ("two", 26379), ("::1", 3)),
                "main",
                (("password", "s"),),
            ),
        ),
    ],
)
def test_an_address_is_taken_apart(url: str, address: Address) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379", "http://localhost", "redis://", "redis+sentinel://", "redis+sentinel://one", "redis+sentinel:///main",
        "redis+sentinel://one:port/main", "redis+sentinel://one,,two/main", "redis+sentinel://one/main/zero",
    ],
)  # fmt: skip
def test_a_wrong_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(SettingsError, match=r"SEGUE_REDIS: .*redis\+sentinel://host1:26379"):
        load(redis=url)


def test_no_sentinel_is_an_outage_not_the_end() -> None:
    with pytest.raises(StoreUnavailable), reachable():
        connect("redis+sentinel://127.0.0.1:1/main").ping()


def test_who_answers_in_another_language_is_an_outage_too() -> None:
    """Seen while a machine was cut off: its address led to a gateway, which speaks HTTP."""

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(StoreUnavailable, match="Protocol error"), reachable():
            connect(f"redis://127.0.0.1:{server.getsockname()[1]}").ping()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[SentinelGroup]:
    with SentinelGroup(tmp_path) as started:
        yield started


def test_clients_follow_the_primary_after_a_failover(group: SentinelGroup) -> None:
    client = connect(group.url)
    client.set("said", "before")
    client.wait(2, 5000)

    async def read() -> bytes | None:
        other = connect_async(group.url, 2)
        try:
            found: bytes | None = await other.get("said")
            return found
        finally:
            await other.aclose()

    assert asyncio.run(read()) == b"before"
    old = group.primary
    group.servers[old[1]].kill()

    def written() -> bool:
        try:
            return bool(client.set("said", "after"))
        except redis.RedisError:
            return False

    eventually(written, 20, "a write on the new primary")
    assert group.primary != old
    assert asyncio.run(read()) == b"after"


def test_the_api_s_door_follows_it_too(group: SentinelGroup) -> None:
    async def asked() -> int:
        door, refused = StoreDoor(load(redis=group.url)), 0
        try:
            await door.run(door.queries.ping())
            group.servers[group.primary[1]].kill()
            for _ in range(200):
                try:
                    await door.run(door.queries.ping())
                    return refused
                except StoreUnavailable:
                    refused += 1
                    await asyncio.sleep(0.1)
        finally:
            await door.close()
        raise TimeoutError("no answer after the failover")

    assert asyncio.run(asked()) > 0


def test_a_primary_that_was_replaced_and_lives_on_is_left(group: SentinelGroup) -> None:
    """Two Sentinels may each promote a replica; the first one then takes writes for ten seconds that nobody reads."""
    client = connect(group.url)
    old, new = client.info("server")["tcp_port"], group.replace()
    assert old != new
    eventually(lambda: client.info("server")["tcp_port"] == new, 20, "the one that the Sentinels name")


def test_the_api_s_door_leaves_it_too(group: SentinelGroup) -> None:
    async def port() -> int:
        return int((await (await door.client()).info("server"))["tcp_port"])

    async def followed() -> bool:
        old, new = await port(), group.replace()
        until = time.monotonic() + 20
        while (at := await port()) == old and time.monotonic() < until:
            await asyncio.sleep(0.1)
        await door.close()
        return at == new

    door = StoreDoor(load(redis=group.url))
    assert asyncio.run(followed())
