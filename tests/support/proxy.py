"""A TCP proxy that misbehaves on demand: late, stuck, cut in the middle of a reply, or silently elsewhere.

It stands between a client and one server of any protocol, on a port of its own. The knobs are plain
attributes, read for each piece of traffic, so a test turns them while connections live.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

Address = tuple[str, int]

_PIECE = 65_536
_POLL_S = 0.005


def address_of(url: str) -> Address:
    """Host and port of a URL."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


class Proxy:
    """Listens on 127.0.0.1 (`port` 0 takes any free one) and passes on to `upstream`, from `start` to `stop`.

    `counts` says what was done: `connections`, `refused`, `stalls`, `cuts`, `switched`.
    """

    def __init__(self, upstream: Address, port: int = 0, seed: int = 0) -> None:
        self.upstream, self.port = upstream, port
        self.delay_s = 0.0
        """Added to each direction; a round trip takes twice as much. Throughput stays as it is."""
        self.stall_rate, self.stall_s = 0.0, 0.0
        """Of all pieces passed on, this share waits `stall_s`, and whatever follows it on its connection."""
        self.cut_rate = 0.0
        """Of all replies, this share breaks off half way, and its connection with it."""
        self.hold_requests = self.hold_replies = False
        """While true nothing passes in that direction, and no connection breaks: a cable pulled out."""
        self.counts: Counter[str] = Counter()
        self._generation = 0
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    @classmethod
    def of(cls, url: str, seed: int = 0) -> Self:
        """A proxy before the server at `url`."""
        return cls(address_of(url), seed=seed)

    def start(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def stop(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def switch(self, upstream: Address) -> None:
        """Send new connections elsewhere, and those that live too, with no disconnect.

        A living one moves with its next request, when the last was answered; one with a Redis transaction
        begun (WATCH) moves after it, as nothing in the world moves half of one.
        """
        self.upstream = upstream
        self._generation += 1

    def cut_all(self) -> None:
        """Break every connection now. New ones are taken."""

        async def cut() -> None:
            for link in list(self._links):
                link.cut()

        self._do(cut())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:  # one that is cancelled may begin another
            for link in list(self._links):
                link.cut()
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, writer)
        self._links.add(link)
        try:
            await link.run(reader)
        except asyncio.CancelledError:
            pass  # `stop` ends it; asyncio would write that down as a failure
        finally:
            self._links.discard(link)
            link.cut()

    def chance(self, rate: float) -> bool:
        return rate > 0 and self._random.random() < rate


class Proxies:
    """A proxy for each server of a cluster, turned together: those knobs and counts of `Proxy` that rows use."""

    def __init__(self, each: Iterable[Proxy]) -> None:
        self.each = list(each)

    @property
    def addresses(self) -> str:
        """Of all, with commas."""
        return ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.each)

    @property
    def delay_s(self) -> float:
        return self.each[0].delay_s

    @delay_s.setter
    def delay_s(self, value: float) -> None:
        for proxy in self.each:
            proxy.delay_s = value

    @property
    def cut_rate(self) -> float:
        return self.each[0].cut_rate

    @cut_rate.setter
    def cut_rate(self, value: float) -> None:
        for proxy in self.each:
            proxy.cut_rate = value

    @property
    def counts(self) -> Counter[str]:
        return sum((proxy.counts for proxy in self.each), Counter())

    def cut_all(self) -> None:
        for proxy in self.each:
            proxy.cut_all()

    def start(self) -> Self:
        for proxy in self.each:
            proxy.start()
        return self

    def stop(self) -> None:
        for proxy in self.each:
            proxy.stop()


class _Link:
    """One client's connection and, behind it, one to the upstream."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter) -> None:
        self._proxy, self._client = proxy, client
        self._server: asyncio.StreamWriter | None = None
        self._replies: asyncio.Task[None] | None = None
        self._generation = proxy._generation
        self._answered = True
        self._watching = False

    async def run(self, requests: asyncio.StreamReader) -> None:
        proxy = self._proxy
        if not await self._connect():
            proxy.counts["refused"] += 1
            return
        proxy.counts["connections"] += 1
        pipe = _Pipe(proxy, lambda: proxy.hold_requests)
        sending = asyncio.create_task(pipe.drain(self._send))
        try:
            with suppress(OSError):
                while piece := await requests.read(_PIECE):
                    pipe.put(piece)
            pipe.put(b"")  # what was sent arrives, though its sender has given up
            await sending
        except asyncio.CancelledError:  # the proxy stops
            pass
        finally:
            sending.cancel()

    async def _connect(self) -> bool:
        try:
            replies, self._server = await asyncio.open_connection(*self._proxy.upstream)
        except OSError:
            return False
        self._replies = asyncio.create_task(self._answer(replies))
        return True

    async def _send(self, piece: bytes) -> None:
        if not piece:
            self.cut()
            return
        if self._generation != self._proxy._generation and self._answered and not self._watching:
            assert self._server is not None
            assert self._replies is not None
            self._generation = self._proxy._generation
            self._replies.cancel()
            self._server.close()
            if not await self._connect():
                self.cut()
                return
            self._proxy.counts["switched"] += 1
        self._answered = False
        if b"WATCH\r\n" in piece:  # UNWATCH too, which comes alone
            self._watching = b"UNWATCH\r\n" not in piece
        if piece.endswith(b"EXEC\r\n"):
            self._watching = False
        assert self._server is not None
        self._server.write(piece)
        await self._server.drain()

    async def _answer(self, replies: asyncio.StreamReader) -> None:
        proxy = self._proxy
        pipe = _Pipe(proxy, lambda: proxy.hold_replies)
        sending = asyncio.create_task(pipe.drain(self._reply))
        try:
            while piece := await replies.read(_PIECE):
                pipe.put(piece)
            pipe.put(b"")
            await sending
        except OSError:
            self.cut()
        finally:
            sending.cancel()

    async def _reply(self, piece: bytes) -> None:
        if not piece:  # the server closed its end, and all that it said is out
            self.cut()
            return
        if self._proxy.chance(self._proxy.cut_rate):
            self._proxy.counts["cuts"] += 1
            self._client.write(piece[: len(piece) // 2])
            with suppress(OSError):
                await self._client.drain()
            self.cut()
            return
        self._client.write(piece)
        await self._client.drain()
        self._answered = True

    def cut(self) -> None:
        for writer in (self._client, self._server):
            if writer is not None:
                writer.close()


class _Pipe:
    """One direction of a connection: pieces in order, each due at a time of its own."""

    def __init__(self, proxy: Proxy, held: Any) -> None:
        self._proxy, self._held = proxy, held
        self._pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    def put(self, piece: bytes) -> None:
        proxy, loop = self._proxy, asyncio.get_running_loop()
        due = loop.time() + proxy.delay_s
        if proxy.chance(proxy.stall_rate):
            proxy.counts["stalls"] += 1
            due += proxy.stall_s
        self._pieces.put_nowait((due, piece))

    async def drain(self, pass_on: Any) -> None:
        """Pass the pieces on when they are due, until one cannot be."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                due, piece = await self._pieces.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                while self._held():
                    await asyncio.sleep(_POLL_S)
                await pass_on(piece)
                if not piece:
                    return
