"""Changes of customers, pushed to whoever watches them.

One subscription per API process hears of every changed customer of every partition; a watcher is only
woken, and reads the newest document itself. So a burst of changes costs a slow client one document, and
memory does not grow with what it has not read. The subscription lives while somebody watches. After an
outage of the store every watcher is woken, because changes may have gone by unheard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import structlog

from segue.api.doors import READ_S, StoreDoor
from segue.errors import StoreUnavailable
from segue.store.keys import Layout

log = structlog.get_logger()

RECHECK_S = 15.0
"""A watcher that heard nothing for so long reads anyway: a lost message is then late, not lost."""
_LISTEN_S = 1.0
_BACKOFF_S = (0.2, 2.0)


class Watch:
    """One client's interest in one customer."""

    def __init__(self, customer_key: str) -> None:
        self.customer_key = customer_key
        self.closed = False
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    async def changed(self) -> None:
        """Wait until the customer may have changed, or the watch was closed."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), RECHECK_S)
        self._woken.clear()


class Hub:
    """All watches of this process and the one subscription that serves them."""

    def __init__(self, store: StoreDoor) -> None:
        self._store = store
        self._watches: dict[str, set[Watch]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def watch(self, customer_key: str) -> AsyncIterator[Watch]:
        """Watch a customer: changes from now on wake the watch. Raises StoreUnavailable."""
        watch = Watch(customer_key)
        watch.closed = self._closed
        self._watches.setdefault(customer_key, set()).add(watch)
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())
        try:
            await self._until_listening()
            yield watch
        finally:
            self._forget(watch)

    async def _until_listening(self) -> None:
        try:
            await asyncio.wait_for(self._listening.wait(), READ_S)
        except TimeoutError:
            raise StoreUnavailable("the store does not take a subscription now") from None

    def _forget(self, watch: Watch) -> None:
        others = self._watches[watch.customer_key]
        others.discard(watch)
        if not others:
            del self._watches[watch.customer_key]
        if not self._watches:
            self._stop()

    def close(self) -> None:
        """End all watches, so that their streams end and the process can."""
        self._closed = True
        for watch in self._all():
            watch.closed = True
            watch.wake()
        self._stop()

    def _all(self) -> list[Watch]:
        return [watch for watches in self._watches.values() for watch in watches]

    def _stop(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None
        self._listening.clear()

    async def _listen(self) -> None:
        wait = _BACKOFF_S[0]
        while True:
            try:
                layout = await self._store.run(self._store.queries.layout())
                client = await self._store.client()
                with self._store.reachable():
                    async with client.pubsub() as channel:
                        await self._subscribe(channel, layout)
                        wait = _BACKOFF_S[0]
                        await self._hear(channel, layout)
            except StoreUnavailable as error:
                self._listening.clear()
                log.warning("waiting", process="api", why=str(error), retry_in_s=wait)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _BACKOFF_S[1])

    async def _subscribe(self, channel: Any, layout: Layout) -> None:
        """Subscribe to every partition and wait for the confirmations: what is read after that is not missed."""
        names = [layout.changes(str(partition)) for partition in range(layout.shards_at_most)]
        await channel.subscribe(*names)
        confirmed = 0
        while confirmed < len(names):
            message = await channel.get_message(timeout=READ_S)
            if message is None:
                raise StoreUnavailable("the store does not confirm a subscription")
            confirmed += message["type"] == "subscribe"
        self._listening.set()
        for watch in self._all():
            watch.wake()

    async def _hear(self, channel: Any, layout: Layout) -> None:
        """Wake those whose customer changed, until the layout is another."""
        while True:
            message = await channel.get_message(timeout=_LISTEN_S)
            if message is not None and message["type"] == "message":
                for customer_key, _revision in orjson.loads(message["data"]):
                    for watch in self._watches.get(customer_key, ()):
                        watch.wake()
            elif await self._store.run(self._store.queries.layout()) != layout:
                return
