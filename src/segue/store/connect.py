"""Connecting to Redis or Valkey, and refusing one that would lose contexts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from segue.errors import SettingsError, StoreUnavailable
from segue.store.keys import LAYOUT, Layout


def connect(url: str) -> redis.Redis:
    """Return a client for `url`. It does not retry by itself: a lost reply is an unknown outcome, not a no."""
    return redis.Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=10,
        socket_connect_timeout=3,
        health_check_interval=0,
        protocol=2,
    )


@contextmanager
def reachable(url: str = "Redis") -> Iterator[None]:
    """Turn redis-py's errors into StoreUnavailable."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise StoreUnavailable(f"{url} cannot be reached: {error}") from error
    except redis.ResponseError as error:
        # A full memory or disk (OOM, MISCONF), a replica or a loading server: all pass.
        raise StoreUnavailable(f"{url} refuses: {error}") from error


def check(client: redis.Redis) -> None:
    """Refuse a server that evicts. Raises SettingsError, StoreUnavailable."""
    with reachable():
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise SettingsError(
            f"SEGUE_REDIS: this server evicts keys (maxmemory-policy {policy}) and would lose contexts; "
            "set maxmemory-policy noeviction"
        )


def layout(client: redis.Redis, partitions: int | None = None) -> Layout:
    """Read the layout record; with `partitions`, write it if there is none.

    Raises SettingsError when the record says another number, or when there is none to read.
    """
    with reachable():
        if partitions is not None:
            client.set(LAYOUT, msgspec.json.encode(Layout(partitions)), nx=True)
        raw = client.get(LAYOUT)
    if raw is None:
        raise SettingsError("SEGUE_REDIS: no Segue has run on this Redis yet (no segue:layout)")
    found = msgspec.json.decode(raw, type=Layout)
    if partitions is not None and found.partitions != partitions:
        raise SettingsError(
            f"SEGUE_PARTITIONS: {partitions}, but the contexts in Redis are laid out for {found.partitions}"
        )
    return found
