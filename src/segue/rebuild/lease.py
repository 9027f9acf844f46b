"""A key of ours in Redis that ends by itself when we do: the lock of a rebuild, and its hold on processing."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import redis
from redis.exceptions import LockError

from segue.errors import SegueError
from segue.store.connect import reachable

TTL_S = 15.0
_RENEW_S = 3.0


class LeaseLost(SegueError):
    """The key is another's, or gone: this process slept, or Redis lost it."""


class Lease:
    """redis-py's lock, renewed by a thread until released. A context manager."""

    def __init__(self, client: redis.Redis, name: str, taken: str) -> None:
        """`taken` is what LeaseLost says when somebody else has it."""
        self._client, self._name, self._taken = client, name, taken
        # The token is shared with the thread that renews.
        self._lock: Any = client.lock(name, timeout=TTL_S, blocking=False, thread_local=False)
        self._done = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)

    def __enter__(self) -> Self:
        with reachable():
            if not self._lock.acquire():
                raise LeaseLost(self._taken)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        with suppress(LockError, redis.RedisError):  # it ended, or will by itself
            self._lock.release()

    def check(self) -> None:
        """Raise LeaseLost when it is ours no more."""
        if self._lost:
            raise LeaseLost(f"{self._name} was lost (a pause of {TTL_S:g} s, or Redis lost it); start again")

    def guard(self, pipe: Any) -> None:
        """Let what is done in this transaction happen only while the lease is ours."""
        pipe.watch(self._name)
        if pipe.get(self._name) != self._lock.local.token:
            self._lost = True
            self.check()

    def _renew(self) -> None:
        while not self._done.wait(_RENEW_S):
            try:
                self._lock.extend(TTL_S, replace_ttl=True)
            except LockError:
                self._lost = True
                return
            except redis.RedisError:  # away: the next time, or it ends
                continue
