"""The API's two doors: to the store for reads, to the log for events. Both open when first used.

The API waits for nothing at start, so addresses are looked up late, and again after a failure: an
embedded store may come back elsewhere.

Reads run on redis.asyncio. Measured on a two-core machine, a read of two round trips takes 0.43 ms
either way when it is alone (the blocking client in a thread: 0.42 ms); with 16 readers at once it costs
0.23 ms of CPU against 0.51 ms, because threads take turns at the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import redis.asyncio

from segue.errors import LogUnavailable, SettingsError, StoreUnavailable
from segue.log.port import Log, Output
from segue.routing import Routed, in_order
from segue.runtime import open_log, redis_url
from segue.settings import Settings
from segue.store.connect import connect_async, reachable
from segue.store.reader import Commands, Queries, Query

T = TypeVar("T")

READ_S = 2.0
"""How long Redis may take to answer. Who serves a customer sooner has use for "not now" than for a wait."""
APPEND_S = 5.0
"""How long the log may take to acknowledge."""
_READERS = 64
_WRITERS = 32
_CLOSE_S = 0.5


class StoreDoor:
    """Runs queries (`store.reader.Queries`) on Redis. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url: str | None = None
        self._client: redis.asyncio.Redis | None = None
        self._look_again = True
        self._turns = asyncio.Semaphore(_READERS)
        self.queries = Queries()

    async def run(self, query: Query[T]) -> T:
        """The answer of a query. Raises StoreUnavailable."""
        client = await self.client()
        try:
            commands = next(query)
            while True:
                await self._turn()
                try:
                    with self.reachable():
                        replies = await _replies(client, commands)
                finally:
                    self._turns.release()
                commands = query.send(replies)
        except StopIteration as done:
            answer: T = done.value
            return answer

    async def _turn(self) -> None:
        """Of very many readers at once, make the last wait rather than open ever more connections."""
        if not self._turns.locked():
            await self._turns.acquire()
            return
        try:
            await asyncio.wait_for(self._turns.acquire(), READ_S)
        except TimeoutError:
            raise StoreUnavailable("the store does not keep up with the reads") from None

    async def client(self) -> redis.asyncio.Redis:
        """The client, for what is no query. Raises StoreUnavailable when no address is known."""
        if self._client is None or self._look_again:
            try:
                url = redis_url(self._settings)
            except SettingsError as error:
                raise StoreUnavailable(str(error)) from error
            if url != self._url or self._client is None:
                await self.close()
                self._url, self._client = url, connect_async(url, READ_S)
            self._look_again = False
        return self._client

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Turn the client's errors into StoreUnavailable, and look for the store anew after one."""
        try:
            with reachable():
                yield
        except StoreUnavailable:
            self._look_again = True
            raise

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


async def _replies(client: redis.asyncio.Redis, commands: Commands) -> list[Any]:
    """One round trip. A command alone goes without a pipeline, which costs as much again."""
    if len(commands) == 1:
        return [await client.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute()


class LogDoor:
    """Appends to the log from the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log: Log | None = None
        self._lock = threading.Lock()
        # Threads of its own, so that a log that does not answer fills these and no others. What still
        # waits for a thread when its time is up is never begun.
        self._threads = ThreadPoolExecutor(_WRITERS, "log")

    async def append(self, events: Iterable[Routed]) -> None:
        """Write all, in order; returns when all are acknowledged. Raises LogUnavailable, outcome unknown."""
        await self.write(in_order(list(events)))

    async def write(self, runs: Iterable[list[Output]]) -> None:
        """Write records, one run acknowledged after another. Raises as `append`."""
        written = asyncio.get_running_loop().run_in_executor(self._threads, self._append, runs)
        try:
            await asyncio.wait_for(written, APPEND_S)
        except TimeoutError:
            raise LogUnavailable(f"the log did not acknowledge within {APPEND_S:g} s") from None

    def _append(self, runs: Iterable[list[Output]]) -> None:
        try:
            with self._lock:
                if self._log is None:
                    self._log = open_log(self._settings)
            for run in runs:
                self._log.append(run)
        except SettingsError as error:  # the topics are not there yet: no processor has started
            raise LogUnavailable(str(error)) from error

    async def close(self) -> None:
        """Close the log; one that is stuck is left to the end of the process."""
        if self._log is not None:
            closed = asyncio.get_running_loop().run_in_executor(self._threads, self._log.close)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(closed, _CLOSE_S)
        self._threads.shutdown(wait=False, cancel_futures=True)
