"""Events for the benchmarks: shaped like real contacts, deterministic, about 400 bytes each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import orjson

from segue.core import identity
from segue.core.event import Event, Rejected, decode
from segue.core.interaction import Interaction, entry_of
from segue.log.port import Output
from segue.topics import INTERACTIONS, event_topic

CHANNELS = ("web", "app", "chat", "voice")
TYPES = {"web": "page.viewed", "app": "screen.viewed", "chat": "message.sent", "voice": "call.ended"}
START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)


def events(count: int, customers: int, run: str, first: int = 0) -> Iterator[Output]:
    """`count` events of `customers` who come by in turn; each stays on a channel for ten of its events.

    One event in ten speaks of an open case, one in fifty answers a survey or reports a wait.
    """
    for n in range(first, first + count):
        who, turn = n % customers, n // customers
        channel = CHANNELS[(turn // 10 + who) % len(CHANNELS)]
        data: dict[str, object] = {
            "identifiers": [
                {"type": "user_id", "value": f"u{who}", "level": "verified"},
                {"type": "anonymous_id", "value": f"browser-{who:08d}"},
            ],
            "touchpoint": f"{channel}/step-{turn % 7}",
            "properties": {"page": f"/products/{n % 997}", "position": n % 13, "campaign": "winter-sale"},
        }
        if n % 10 == 0:
            data["item"] = {"kind": "case", "id": f"c{who}", "status": "open", "title": "Where is my parcel?"}
        if n % 50 == 7:
            data["survey"] = {"metric": "nps", "score": n % 11}
        if n % 50 == 9:
            data["wait_ms"] = 1000 * (n % 400)
        moment = START + timedelta(milliseconds=n * 3)
        event = {
            "specversion": "1.0",
            "id": f"{run}-{n:09d}",
            "source": f"/{channel}",
            "type": TYPES[channel],
            "time": moment.isoformat(),
            "channel": channel,
            "data": data,
        }
        yield Output(event_topic(channel), f"user_id:u{who}".encode(), orjson.dumps(event))


def customer_key(who: int) -> str:
    """The key of the customer whose `user_id` is `u<who>`."""
    return identity.new_key(identity.Identifier("user_id", f"u{who}", "verified"))


def interactions(
    count: int, customers: int, run: str, first: int = 0, clock: Callable[[], int] | None = None
) -> Iterator[Output]:
    """The same events as resolve hands them on. `clock` (ms since 1970) says when each was received."""
    keys: dict[int, str] = {}
    for n, output in enumerate(events(count, customers, run, first), first):
        event = _decoded(output)
        key = keys.get(n % customers) or keys.setdefault(n % customers, customer_key(n % customers))
        received_ms = int(event.time.timestamp() * 1000) if clock is None else clock()
        entry = entry_of(event, received_ms, event.data.properties)
        interaction = Interaction(customer_key=key, entry=entry, identifiers=event.data.identifiers)
        yield Output(INTERACTIONS, key.encode(), msgspec.json.encode(interaction))


def _decoded(output: Output) -> Event:
    event = decode(output.value or b"")
    if isinstance(event, Rejected):
        raise AssertionError(event)
    return event
