"""Bad input, published straight to the log as a Kafka app would: each piece ends in the dead letters byte for byte,
with a reason that names the field, and the next record is processed. On both logs, through the real processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from segue import runtime
from segue.embedded.valkey import EmbeddedValkey
from segue.log.port import Output
from segue.settings import Settings
from segue.topics import DEAD_LETTERS, event_topic
from tests.support.processes import Processes, without_topics
from tests.support.stack import eventually


def good(event_id: str, **changes: Any) -> dict[str, Any]:
    event: dict[str, Any] = {
        "specversion": "1.0", "id": event_id, "source": "/test", "type": "page.viewed", "channel": "web",
        "time": "2026-01-05T09:00:00Z", "data": {"identifiers": [{"type": "user_id", "value": "u1"}]},
    }  # fmt: skip
    return event | changes


KEY = b"user_id:u1"
BAD: dict[str, tuple[bytes | None, bytes | None, str, str]] = {
    "not UTF-8": (KEY, b'{"specversion": "1.0", "id": "\xff"}', "not_utf8", "$"),
    "cut JSON": (KEY, orjson.dumps(good("cut"))[:-9], "not_json", "$"),
    "wrong type": (KEY, orjson.dumps(good("typed", data={"identifiers": "u1"})), "schema", "$.data.identifiers"),
    "no identifiers": (KEY, orjson.dumps(good("none", data={"identifiers": []})), "missing_identifiers",
                       "$.data.identifiers"),
    "a placeholder for an identifier": (
        KEY, orjson.dumps(good("junk", data={"identifiers": [{"type": "user_id", "value": "null"}]})),
        "missing_identifiers", "$.data.identifiers"),
    "two people in one event": (
        KEY, orjson.dumps(good("two", data={"identifiers": [{"type": "user_id", "value": v} for v in ("u1", "u2")]})),
        "contradictory_identifiers", "$.data.identifiers"),
    "unknown channel": (KEY, orjson.dumps(good("fax", channel="fax")), "unknown_channel", "$.channel"),
    "a time without a zone": (
        KEY, orjson.dumps(good("zone", time="2026-01-05T09:00:00")), "time_without_zone", "$.time"),
    "2 MB": (KEY, orjson.dumps(good("large", extra="x" * 2_000_000)), "too_large", "$"),
    "null key": (None, orjson.dumps(good("keyless")), "null_key", "key"),
    "tombstone": (KEY, None, "tombstone", "$"),
    "another channel's topic": (KEY, orjson.dumps(good("chat", channel="chat")), "wrong_topic", "$.channel"),
    "nested without end": (
        KEY, orjson.dumps(good("deep", deep=0)).replace(b'"deep":0', b'"deep":' + b"[" * 50_000 + b"]" * 50_000),
        "not_json", "$"),
}  # fmt: skip
"""What it is: key, value, and the reason and field that its dead letter must name."""


@pytest.fixture(params=["embedded", "kafka"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    kafka = None
    if request.param == "kafka":
        kafka = without_topics(request.getfixturevalue("kafka_broker").bootstrap)
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        found = Settings(data_dir=tmp_path, redis=valkey.url, kafka=kafka, partitions=2, event_partitions=1)
        runtime.open_log(found).create_topics(runtime.all_topics(found))
        yield found


def test_every_kind_of_bad_input_ends_in_the_dead_letters_as_it_came_and_the_next_record_is_processed(
    settings: Settings,
) -> None:
    topic, log = event_topic("web"), runtime.open_log(settings)
    sent = []
    for n, (key, value, _, _) in enumerate(BAD.values()):
        header = [("sender", b"shop \xe2\x82\xac")]
        sent += [Output(topic, key, value, -1, header), Output(topic, KEY, orjson.dumps(good(f"good-{n}")))]
    for output in sent:
        log.append([output])
    with Processes(settings) as processes, redis.Redis.from_url(settings.redis or "") as client:
        processes.start("resolve", "context")

        def applied() -> int:
            documents = [orjson.loads(client.get(key)) for key in client.keys("*:ctx:*")]  # type: ignore[union-attr, arg-type]
            return sum(document["revision"] for document in documents)

        eventually(lambda: applied() == len(BAD), 60, "every good record applied")
        letters = list(log.read(DEAD_LETTERS))
    by_offset = {int(dict(letter.headers() or ())["segue.err.offset"]): letter for letter in letters}
    assert sorted(by_offset) == [2 * n for n in range(len(BAD))]
    for n, (key, value, reason, field) in enumerate(BAD.values()):
        letter = by_offset[2 * n]
        headers = dict(letter.headers() or ())
        assert (letter.key(), letter.value()) == (key, value)
        assert (headers["segue.err.code"], headers["segue.err.field"]) == (reason.encode(), field.encode())
        assert headers["segue.err.topic"] == topic.encode()
        assert headers["segue.err.message"]
        assert headers["sender"] == b"shop \xe2\x82\xac"
