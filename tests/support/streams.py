"""A client of server-sent events, as strict as the standard asks, for tests."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import orjson


@dataclass
class Sse:
    """One event as it came."""

    event: str
    id: str | None
    data: str

    def json(self) -> Any:
        return orjson.loads(self.data)


class SseClient:
    """Reads a stream in a thread; `next` hands out the events."""

    def __init__(self, url: str, last_event_id: str | None = None) -> None:
        headers = {} if last_event_id is None else {"last-event-id": last_event_id}
        self._http = httpx.Client(timeout=httpx.Timeout(5, read=30))
        self._response = self._http.send(self._http.build_request("GET", url, headers=headers), stream=True)
        assert self._response.status_code == 200, self._response.read()
        assert self._response.headers["content-type"].startswith("text/event-stream")
        self.headers = self._response.headers
        self._events: queue.Queue[Sse | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            for line in self._response.iter_lines():
                if line:
                    name, _, value = line.partition(":")
                    value = value.removeprefix(" ")
                    fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
                elif fields.keys() - {""}:
                    self._events.put(Sse(fields.get("event", "message"), fields.get("id"), fields.get("data", "")))
                    fields = {}
        except httpx.HTTPError:
            pass
        self._events.put(None)

    def next(self, timeout_s: float = 10) -> Sse:
        found = self._events.get(timeout=timeout_s)
        assert found is not None, "the stream has ended"
        return found

    def nothing_for(self, seconds: float) -> bool:
        try:
            self._events.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def ended(self, timeout_s: float = 5) -> bool:
        """Whether the server ended the stream; events not taken yet are skipped."""
        while self._events.get(timeout=timeout_s) is not None:
            pass
        return True

    def close(self) -> None:
        self._response.close()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
