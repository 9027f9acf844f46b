"""The client: send events from a channel app, and know that they arrived.

    from datetime import UTC, datetime
    from segue.client import Client

    with Client(url="http://localhost:8321") as client:   # or Client(kafka="localhost:9092")
        client.send(
            type="order.delayed",
            channel="web",
            identifiers={"email": "ana@example.com"},
            time=datetime.now(UTC),
        )

An event is checked before it is sent: a wrong one raises `Refused` at once, naming the field and how to
mend it. Leaving the block, or `flush()`, returns when everything was acknowledged, or raises.

Order. Kafka orders within a partition; each channel is a topic, and the strongest identifier is the key. So
when an earlier event that shares an identifier with this one went elsewhere (the customer changed channel,
or signed in) and is not acknowledged yet, the client waits for that before it sends this one.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from segue.core.event import Rejected
from segue.errors import Refused, SettingsError, Undelivered
from segue.routing import Routed, route
from segue.transports import HttpTransport, KafkaTransport, Transport

Identifiers = Mapping[str, str] | Sequence[Mapping[str, str]]
OnDelivery = Callable[[str, Undelivered | None], None]

SOURCE = "segue.client"
KEEP_FAILURES = 10_000
"""Failures kept for the next `flush`; an app that never flushes learns of the others by `on_delivery`."""


def event(
    *,
    type: str,  # noqa: A002 - the attribute's name in CloudEvents
    channel: str,
    identifiers: Identifiers,
    time: datetime | str,
    id: str | None = None,  # noqa: A002
    source: str = SOURCE,
    **data: Any,
) -> dict[str, Any]:
    """Make an event: a CloudEvent 1.0 as a dict, checked when it is sent.

    `identifiers` are values by type, or `{"type", "value", "level"}` each. `time` is when it happened and
    needs its zone. `id` identifies the event for good: give your own where you have one, so that sending
    the same twice counts once. `data` takes the rest of the contract: `touchpoint`, `actor`, `item`,
    `survey`, `wait_ms`, `text`, `device`, `source_session_id`, `sent_at`, `properties`; what is None is left out.

    Raises Refused for a time without a zone.
    """
    if isinstance(time, datetime) and time.tzinfo is None:
        raise Refused("time_without_zone", "$.time", "a time needs its zone: datetime.now(UTC), for one")
    named = identifiers
    if isinstance(identifiers, Mapping):
        named = [{"type": kind, "value": value} for kind, value in identifiers.items()]
    return {
        "specversion": "1.0",
        "id": id or str(uuid.uuid4()),
        "source": source,
        "type": type,
        "time": time.isoformat() if isinstance(time, datetime) else time,
        "channel": channel,
        "data": {"identifiers": named, **{name: value for name, value in data.items() if value is not None}},
    }


class SeveralUndelivered(Undelivered):
    """More than one event failed; `failures` has the error of each, by event id."""

    def __init__(self, failures: dict[str, Undelivered]) -> None:
        first = next(iter(failures.values()))
        many = f"{len(failures)}{' or more' if len(failures) == KEEP_FAILURES else ''}"
        super().__init__(f"{many} events were not delivered; the first: {first}")
        self.failures = failures


class _Under(Struct):
    """The events under way that bear one identifier: in which lane, and how many."""

    lane: tuple[str, bytes]
    count: int = 0


class Client:
    """Sends events over Kafka or over HTTP; threads may share one.

    `kafka` is a bootstrap address, `options` more settings for it by librdkafka's names (security, SASL,
    TLS); or `url` is the base URL of the API. `phone_region` reads phone numbers without a country code:
    give what the deployment has (`SEGUE_PHONE_REGION`). `timeout_s` is how long a call may wait unless it
    says so itself. `on_delivery(event_id, error)` is called once per event, error None when acknowledged,
    from within `send`, `flush` or `close`; what it raises comes out of that call when its work is done.

    Raises SettingsError when neither or both of `kafka` and `url` are given, or one is malformed.
    """

    def __init__(
        self,
        *,
        kafka: str | None = None,
        url: str | None = None,
        options: Mapping[str, str] | None = None,
        phone_region: str | None = None,
        timeout_s: float = 10.0,
        on_delivery: OnDelivery | None = None,
    ) -> None:
        if (kafka is None) == (url is None):
            raise SettingsError("Client: give either kafka=... or url=...")
        self._region, self._timeout_s, self._on_delivery = phone_region, timeout_s, on_delivery
        self._under_way: dict[str, _Under] = {}
        self._failures: dict[str, Undelivered] = {}
        self._fault: Exception | None = None
        self._lock = threading.RLock()
        self._transport: Transport = (
            KafkaTransport(kafka, options or {}, self._settled)
            if kafka is not None
            else HttpTransport(str(url), self._settled)
        )

    def send(self, event_or_none: Mapping[str, Any] | bytes | None = None, /, **fields: Any) -> str:
        """Send an event: a dict or JSON bytes, or the fields of `event()`. Returns its id.

        It is queued; `flush` says whether it arrived. Raises Refused when it is wrong, Undelivered when
        nothing was acknowledged for `timeout_s` and there is no room, or an earlier event of the customer
        that went elsewhere is not acknowledged in time. In both cases this event was not sent.
        """
        routed = self._checked(event(**fields) if event_or_none is None else event_or_none)
        with self._lock:
            self._keep_order(routed)
            for name in routed.names:
                self._under_way.setdefault(name, _Under(routed.lane)).count += 1
            try:
                self._transport.put(routed, self._timeout_s)
            except BaseException:
                self._arrived(routed)
                raise
            self._tell_fault()
        return routed.event.id

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when every event sent was acknowledged.

        Raises Refused or Undelivered for an event that was not, SeveralUndelivered for several of them;
        each is told once. Raises Undelivered when time is up: then the rest stays queued, so flush again.
        """
        with self._lock:
            self._transport.flush(self._timeout_s if timeout_s is None else timeout_s)
            self._tell_fault()
            failures, self._failures = self._failures, {}
        if len(failures) == 1:
            raise next(iter(failures.values()))
        if failures:
            raise SeveralUndelivered(failures)

    def close(self, timeout_s: float | None = None) -> None:
        """Flush, and let go. What is not acknowledged by then is given up; raises as `flush` does."""
        with self._lock:
            try:
                self.flush(timeout_s)
            finally:
                self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        try:  # the block's own error is the one to be seen
            self.close()
        except Undelivered as undelivered:
            error.add_note(f"segue: {undelivered}")

    def _checked(self, given: Mapping[str, Any] | bytes) -> Routed:
        try:
            raw = given if isinstance(given, bytes) else msgspec.json.encode(given)
        except (TypeError, ValueError) as error:
            raise Refused("schema", "$", f"cannot be written as JSON: {error}") from error
        found = route(raw, self._region)
        if isinstance(found, Rejected):
            raise Refused(found.reason, found.field, found.detail)
        return found

    def _keep_order(self, routed: Routed) -> None:
        under = (self._under_way.get(name) for name in routed.names)
        if any(each is not None and each.lane != routed.lane for each in under):
            self._transport.flush(self._timeout_s)

    def _settled(self, routed: Routed, error: Undelivered | None) -> None:
        self._arrived(routed)
        if error is not None and len(self._failures) < KEEP_FAILURES:
            self._failures[routed.event.id] = error
        if self._on_delivery is not None:
            try:
                self._on_delivery(routed.event.id, error)
            except Exception as fault:  # we are inside of Kafka's client, whose books and ours are to be kept first
                self._fault = self._fault or fault

    def _tell_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _arrived(self, routed: Routed) -> None:
        for name in routed.names:
            under = self._under_way[name]
            under.count -= 1
            if not under.count:
                del self._under_way[name]
