"""A whole Segue in one process, for tests: the embedded log, a Valkey of its own and three engines in threads.

`drain()` waits by offsets, not by time: everything appended before the call is readable after it.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import redis

from segue.api.app import build_server, listen
from segue.embedded.valkey import EmbeddedValkey
from segue.errors import SegueError
from segue.log.port import Output
from segue.log.sqlite import SqliteLog
from segue.runtime import PROCESSORS, all_topics, keep_running
from segue.settings import Settings
from segue.store.connect import layout
from segue.store.shards import Fence
from segue.topics import COMMANDS, EVENT_TOPICS, EVENTS, INTERACTIONS, JOURNEY_STEPS

_INPUTS: dict[str, tuple[str, ...]] = {
    "resolve": (*EVENT_TOPICS, COMMANDS),
    "context": (INTERACTIONS,),
    "signals": (JOURNEY_STEPS,),
}
_POLL_S = 0.005


class _Runner:
    """One engine in a thread."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(name, settings), name=f"engine {name}", daemon=True)
        self._thread.start()

    def _run(self, name: str, settings: Settings) -> None:
        try:
            keep_running(name, settings, self._stop.is_set)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive(), f"{self._thread.name} does not stop"


class EmbeddedStack:
    """Starts at once; `settings` fit any other part that shall use it (the API, a client, a reader)."""

    def __init__(self, directory: Path, valkey_port: int | None = None, **overrides: Any) -> None:
        """With `valkey_port` Valkey listens on TCP, so that `redis` can name a proxy before it."""
        self.valkey = EmbeddedValkey(directory / "valkey", port=valkey_port).start()
        (directory / "valkey.url").write_text(self.valkey.url)  # as `segue up` does
        defaults: dict[str, Any] = {
            "data_dir": directory,
            "redis": self.valkey.url,
            "partitions": 4,
            "event_partitions": 2,
            "api_port": 0,
        }
        self.settings = Settings(**defaults | overrides)
        with closing(SqliteLog(directory / "log.sqlite")) as log:  # so that `append` works from the first moment
            log.create_topics(all_topics(self.settings))
        self._runners: dict[str, _Runner] = {}
        for name in PROCESSORS:
            self.start(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def start(self, name: str) -> None:
        """Start a processor that was stopped."""
        self._runners[name] = _Runner(name, self.settings)

    def stop(self, name: str) -> None:
        """Stop a processor in order."""
        self._runners.pop(name).stop()

    def close(self) -> None:
        for name in list(self._runners):
            self.stop(name)
        self.valkey.stop()

    def append(self, outputs: Iterable[Output]) -> None:
        """Append records to the log, past every check that a client or the API would make."""
        with closing(SqliteLog(self.settings.data_dir / "log.sqlite")) as log:
            log.append(outputs)

    def drain(self, timeout_s: float = 20) -> None:
        """Return when everything appended so far is applied and readable. Raises TimeoutError."""
        until = time.monotonic() + timeout_s
        for name in PROCESSORS:  # in this order: what one has applied is the next one's input
            heads = self._heads(_INPUTS[name])
            while not self._applied(name, heads):
                runner = self._runners.get(name)
                if runner is None or runner.error is not None:
                    raise RuntimeError(f"{name} does not run") from (runner.error if runner else None)
                if time.monotonic() > until:
                    raise TimeoutError(f"{name} has not applied everything within {timeout_s} s")
                time.sleep(_POLL_S)

    def _heads(self, topics: tuple[str, ...]) -> dict[tuple[str, int], int]:
        """The next offset of every partition that holds something."""
        path = self.settings.data_dir / "log.sqlite"
        if not path.exists():
            return {}
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
            rows = db.execute(
                "SELECT name, partition, next_offset FROM heads JOIN topics ON topics.id = heads.topic"
            ).fetchall()
        return {(name, partition): head for name, partition, head in rows if name in topics}

    def _applied(self, name: str, heads: dict[tuple[str, int], int]) -> bool:
        if not heads:
            return True
        try:
            with redis.Redis.from_url(self.valkey.url) as client:
                found = layout(client)
                fences: Any = client.mget([found.fence(_shard(name, *tp), name) for tp in heads])
        except (redis.RedisError, SegueError):
            return False
        reached = [0 if raw is None else msgspec.json.decode(raw, type=Fence).next_offset for raw in fences]
        return all(have >= head for have, head in zip(reached, heads.values(), strict=True))


def _shard(processor: str, topic: str, partition: int) -> str:
    return f"{topic.removeprefix(EVENTS)}.{partition}" if processor == "resolve" else str(partition)


class ApiServer:
    """The HTTP API on a port of its own, in a thread."""

    def __init__(self, settings: Settings) -> None:
        settings = settings.model_copy(update={"api_port": 0})
        self._socket = listen(settings)
        self.server = build_server(settings)
        self.url = "http://{}:{}".format(*self._socket.getsockname()[:2])
        self._thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self._socket]}, name="api", daemon=True
        )
        self._thread.start()
        eventually(lambda: self.server.started, what="the API's start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def ready(self) -> Self:
        """Wait until it says so itself."""
        eventually(lambda: httpx.get(f"{self.url}/readyz").status_code == 200, 20, what="readiness")
        return self

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the API does not stop"
        self._socket.close()


def eventually(true: Callable[[], object], timeout_s: float = 10, what: str = "it") -> None:
    """Wait until `true()` is. Raises TimeoutError saying `what` did not come."""
    until = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not happen within {timeout_s} s")
        time.sleep(_POLL_S)
