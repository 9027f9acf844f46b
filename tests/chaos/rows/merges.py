"""The row about merges: people who come by several identifiers turn out to be one each, at full speed, amid kills."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson
import redis

from segue.store.connect import connect
from segue.store.reader import Reader
from tests.chaos.harness import Run, Store, events_of, row
from tests.chaos.load import Load, Traffic
from tests.chaos.load import encode as encoded
from tests.chaos.oracle import Bad, Event, Sighting
from tests.chaos.oracle_merges import Documents, Persons, complete, judge
from tests.chaos.rows.processors import kill_one
from tests.support.contexts import raw_contexts
from tests.support.stack import eventually

KINDS = {"u": "user_id", "d": "cookie_id", "e": "device_id"}
"""What a side is known by, by the first letter of its name."""
THIRD = 5
"""Every so many people have a third side, so that some survivor is absorbed itself."""
WATCHED = 12
STUB = b'"kin":{"into":'


class PairTraffic(Traffic):
    """Events of people with two or three sides each; and, when told so, the one that says that two sides are one."""

    def __init__(self, load: Load, seed: int) -> None:
        super().__init__(load, seed)
        self.persons = Persons()
        self.links: deque[tuple[str, str]] = deque()
        people = range(load.customers)
        self.thirds = [n for n in people if n % THIRD == 0]
        self.sides = [f"{kind}{n}" for n in people for kind in ("ud" if n % THIRD else "ude")]
        self._first = deque(self.sides)

    def next(self, busy: Callable[[str], str | None]) -> Event | Bad:
        if self._first:
            return self.event(self._first.popleft())
        if not self.links:
            return super().next(busy)
        one, other = self.links.popleft()
        self.persons.unite(one, other)
        return self.event(one, busy(one))._replace(names=(one, other))

    def event(self, customer: str, channel: str | None = None, *, poor: bool = False) -> Event:
        return super().event(customer, channel, poor=poor)._replace(names=(customer,))

    def person(self, customer: str) -> str:
        return customer[1:]

    def encode(self, event: Event) -> bytes:
        sent = orjson.loads(encoded(event._replace(names=())))
        sent["data"]["identifiers"] = [
            {"type": KINDS[side[0]], "value": side, "level": "verified" if side[0] == "u" else "claimed"}
            for side in event.names
        ]
        return orjson.dumps(sent)

    def _somebody(self) -> str:
        return self._random.choice(self.sides)


class Families(Store):
    """The judge's eyes on documents, stubs and parts. A watching reader's are Segue's, by the keys of all sides."""

    def __init__(self, url: str, persons: Persons) -> None:
        super().__init__(connect(url))
        self._reader, self._persons = Reader(connect(url)), persons

    def keys(self) -> list[bytes]:
        return [key for key in self._every("ctx") if b"/" not in key]

    def _every(self, kind: str) -> list[bytes]:
        found: Any = self.client.keys(f"segue:*:{kind}:*")
        return sorted(found)

    def raw(self) -> dict[bytes, bytes]:
        """Everything that a replay must give again: parts and states of signals too."""
        keys = self._every("sig")
        values: Any = self.client.mget(keys)
        return raw_contexts(self.client, self._every("ctx")) | dict(zip(keys, values, strict=True))

    def documents(self) -> list[dict[str, Any]]:
        return [orjson.loads(raw) for raw in raw_contexts(self.client, self.keys()).values()]

    def held(self) -> Documents:
        found = Documents()
        for name, raw in self.raw().items():
            kind, _, key = name.decode().rpartition("}:")[2].partition(":")
            document = orjson.loads(raw)
            survivor, _, part = key.partition("/")
            if kind == "sig":
                found.signals[key] = [signal["signal_id"] for signal in document.get("active", ())]
            elif part and document.get("revision"):
                found.parts.setdefault(survivor, {})[part] = document
        return found

    def missing(self, want: dict[str, int]) -> int:
        """How many events people have fewer than wanted, at those who stand for themselves."""
        wanted: dict[str, int] = {}
        for side, count in want.items():
            person = self._persons.of(side)
            wanted[person] = wanted.get(person, 0) + count
        have: dict[str, int] = {}
        try:
            keys = self.keys()
            documents: Any = self.client.mget(keys) if keys else []
            for key, document in zip(keys, documents, strict=True):
                if STUB not in document:
                    person = self._persons.of(self._customer(key))
                    have[person] = have.get(person, 0) + events_of(document)
        except redis.RedisError:
            return sum(want.values())
        return sum(max(0, count - have.get(person, 0)) for person, count in wanted.items())

    def look(self, keys: list[bytes]) -> list[tuple[str, Sighting]]:
        """The revision and the count of events that a reader gets who asks by the key of a side; neither may fall."""
        sighted = []
        for key in keys[:WATCHED]:
            context = self._reader.context(key.rpartition(b":")[2].decode())
            document = {} if context is None else orjson.loads(context)
            side, at = self._customer(key), time.monotonic()
            sighted.append((side, Sighting(at, 1, document.get("revision", 0))))
            sighted.append((f"count of {side}", Sighting(at, 1, sum(document.get("channels", {}).values()))))
        return sighted

    def led_to(self, key: str) -> str:
        """Whose context a reader gets by this key; nobody's, while that is half a merge."""
        view = self._reader.view(key)
        return "" if view.merging else view.customer_key

    def find(self, side: str) -> str:
        return self._reader.find(KINDS[side[0]], side) or ""


@row("M", "pairs merge while processors die", load=Load(rate=200, customers=200, visits=1 / 150))
def merging(run: Run) -> None:
    """Every pair is linked while both sides receive events, some of them to a third side too, and processes die.

    Few visits: of more than ten, the oldest have left the documents, and nothing bridges them when these become one.
    """
    traffic = run.traffic = run.sender.traffic = PairTraffic(run.traffic.load, run.seed)
    store = run.store = Families(run.settings.redis or "", traffic.persons)
    run.judge = lambda ledger, seen: judge(traffic.persons, ledger, seen, store.held())
    run.complete = complete
    run.start()
    eventually(lambda: len(run.ledger.snapshot()) == len(traffic.sides), 60, "an event of every side")
    run.healed()
    # A process costs a second of CPU to start: more kills than these, and two cores do nothing else.
    waves, pause = (3, (0.2, 1.0)) if run.quick else (15, (1.0, 2.0))
    pairs = [(f"u{n}", f"d{n}") for n in range(traffic.load.customers)] + [(f"u{n}", f"e{n}") for n in traffic.thirds]
    for wave in range(waves):
        traffic.links.extend(pairs[wave::waves])
        for _ in run.times(2, 2):
            kill_one(run, *pause)
    run.healed()
    run.count("merges", len(pairs))
    astray = [pair for pair in pairs if len({store.led_to(store.find(side)) for side in pair} - {""}) != 1]
    run.expect(not astray, f"{len(astray)} pairs do not lead to one context")
    run.sleep(1)
