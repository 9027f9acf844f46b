"""The load of a row: invented customers on four channels, sent to Kafka at a steady rate by a plain producer."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from confluent_kafka import KafkaError, Message, Producer

from tests.chaos.oracle import DAY, MINUTE, Ack, Bad, Event, Ledger

CHANNELS = ("web", "app", "chat", "voice")
TOPIC = "segue.events."
_TICK_S = 0.02


@dataclass(frozen=True)
class Load:
    """What is sent. Shares are of all events. The defaults are the base load of every row."""

    rate: int = 500
    """Events per second, retries included."""
    customers: int = 2000
    zipf: float = 1.1
    retries: float = 0.02
    """Sent a second time, some time later: the same event at another offset."""
    most_retries: int = 1
    disorder: float = 0.05
    """With an event time up to `disorder_ms` before its place in the order."""
    disorder_ms: int = MINUTE
    visits: float = 1 / 30
    """Begin another visit of their customer's."""
    late: float = 0.0
    """A day too old."""
    hot: float = 0.0
    """Of one customer, named `hot`."""
    bad: float = 0.0
    """Records that nobody can use."""
    by_email: float = 0.0
    """Of those customers in `Traffic.linked`, by their address alone; every other event then names both."""
    age_ms: int = 20 * DAY
    """How long ago the customers' clocks say it is; long, so that a visit later on is not in the future."""
    skew: Callable[[str], int] = lambda channel: 0
    """How far a channel's clock is ahead, in ms."""


HOT = "hot"


class Traffic:
    """An endless line of events and bad records, the same for the same seed (but for the clock)."""

    def __init__(self, load: Load, seed: int) -> None:
        self.load, self._random = load, random.Random(seed)
        weights = [1 / (n + 1) ** load.zipf for n in range(load.customers)]
        self._weights = list(itertools.accumulate(weights))
        self._numbers = itertools.count()
        self._again: deque[tuple[Event, int]] = deque(maxlen=100)  # well within the window of ids
        self._ahead: Counter[str] = Counter()
        self._last_channel: dict[str, str] = {}
        self.linked: set[str] = set()
        """Customers whose address Segue has seen beside their user id."""

    def next(self, busy: Callable[[str], str | None]) -> Event | Bad:
        """The next record. `busy` names the channel that a customer has unacknowledged events on."""
        load, rng = self.load, self._random
        if rng.random() < load.bad:
            return next(self._bad)
        if self._again and rng.random() < load.retries:
            event, left = self._again.popleft()
            if left > 1:
                self._again.append((event, left - 1))
            if busy(event.customer) in (None, event.channel):
                return event
        customer = HOT if rng.random() < load.hot else self._somebody()
        event = self.event(customer, busy(customer))
        if rng.random() < 0.2 or load.most_retries > 1:
            self._again.append((event, rng.randint(1, load.most_retries)))
        return event

    def event(self, customer: str, channel: str | None = None, *, poor: bool = False) -> Event:
        """A new event. An order over channels is only promised to who waits for the acknowledgement."""
        load, rng = self.load, self._random
        if channel is None:
            stays = rng.random() < 0.6 and customer in self._last_channel
            channel = self._last_channel[customer] if stays else rng.choice(CHANNELS)
        self._last_channel[customer] = channel
        if rng.random() < load.visits:
            self._ahead[self.person(customer)] += 45 * MINUTE  # away for a while: the next visit
        at = self._now() + self._ahead[self.person(customer)] + load.skew(channel)
        kind = rng.random()
        if kind < load.late:
            at -= DAY
        elif kind < load.late + load.disorder:
            at -= rng.randrange(1, load.disorder_ms)
        score = 1.0 if poor else (float(rng.randint(1, 5)) if rng.random() < 0.1 else None)
        wait = rng.choice((20_000, 400_000)) if rng.random() < 0.05 else None
        return Event(f"e{next(self._numbers)}", customer, channel, at, score, wait, self._names(customer))

    def person(self, customer: str) -> str:
        """Whose clock an event of this customer is by."""
        return customer

    def encode(self, event: Event) -> bytes:
        """The event as it is sent."""
        return encode(event)

    def _names(self, customer: str) -> tuple[str, ...]:
        if not self.load.by_email:
            return ("user_id",)
        alone = customer in self.linked and self._random.random() < self.load.by_email
        return ("email",) if alone else ("user_id", "email")

    def _somebody(self) -> str:
        at = self._random.random() * self._weights[-1]
        low, high = 0, len(self._weights) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._weights[middle] > at else (middle + 1, high)
        return f"u{low}"

    def _now(self) -> int:
        return time.time_ns() // 1_000_000 - self.load.age_ms

    @property
    def _bad(self) -> Iterator[Bad]:
        if not hasattr(self, "_bads"):
            self._bads = bad_records(self._random, self._somebody)
        return self._bads


def encode(event: Event) -> bytes:
    """The CloudEvent."""
    values = {"user_id": event.customer, "email": f"{event.customer}@example.com"}
    data: dict[str, Any] = {"identifiers": [{"type": name, "value": values[name]} for name in event.names]}
    if event.score is not None:
        data["survey"] = {"metric": "csat", "score": event.score}
    if event.wait_ms is not None:
        data["wait_ms"] = event.wait_ms
    moment = datetime.fromtimestamp(event.time_ms / 1000, UTC)
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": event.id,
            "source": "/chaos",
            "type": "page.viewed",
            "channel": event.channel,
            "time": f"{moment:%Y-%m-%dT%H:%M:%S}.{event.time_ms % 1000:03}Z",
            "data": data,
        }
    )


def bad_records(rng: random.Random, somebody: Callable[[], str]) -> Iterator[Bad]:
    """Every kind of record that cannot be used, in turn, among the good ones of a channel and a customer by chance:
    from where too many of them come, Segue reads no further."""
    for spoil in itertools.cycle(_SPOILT):
        channel, customer = rng.choice(CHANNELS), somebody()
        good = encode(Event("bad", customer, channel, 1_767_600_000_000))
        key, value, reason = spoil(customer.encode(), good, rng)
        yield Bad(key, value, reason, channel)


def _changed(good: bytes, **changes: Any) -> bytes:
    return orjson.dumps(orjson.loads(good) | changes)


_DEEP = b'"deep":' + b"[" * 10_000 + b"]" * 10_000
_Spoilt = tuple[bytes | None, bytes | None, str]
_SPOILT: tuple[Callable[[bytes, bytes, random.Random], _Spoilt], ...] = (
    lambda key, good, rng: (key, b'{"id": "\xff\xfe"}', "not_utf8"),
    lambda key, good, rng: (key, good[: rng.randrange(1, len(good) - 1)], "not_json"),
    lambda key, good, rng: (key, _changed(good, deep=0).replace(b'"deep":0', _DEEP), "not_json"),
    lambda key, good, rng: (key, good.replace(b'"data":{', b'"data":{"wait_ms":NaN,'), "not_json"),
    lambda key, good, rng: (key, _changed(good, data={"identifiers": "u1"}), "schema"),
    lambda key, good, rng: (key, _changed(good, id=17), "schema"),
    lambda key, good, rng: (key, b"\x00\x00\x00\x00\x07" + good, "not_json"),  # the head of a schema registry's record
    lambda key, good, rng: (key, _changed(good, channel="fax"), "unknown_channel"),
    lambda key, good, rng: (key, _changed(good, time="2026-01-05T09:00:00"), "time_without_zone"),
    lambda key, good, rng: (key, _changed(good, extra="x" * 300_000), "too_large"),
    lambda key, good, rng: (None, good, "null_key"),
    lambda key, good, rng: (key, None, "tombstone"),
)


class Sender(threading.Thread):
    """Sends traffic at its rate until `finish`; every acknowledgement is in the ledger."""

    def __init__(self, bootstrap: str, traffic: Traffic, ledger: Ledger) -> None:
        super().__init__(name="sender", daemon=True)
        self.ledger, self.traffic = ledger, traffic
        self._over = threading.Event()
        self._resting, self._rests = threading.Event(), threading.Event()
        self._bases: Counter[str] = Counter()
        """Added to the offsets of a topic: those of one made anew come after all of its predecessor's."""
        self._bad: dict[tuple[bytes | None, bytes | None], Bad] = {}
        self._busy: dict[str, tuple[str, int]] = {}
        self._placeless: list[tuple[Event | Bad, Message, float]] = []
        """Acknowledged without an offset, as an idempotent producer is told of what it had sent before; and when."""
        self._error: BaseException | None = None
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "max.in.flight.requests.per.connection": 1,  # with more, acknowledged records can be missing
                "linger.ms": 2,
                "partitioner": "murmur2_random",
                "delivery.timeout.ms": 180_000,
                "message.max.bytes": 4_000_000,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )

    def run(self) -> None:
        try:
            start, sent = time.monotonic(), 0
            while not self._over.is_set():
                due = int((time.monotonic() - start) * self.traffic.load.rate)
                if self._resting.is_set():
                    self._flush()
                    self._rests.set()
                else:
                    for _ in range(due - sent):
                        self._send(self.traffic.next(self._channel_in_use))
                sent = due
                self._producer.poll(_TICK_S)
        except BaseException as error:
            self._error = error

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing is sent meanwhile, and nothing is on its way."""
        self._rests.clear()
        self._resting.set()
        assert self._rests.wait(60), "the sender does not rest"
        yield
        self._resting.clear()

    def large(self, size: int) -> None:
        """Send a record of about `size` bytes, which is too large to be an event."""
        value = encode(Event("large", "large", "web", 1_767_600_000_000))[:-1] + b',"extra":"' + b"x" * size + b'"}'
        self._send(Bad(b"large", value, "too_large", "web"))

    def finish(self, read: Callable[[str], list[Message]], last_for: int = 200) -> None:
        """Stop, and let every partition end with events that give a signal: those tell that all is through.

        `read` gives all records of a topic: what it holds is what was sent.
        """
        self._over.set()
        self.join(60)
        self.check()
        self._flush()
        for customer in list(self.ledger.distinct)[:last_for]:
            self._send(self.traffic.event(customer, poor=True))
        self._flush()
        self.check()
        self.find(read)

    def check(self) -> None:
        """Raise what ended the sender, if anything did."""
        if self._error is not None:
            raise self._error

    def _flush(self) -> None:
        left = self._producer.flush(200)
        assert left == 0, f"{left} sends were never answered"

    def _channel_in_use(self, customer: str) -> str | None:
        found = self._busy.get(customer)
        return None if found is None else found[0]

    def _send(self, each: Event | Bad) -> None:
        if isinstance(each, Bad):
            self._bad[each.key, each.value] = each
            self._produce(TOPIC + each.channel, each.key, each.value, each)
            return
        self.ledger.sent(each)
        channel, count = self._busy.get(each.customer, (each.channel, 0))
        self._busy[each.customer] = (channel, count + 1)
        self._produce(TOPIC + each.channel, each.customer.encode(), self.traffic.encode(each), each)

    def _produce(self, topic: str, key: bytes | None, value: bytes | None, each: Event | Bad) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=lambda e, m: self._told(each, e, m))
                return
            except BufferError:
                self._producer.poll(0.05)

    def _told(self, each: Event | Bad, error: KafkaError | None, message: Message) -> None:
        try:
            self._done(each, error, message)
        except Exception as fault:  # the client would lose which one it was
            self._error = self._error or fault

    def _done(self, each: Event | Bad, error: KafkaError | None, message: Message) -> None:
        if isinstance(each, Event):
            channel, count = self._busy.pop(each.customer)
            if count > 1:
                self._busy[each.customer] = (channel, count - 1)
        if error is not None:
            self.ledger.failed += 1
        else:
            self.acked(each, message)

    def acked(self, each: Event | Bad, message: Message) -> None:
        """The broker has it, at the message's offset if that is told."""
        if message.offset() is None:
            self._placeless.append((each, message, time.monotonic()))
        else:
            self._placed(each, message, time.monotonic())

    def _placed(self, each: Event | Bad, message: Message, at: float) -> None:
        ack = Ack(*self._place(message), message.timestamp()[1], at)
        if isinstance(each, Bad):
            self.ledger.refused(each, ack)
        else:
            self.ledger.acked(each, ack)

    def find(self, read: Callable[[str], list[Message]]) -> None:
        """Make the ledger say what the log says. `read` gives all records of a topic.

        A client may be told "I have it" and not where; and after an outage it may give up what the broker has, or
        write it twice. All that counts is what stands in the log, and that nothing acknowledged is missing there.
        """
        for topic in (TOPIC + channel for channel in CHANNELS):
            there = {self._place(message): message for message in read(topic)}
            for place in self.ledger.places(topic, self._bases[topic]):
                assert place in there, f"an acknowledged record is not in {topic}: lost by the broker"
            for place, message in there.items():
                if not self.ledger.placed(place):
                    self._placed(*self._found(message))
        assert not self._placeless, "an acknowledged record is in no topic: lost by the broker"

    def _found(self, found: Message) -> tuple[Event | Bad, Message, float]:
        """What a record of the log is, and when it was acknowledged: now, if it never was."""
        for n, (each, sent, at) in enumerate(self._placeless):
            if _content(sent) == _content(found):
                del self._placeless[n]
                return each, found, at
        self.ledger.untold += 1
        bad = self._bad.get((found.key(), found.value()))
        return bad or self.ledger.events[orjson.loads(found.value())["id"]], found, time.monotonic()

    def made_anew(self, topic: str) -> None:
        """The topic's offsets begin at 0 again. While `silent`, and after `find`."""
        self._bases[topic] += 1_000_000_000

    def _place(self, message: Message) -> tuple[str, int, int]:
        return message.topic(), message.partition(), message.offset() + self._bases[message.topic()]


def _content(message: Message) -> tuple[str, int, bytes | None, bytes | None]:
    return message.topic(), message.partition(), message.key(), message.value()
