"""The proxy of the fault tests: each fault is really there, and nothing but it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from segue.embedded.valkey import EmbeddedValkey
from tests.support.proxy import Address, Proxies, Proxy, address_of
from tests.support.stack import eventually


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Address, Address]]:
    """Two servers that say their names under the key `name`."""
    with EmbeddedValkey(tmp_path / "a", port=0) as first, EmbeddedValkey(tmp_path / "b", port=0) as second:
        for name, server in (("first", first), ("second", second)):
            with redis.Redis.from_url(server.url) as client:
                client.set("name", name)
        yield address_of(first.url), address_of(second.url)


def client_of(proxy: Proxy, timeout_s: float = 5) -> redis.Redis:
    return redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, protocol=2)


def test_traffic_passes_whole(servers: tuple[Address, Address]) -> None:
    large = bytes(range(256)) * 4000
    with Proxy(servers[0]) as proxy, client_of(proxy) as client:
        client.set("large", large)
        assert client.get("large") == large
        assert proxy.counts == {"connections": 1}


def test_a_delay_is_added_to_each_direction(servers: tuple[Address, Address]) -> None:
    with Proxy(servers[0]) as proxy, client_of(proxy) as client:
        client.ping()
        proxy.delay_s = 0.1
        began = time.monotonic()
        client.ping()
        assert time.monotonic() - began >= 0.2


def test_a_stall_holds_one_piece_back(servers: tuple[Address, Address]) -> None:
    with Proxy(servers[0]) as proxy, client_of(proxy, timeout_s=0.2) as client:
        client.ping()
        proxy.stall_rate, proxy.stall_s = 1.0, 1.0
        with pytest.raises(redis.TimeoutError):
            client.ping()
        proxy.stall_rate = 0.0
        assert client.ping()
        assert proxy.counts["stalls"] >= 1


def test_a_reply_breaks_off_half_way_though_the_server_did_the_work(servers: tuple[Address, Address]) -> None:
    with Proxy(servers[0]) as proxy, client_of(proxy) as client:
        client.ping()
        proxy.cut_rate = 1.0
        with pytest.raises(redis.ConnectionError):
            client.set("done", "yes")
        proxy.cut_rate = 0.0
        assert client.get("done") == b"yes"
        assert proxy.counts["cuts"] == 1


@pytest.mark.parametrize("direction", ["requests", "replies"])
def test_a_held_direction_is_silent_and_passes_what_it_held_afterwards(
    servers: tuple[Address, Address], direction: str
) -> None:
    with Proxy(servers[0]) as proxy, client_of(proxy, timeout_s=0.2) as client, client_of(proxy) as other:
        client.ping()
        setattr(proxy, f"hold_{direction}", True)
        with pytest.raises(redis.TimeoutError):
            client.incr("asked")
        setattr(proxy, f"hold_{direction}", False)
        eventually(lambda: other.get("asked") == b"1", what="what was held back")


def test_a_switch_moves_a_living_connection(servers: tuple[Address, Address]) -> None:
    with Proxy(servers[0]) as proxy, client_of(proxy) as client:
        assert client.get("name") == b"first"
        proxy.switch(servers[1])
        assert client.get("name") == b"second"
        assert proxy.counts == {"connections": 1, "switched": 1}


def test_a_switch_waits_for_the_end_of_a_transaction(servers: tuple[Address, Address]) -> None:
    with Proxy(servers[0]) as proxy, client_of(proxy) as client:
        with client.pipeline() as pipe:
            pipe.watch("name")
            proxy.switch(servers[1])
            pipe.multi()
            pipe.get("name")
            assert pipe.execute() == [b"first"]
        assert client.get("name") == b"second"


def test_every_connection_is_cut_and_new_ones_are_taken(servers: tuple[Address, Address]) -> None:
    with Proxy(servers[0]) as proxy, client_of(proxy) as client:
        with client.pipeline() as pipe:  # keeps its connection
            pipe.watch("name")
            proxy.cut_all()
            with pytest.raises(redis.WatchError, match="ConnectionError"):
                pipe.get("name")
        assert client.ping()


def test_the_proxies_of_several_servers_are_turned_together(servers: tuple[Address, Address]) -> None:
    proxies = Proxies([Proxy(server) for server in servers]).start()
    try:
        clients = [client_of(proxy) for proxy in proxies.each]
        assert [client.get("name") for client in clients] == [b"first", b"second"]
        proxies.cut_rate = 1.0
        for client in clients:
            with pytest.raises(redis.ConnectionError):
                client.get("name")
        assert proxies.counts == {"connections": 2, "cuts": 2}
    finally:
        proxies.stop()
