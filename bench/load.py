"""Events for the benchmarks: shaped like real contacts, deterministic, about 400 bytes each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import orjson

from segue.log.port import Output
from segue.topics import event_topic

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
