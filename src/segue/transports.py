"""How the client gets events across: to Kafka, or to the HTTP collector. `segue.client` is the public face.

A transport queues events and settles each exactly once: acknowledged (None), refused, or given up. What
is not settled stays queued, so calling `flush` again goes on where the last one ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import httpx
import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer
from msgspec import Struct

from segue.errors import Refused, SettingsError, Undelivered
from segue.routing import Routed
from segue.topics import PRODUCER

Settled = Callable[[Routed, Undelivered | None], None]

MAX_BATCH = 500
"""As many as the collector takes at once."""
MAX_BATCH_BYTES = 1024 * 1024
_BATCH = "application/cloudevents-batch+json"
_AGAIN = frozenset({429, 502, 503, 504})
"""Answers that say "not now". Event ids make it safe to send the same again after any of them."""
_BACKOFF_S = (0.1, 2.0)
_DELIVERY_MS = 30_000
"""How long Kafka's client tries by itself before it gives an event up."""


class Transport(Protocol):
    """What `Client` needs. Not thread-safe; the client sees to that."""

    def put(self, routed: Routed, timeout_s: float) -> None:
        """Queue an event. Raises Undelivered, with the event not queued, when there is no room in time."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Return when everything queued is settled. Raises Undelivered, naming the address, when time is up."""
        ...

    def close(self) -> None:
        """Give up what is still queued, settling it as Undelivered, and let go of connections."""
        ...


class KafkaTransport:
    """Straight to the event topics: idempotent, acknowledged by all replicas in sync."""

    def __init__(self, bootstrap: str, options: Mapping[str, str], settled: Settled) -> None:
        self._address, self._settled = f"Kafka at {bootstrap}", settled
        self._why = ""
        try:
            self._producer = Producer(
                {
                    "bootstrap.servers": bootstrap,
                    "log_level": 2,
                    "reconnect.backoff.max.ms": 1000,
                    "linger.ms": 5,
                    "delivery.timeout.ms": _DELIVERY_MS,
                    **options,
                    "error_cb": self._failed,
                    **PRODUCER,  # not to be had otherwise
                }
            )
        except KafkaException as error:
            raise SettingsError(f"Kafka options: {error.args[0].str()}") from error

    def _failed(self, error: KafkaError) -> None:
        # The first sentence: "Connection refused" and the like. librdkafka goes on by itself.
        self._why = f" ({error.str().rsplit(':', 1)[-1].split('(')[0].strip()})"

    def put(self, routed: Routed, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while True:
            try:
                self._producer.produce(
                    routed.topic, routed.raw, routed.key, on_delivery=partial(self._delivered, routed)
                )
                break
            except BufferError:
                if time.monotonic() > until:
                    raise self._late(timeout_s) from None
                self._producer.poll(0.05)
            except KafkaException as error:  # the producer is beyond repair: only a new client helps
                raise Undelivered(f"{self._address} refuses: {error.args[0].str()}") from error
        self._producer.poll(0)

    def _delivered(self, routed: Routed, error: KafkaError | None, _: Any) -> None:
        lost = None if error is None else Undelivered(f"{self._address} did not acknowledge: {error.str()}{self._why}")
        self._settled(routed, lost)

    def flush(self, timeout_s: float) -> None:
        if self._producer.flush(timeout_s):
            raise self._late(timeout_s)
        self._why = ""

    def _late(self, timeout_s: float) -> Undelivered:
        return Undelivered(
            f"{len(self._producer)} events not acknowledged by {self._address} within {timeout_s:g} s{self._why}; "
            "they stay queued"
        )

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(1)


class _Why(Struct):
    """The part of a problem that says what was wrong."""

    detail: str = ""
    reason: str = "refused"
    field: str = "$"


class _One(Struct):
    index: int
    problem: _Why


class _Answer(Struct):
    """The collector's answer, accepted in part (202) or not at all (400)."""

    rejected: list[_One] | None = None
    accepted: int = 0
    detail: str = ""


_answer = msgspec.json.Decoder(_Answer).decode


class HttpTransport:
    """To the collector, in batches, from the calling thread."""

    def __init__(self, url: str, settled: Settled) -> None:
        self._address, self._settled = f"Segue at {url}", settled
        try:
            self._http = httpx.Client(base_url=url)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise SettingsError(f"not a URL: {url}") from error
        self._queue: list[Routed] = []
        self._bytes = 0

    def put(self, routed: Routed, timeout_s: float) -> None:
        if len(self._queue) >= MAX_BATCH or self._bytes + len(routed.raw) > MAX_BATCH_BYTES:
            self.flush(timeout_s)
        self._queue.append(routed)
        self._bytes += len(routed.raw) + 1

    def flush(self, timeout_s: float) -> None:
        if not self._queue:
            return
        answer = self._post(b"[" + b",".join(routed.raw for routed in self._queue) + b"]", timeout_s)
        refused = {one.index: one.problem for one in answer.rejected or ()}
        sent, self._queue, self._bytes = self._queue, [], 0
        for index, routed in enumerate(sent):
            why = refused.get(index)
            self._settled(routed, None if why is None else Refused(why.reason, why.field, why.detail))

    def _post(self, body: bytes, timeout_s: float) -> _Answer:
        """Send until it is answered for good. Raises Undelivered."""
        until, wait = time.monotonic() + timeout_s, _BACKOFF_S[0]
        while True:
            left = max(0.05, until - time.monotonic())
            again_s = 0.0
            try:
                got = self._http.post("/v1/events", content=body, headers={"content-type": _BATCH}, timeout=left)
            except httpx.TransportError as error:
                why = type(error).__name__
            else:
                answer = _read(got)
                if got.status_code == 202 or (got.status_code == 400 and answer.rejected):
                    return answer
                why = f"{got.status_code} {answer.detail}".strip()
                if got.status_code not in _AGAIN:
                    raise self._undelivered(why)
                again_s = _retry_after_s(got)
            if time.monotonic() + wait >= until:
                raise self._undelivered(f"{why}, within {timeout_s:g} s")
            time.sleep(min(max(wait, again_s), max(0.0, until - time.monotonic())))
            wait = min(2 * wait, _BACKOFF_S[1])

    def _undelivered(self, why: str) -> Undelivered:
        return Undelivered(f"{len(self._queue)} events not acknowledged by {self._address}: {why}; they stay queued")

    def close(self) -> None:
        lost, self._queue = self._queue, []
        for routed in lost:
            self._settled(routed, Undelivered(f"given up on close, not acknowledged by {self._address}"))
        self._http.close()


def _retry_after_s(response: httpx.Response) -> float:
    given = response.headers.get("retry-after", "")
    return float(given) if given.isdigit() else 0.0


def _read(response: httpx.Response) -> _Answer:
    try:
        return _answer(response.content)
    except msgspec.DecodeError:  # not from a collector: a proxy, another service
        return _Answer(detail=response.reason_phrase)
