"""Connecting to Redis or Valkey, and refusing one that would lose contexts."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import redis
import redis.asyncio
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from segue.errors import SettingsError, StoreUnavailable
from segue.store.address import Address, parse
from segue.store.keys import HOLD, LAYOUT, MARK, Layout

SENTINEL_S = 1.0
"""How long a Sentinel may take to answer before the next one is asked."""
FOLLOW_S = 1.0
"""How often Sentinels are asked who the master is, beside each connect. One that was replaced may live on: connections
to it stay, and it takes writes that nobody will see, until the Sentinels make a replica of it, after ten seconds."""

_following: set[asyncio.Task[None]] = set()
"""An event loop itself does not keep its tasks."""


def connect(url: str) -> redis.Redis:
    """Return a client for `url`. It does not retry by itself: a lost reply is an unknown outcome, not a no."""
    address, retry = parse(url), Retry(NoBackoff(), 0)
    if not address.sentinels:
        return redis.Redis.from_url(url, **_options(retry, 10, 3))
    sentinels = _sentinels(Sentinel, address, retry)
    found: redis.Redis = sentinels.master_for(address.service, **_for_master(address, retry, 10, 3))
    asked = weakref.ref(found.connection_pool), _sentinels(Sentinel, address, retry), address.service
    threading.Thread(target=_follow, args=asked, name="sentinels", daemon=True).start()
    return found


def connect_async(url: str, timeout_s: float) -> redis.asyncio.Redis:
    """The same for asyncio, with one timeout for all. To be called in the event loop."""
    address, retry = parse(url), redis.asyncio.retry.Retry(NoBackoff(), 0)
    if not address.sentinels:
        return redis.asyncio.Redis.from_url(url, **_options(retry, timeout_s, timeout_s))
    sentinels = _sentinels(AsyncSentinel, address, retry)
    found: redis.asyncio.Redis = sentinels.master_for(
        address.service, **_for_master(address, retry, timeout_s, timeout_s)
    )
    asked = weakref.ref(found.connection_pool), _sentinels(AsyncSentinel, address, retry), address.service
    task = asyncio.create_task(_follow_async(*asked))
    _following.add(task)
    task.add_done_callback(_following.discard)
    return found


def _follow(pool: weakref.ref[Any], sentinels: Any, service: str) -> None:
    """As long as there is the pool: let go of its idle connections when the master is another. The next connect asks
    who it is, and what was in use then is not taken back."""
    while pool() is not None:
        with suppress(redis.RedisError):  # without an answer the master is who it was
            master = sentinels.discover_master(service)
            connections = pool()
            if connections is not None and connections.master_address not in (None, master):
                connections.disconnect(inuse_connections=False)
            del connections
        time.sleep(FOLLOW_S)


async def _follow_async(pool: weakref.ref[Any], sentinels: Any, service: str) -> None:
    """The same for asyncio."""
    while pool() is not None:
        with suppress(redis.RedisError):
            master = await sentinels.discover_master(service)
            connections = pool()
            if connections is not None and connections.master_address not in (None, master):
                await connections.disconnect(inuse_connections=False)
            del connections
        await asyncio.sleep(FOLLOW_S)


def _options(retry: Any, timeout_s: float, connect_s: float) -> dict[str, Any]:
    return {
        "retry": retry,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_s,
        "health_check_interval": 0,
        "protocol": 2,
    }


def _sentinels(kind: Any, address: Address, retry: Any) -> Any:
    """Sentinels for one to ask: redis-py swaps them in their list while it asks, so two at once would lose some."""
    return kind(address.sentinels, sentinel_kwargs=_for_sentinels(address, retry))


def _for_sentinels(address: Address, retry: Any) -> dict[str, Any]:
    """They are asked at every connect, one after the other, until one knows."""
    return dict(address.sentinel_options) | _tls(address) | _options(retry, SENTINEL_S, SENTINEL_S)


def _for_master(address: Address, retry: Any, timeout_s: float, connect_s: float) -> dict[str, Any]:
    given = _given(address)
    own = {name: value for name, value in given.items() if name not in ("host", "port", "connection_class")}
    return own | _tls(address) | _options(retry, timeout_s, connect_s)


def _tls(address: Address) -> dict[str, Any]:
    """The `ssl_...` options, for the Sentinels too: one authority covers both."""
    if not address.url.startswith("rediss:"):
        return {}
    return {"ssl": True} | {name: value for name, value in _given(address).items() if name.startswith("ssl_")}


def _given(address: Address) -> dict[str, Any]:
    """User, password, database and options, as redis-py reads them from a URL."""
    return dict(redis.connection.parse_url(address.url))  # type: ignore[no-untyped-call]


@contextmanager
def reachable(url: str = "Redis") -> Iterator[None]:
    """Turn redis-py's errors into StoreUnavailable."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse) as error:
        # The last: somebody else answers at that address, as a gateway may while the server is away.
        raise StoreUnavailable(f"{url} cannot be reached: {error}") from error
    except redis.ResponseError as error:
        # A full memory or disk (OOM, MISCONF), a replica or a loading server: all pass.
        raise StoreUnavailable(f"{url} refuses: {_without_keys(error)}") from error


def _without_keys(error: redis.ResponseError) -> str:
    """What the server said. Before it, redis-py sets the pipeline's command, and its key names a customer."""
    return str(error).rpartition(" of pipeline caused error: ")[2]


def history(client: redis.Redis) -> str:
    """The name of the data set's history: another after each restart, each failover, and after FLUSHALL."""
    with reachable(), client.pipeline(transaction=False) as pipe:
        pipe.set(MARK, uuid.uuid4().hex, nx=True)
        ask_history(pipe)
        return history_of(pipe.execute()[-2:])


def ask_history(pipe: Any) -> None:
    """Add to a pipeline the two questions whose answers `history_of` takes."""
    pipe.info("replication")
    pipe.get(MARK)


def history_of(answers: list[Any]) -> str:
    """Redis' own name (`master_replid`) stays when all keys are gone; our mark does not."""
    info, mark = answers
    return f"{info['master_replid']} {(mark or b'').decode()}"


def check(client: redis.Redis) -> None:
    """Refuse a server that cannot keep contexts. Raises SettingsError, StoreUnavailable."""
    with reachable():
        clustered = client.info("cluster").get("cluster_enabled")
    if clustered:
        raise SettingsError(
            "SEGUE_REDIS: this is a node of a Redis Cluster, and Segue writes all partitions of a process at once; "
            "name a single server, or its Sentinels"
        )
    fault = evicts(client)
    if fault is not None:
        raise SettingsError(fault)


def evicts(client: redis.Redis) -> str | None:
    """What is wrong with a server that evicts, None with one that does not. Raises StoreUnavailable."""
    with reachable():
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return (
        f"SEGUE_REDIS: this server evicts keys (maxmemory-policy {policy}) and would lose contexts; "
        "set maxmemory-policy noeviction"
    )


def present(client: redis.Redis) -> Layout | None:
    """The layout record, if there is one."""
    with reachable():
        raw: Any = client.get(LAYOUT)
    return None if raw is None else msgspec.json.decode(raw, type=Layout)


def layout(client: redis.Redis, partitions: int | None = None, logged: Layout | None = None) -> Layout:
    """Read the layout record; with `partitions`, write it if there is none.

    `logged` is the one that the log knows: Redis lost what is older than that, and is put right.
    Raises SettingsError when there is none to read.
    """
    found = present(client)
    first = Layout(partitions) if partitions is not None else None
    if logged is not None and (found is None or found.epoch < logged.epoch):
        with reachable():
            client.set(LAYOUT, msgspec.json.encode(logged))
    elif found is None and first is not None:
        with reachable():
            client.set(LAYOUT, msgspec.json.encode(first), nx=True)
    else:
        return _there(found)
    return _there(present(client))


def _there(found: Layout | None) -> Layout:
    if found is None:
        raise SettingsError("SEGUE_REDIS: no Segue has run on this Redis yet (no segue:layout)")
    return found


def check_partitions(found: Layout, partitions: int) -> None:
    """Raise SettingsError when the settings say another number than the layout."""
    if found.partitions != partitions:
        raise SettingsError(
            f"SEGUE_PARTITIONS: {partitions}, but the contexts in Redis are laid out for {found.partitions}; "
            f"set SEGUE_PARTITIONS={found.partitions}, or change the layout with `segue rebuild --partitions`"
        )


def held(client: redis.Redis) -> bool:
    """Whether a rebuild holds processing."""
    with reachable():
        return bool(client.exists(HOLD))


def stands(client: redis.Redis, place: Layout) -> bool:
    """Whether `place` is the layout still, and no rebuild is about to replace it."""
    with reachable(), client.pipeline(transaction=False) as pipe:
        pipe.get(LAYOUT)
        pipe.exists(HOLD)
        raw, hold = pipe.execute()
    return not hold and raw is not None and msgspec.json.decode(raw, type=Layout) == place
