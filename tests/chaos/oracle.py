"""The judge. It knows what was sent and acknowledged, works out by itself what must have come of it, and compares.

It imports nothing of Segue and believes none of its counters: the rules it applies (sessions, ping-pong, poor answers,
long waits) are written here a second time, from the documentation. Times are milliseconds.

    I1  lost         acknowledged, and neither applied nor in the dead letters
    I2  over         applied, counted or passed on more often than sent
    I3  order        a customer's interactions applied in another order than the broker received them
    I4  missing, unexpected signals; `repeated` is the same signal more than once in the topic
    I6  regressions  a reader saw a customer's revision fall within an owner's epoch
    -   contexts     documents that differ from what the events say (channels, revision, sessions, timeline)
    -   counters     `segue stats` counters that differ
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

MINUTE = 60_000
GAP = 30 * MINUTE
GRACE = 10 * MINUTE
DAY = 24 * 60 * MINUTE
TIMELINE = 50
SESSIONS = 10
WINDOW = 512
"""A retry is recognised within so many events of its customer; one that comes later counts as new."""


class Event(NamedTuple):
    """One event as it was sent."""

    id: str
    customer: str
    channel: str
    time_ms: int
    score: float | None = None
    wait_ms: int | None = None
    names: tuple[str, ...] = ("user_id",)
    """What it says of the customer: the user id, the address, or both."""


class Ack(NamedTuple):
    """Where and when the broker took it in, by its own clock, and when we learnt that, by ours (monotonic s)."""

    topic: str
    partition: int
    offset: int
    append_ms: int
    at: float


class Bad(NamedTuple):
    """A record that no processor can use, and the reason that its dead letter must give."""

    key: bytes | None
    value: bytes | None
    reason: str
    channel: str
    """Of whose topic it is."""


class Ledger:
    """All that was sent, and where it stands in the log: that is what must be applied, once."""

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}
        self.acks: dict[str, list[Ack]] = {}
        self.tries: Counter[str] = Counter()
        self.bad: dict[tuple[str, int, int], Bad] = {}
        self.failed = 0
        self.untold = 0
        """Records of the log that no acknowledgement told of: the sender's client wrote them twice, or gave them up."""
        self.distinct: Counter[str] = Counter()
        """Acknowledged events per customer, retries not counted."""
        self.when: dict[str, list[float]] = defaultdict(list)
        """Per customer, when each of these was acknowledged."""
        self.total = 0
        self._places: set[tuple[str, int, int]] = set()
        self._lock = threading.Lock()

    def sent(self, event: Event) -> None:
        with self._lock:
            self.events[event.id] = event
            self.tries[event.id] += 1

    def acked(self, event: Event, ack: Ack) -> None:
        with self._lock:
            known = self.acks.setdefault(event.id, [])
            known.append(ack)
            self._places.add((ack.topic, ack.partition, ack.offset))
            self.total += 1
            if len(known) == 1:
                self.distinct[event.customer] += 1
                self.when[event.customer].append(ack.at)

    def refused(self, bad: Bad, ack: Ack) -> None:
        with self._lock:
            self.bad[ack.topic, ack.partition, ack.offset] = bad

    def placed(self, place: tuple[str, int, int]) -> bool:
        """Whether a record at this topic, partition and offset is acknowledged."""
        return place in self.bad or place in self._places

    def places(self, topic: str, since: int) -> list[tuple[str, int, int]]:
        """The acknowledged records of a topic from an offset on."""
        return [place for place in (*self.bad, *self._places) if place[0] == topic and place[2] >= since]

    def believed(self, event_id: str) -> Event | None:
        """An event with the time that counts: one that lies in the future is that of its receipt."""
        event, acks = self.events.get(event_id), self.acks.get(event_id)
        if event is None or not acks:
            return event
        received = min(acks, key=lambda ack: ack.offset).append_ms
        return event if event.time_ms <= received + 5 * MINUTE else event._replace(time_ms=received)

    def snapshot(self) -> dict[str, int]:
        """How many events of each customer are acknowledged now."""
        with self._lock:
            return dict(self.distinct)


class Letter(NamedTuple):
    """A dead letter: where it came from, and what it holds."""

    origin: tuple[str, int, int]
    key: bytes | None
    value: bytes | None
    reason: str


class Step(NamedTuple):
    """A journey step, in the order of its partition."""

    customer_key: str
    revision: int
    event_id: str
    of_time: bool = False
    """A deadline that passed, such as a session's end: it raises the revision, and nobody sent it."""
    absorbed: str = ""
    """The key of the customer whom this step made one with its own."""


@dataclass
class Observed:
    """What came of it, as any consumer of the topics and any reader of Redis finds it."""

    interactions: Counter[str]
    steps: list[Step]
    signals: list[dict[str, Any]]
    letters: list[Letter]
    documents: list[dict[str, Any]]
    stats: Counter[str]
    """The counters of the context processor, added up over its shards."""


@dataclass
class Verdict:
    """The counts of one row. Everything but `crossed`, `repeated`, `rewinds` and the times must be zero."""

    events: int = 0
    lost: int = 0
    over: int = 0
    order: int = 0
    crossed: int = 0
    """Inversions across channels: two resolve processes may read two channels at different speeds (ADR 6)."""
    contexts: int = 0
    counters: int = 0
    missing: int = 0
    unexpected: int = 0
    repeated: int = 0
    regressions: int = 0
    outside: int = 0
    """Retries beyond the window of event ids, which are applied again, as documented."""
    untold: int = 0
    """`Ledger.untold`"""
    rewinds: int = 0
    """Revisions that fell together with a new epoch: a Redis that lost writes, seen by a reader."""
    heal_s: float | None = None
    p99_ms: float | None = None
    notes: list[str] = field(default_factory=list)

    ZERO = ("lost", "over", "order", "contexts", "counters", "missing", "unexpected", "repeated", "regressions")

    @property
    def ok(self) -> bool:
        return not any(getattr(self, name) for name in self.ZERO) and not self.notes

    def violations(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.ZERO if getattr(self, name)}

    def raise_to(self, name: str, count: int, why: str) -> None:
        """Several looks at one invariant: the worst counts."""
        if count:
            setattr(self, name, max(getattr(self, name), count))
            self.notes.append(f"{name} {count}: {why}")


def some(found: Iterable[object], most: int = 3) -> str:
    """The first few, for a person."""
    listed = [str(each) for each in found]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def judge(ledger: Ledger, seen: Observed) -> Verdict:
    """Compare what was sent with what came of it."""
    verdict = Verdict(events=ledger.total)
    if ledger.failed:
        verdict.notes.append(f"{ledger.failed} sends failed: the harness could not reach its broker for too long")
    resolved(ledger, seen, verdict)
    applied = _applied(ledger, seen, verdict)
    order(ledger, applied, verdict)
    _contexts(seen, applied, verdict)
    _counters(seen, applied, verdict)
    _signals(seen, applied, verdict)
    dead_letters(ledger, seen, verdict)
    return verdict


def resolved(ledger: Ledger, seen: Observed, verdict: Verdict) -> None:
    """Every record of an event is one record of `segue.interactions`; a retry is another one."""
    few = {i: len(a) - seen.interactions[i] for i, a in ledger.acks.items() if seen.interactions[i] < len(a)}
    many = {i: n - len(ledger.acks.get(i, ())) for i, n in seen.interactions.items()}
    many = {i: more for i, more in many.items() if more > 0}
    verdict.untold = ledger.untold
    verdict.raise_to("lost", sum(few.values()), f"sends that resolve never passed on: {some(few)}")
    verdict.raise_to("over", sum(many.values()), f"interactions beyond the sends: {some(many)}")


def _applied(ledger: Ledger, seen: Observed, verdict: Verdict) -> dict[str, list[Event]]:
    """Each customer's events in the order of their revisions, from the journey steps."""
    revisions: dict[str, list[int]] = defaultdict(list)
    for step in seen.steps:
        revisions[step.event_id].append(step.revision)
    lost = [i for i in ledger.acks if i not in revisions]
    due = {step.event_id for step in seen.steps if step.of_time}
    strange = [i for i in revisions if i not in ledger.events and i not in due]
    again = {i: at for i, at in revisions.items() if len(at) > 1}
    outside = [i for i, at in again.items() if min(b - a for a, b in pairwise(sorted(at))) > WINDOW]
    twice = [i for i in again if i not in outside]
    verdict.outside = len(outside)
    verdict.raise_to("lost", len(lost), f"events without a step: {some(lost)}")
    verdict.raise_to("over", len(twice), f"several steps: {some(_story(ledger, seen, i) for i in twice)}")
    verdict.raise_to("over", len(strange), f"steps of events that nobody sent: {some(strange)}")
    applied: dict[str, list[Event]] = defaultdict(list)
    keys: dict[str, set[str]] = defaultdict(set)
    last: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    owner = {step.customer_key: ledger.events[step.event_id].customer for step in seen.steps if not step.of_time
             and step.event_id in ledger.events}  # fmt: skip
    for step in seen.steps:
        event, customer = ledger.believed(step.event_id), owner.get(step.customer_key)
        if customer is None or (event is None and not step.of_time):
            continue
        if step.revision != last[customer] + 1:
            broken[customer] += 1
            continue
        last[customer] += 1
        if event is not None:
            keys[customer].add(step.customer_key)
            applied[customer].append(event)
    split = [customer for customer, found in keys.items() if len(found) > 1]
    verdict.raise_to("order", sum(broken.values()), f"revisions that do not follow: {some(broken)}")
    verdict.raise_to("contexts", len(split), f"customers with several keys: {some(split)}")
    return applied


def _story(ledger: Ledger, seen: Observed, event_id: str) -> str:
    """All that is known of one event, for whoever looks into it."""
    revisions = [step.revision for step in seen.steps if step.event_id == event_id]
    event, acks = ledger.events.get(event_id), ledger.acks.get(event_id, [])
    return (
        f"{event_id} of {event and event.customer} on {event and event.channel}, sent {ledger.tries[event_id]} times, "
        f"taken in {[(ack.offset, ack.append_ms) for ack in acks]}, resolved {seen.interactions[event_id]} times, "
        f"applied as {revisions}"
    )


def order(ledger: Ledger, applied: dict[str, list[Event]], verdict: Verdict) -> None:
    """Within a channel as the partition has it; of one append time, by event time is right too."""
    wrong, crossed = [], []
    for events in applied.values():
        newest: dict[str, tuple[Ack, Event]] = {}
        high = 0
        for event in dict.fromkeys(events):
            acks = ledger.acks.get(event.id)
            if acks is None:
                continue
            ack = min(acks, key=lambda each: each.offset)
            if event.channel in newest:
                before, earlier = newest[event.channel]
                tied = before.append_ms == ack.append_ms and earlier.time_ms <= event.time_ms
                if ack.offset < before.offset and not tied:
                    wrong.append(event.id)
            if ack.append_ms < high:
                crossed.append(event.id)
            high = max(high, ack.append_ms)
            if event.channel not in newest or newest[event.channel][0].offset < ack.offset:
                newest[event.channel] = (ack, event)
    verdict.raise_to("order", len(wrong), f"applied after what came later on their channel: {some(wrong)}")
    verdict.crossed = len(crossed)


def sessions_of(events: list[Event]) -> int:
    """Visits: runs of events no more than the gap apart; what comes later than the grace opens none."""
    high, in_time = None, []
    for event in events:
        if high is None or event.time_ms >= high - GRACE:
            in_time.append(event.time_ms)
        high = event.time_ms if high is None else max(high, event.time_ms)
    in_time.sort()
    return sum(1 for n, at in enumerate(in_time) if n == 0 or at - in_time[n - 1] > GAP)


def _contexts(seen: Observed, applied: dict[str, list[Event]], verdict: Verdict) -> None:
    """One document per customer, and it says what the events say."""
    stored = {document["identifiers"][0]["value"]: document for document in seen.documents}
    lost = over = 0
    wrong = [name for name in stored if name not in applied]
    for customer, events in applied.items():
        document = stored.get(customer, {})
        have, want = Counter(document.get("channels", {})), Counter(event.channel for event in events)
        lost += (want - have).total()
        over += (have - want).total()
        if not _fits(document, events):
            wrong.append(customer)
    verdict.raise_to("lost", lost, "interactions that the documents lack")
    verdict.raise_to("over", over, "interactions that the documents have beyond the events")
    verdict.raise_to("contexts", len(wrong), f"documents that differ: {some(wrong)}")


def _fits(document: dict[str, Any], events: list[Event]) -> bool:
    if not document or document["revision"] < len(events):
        return False
    ids = {event.id for event in events}
    line = [(entry["event_time_ms"], entry["id"]) for entry in document["timeline"]]
    if line != sorted(line, key=lambda pair: pair[0]) or len({i for _, i in line}) != len(line):
        return False
    if len(line) != min(len(events), TIMELINE) or not {i for _, i in line} <= ids:
        return False
    if document["stream_time_ms"] != max(event.time_ms for event in events):
        return False
    return len(document["sessions"]) == min(SESSIONS, sessions_of(events))


def _counters(seen: Observed, applied: dict[str, list[Event]], verdict: Verdict) -> None:
    want: Counter[str] = Counter()
    for events in applied.values():
        want["customers"] += 1
        want["sessions"] += sessions_of(events)
        for event in events:
            want[f"events {event.channel}"] += 1
    want["duplicates"] = seen.interactions.total() - sum(len(events) for events in applied.values())
    have: Counter[str] = Counter()
    have["customers"] = seen.stats["fact|customer.created"]
    have["sessions"] = seen.stats["fact|session.opened"] - seen.stats["fact|session.merged"]
    have["duplicates"] = seen.stats["duplicates"]
    for name, count in seen.stats.items():
        if name.startswith("events|"):
            have[f"events {name.split('|')[1]}"] += count
    names = [name for name in want | have if want[name] != have[name]]
    verdict.raise_to("counters", len(names), some(f"{n} {have[n]}, not {want[n]}" for n in sorted(names)))


def expected_signals(customer: str, events: list[Event]) -> Counter[tuple[str, str, str]]:
    """(customer, rule, event that completed it), by the shipped rules, of events in the order they were applied."""
    found: Counter[tuple[str, str, str]] = Counter()
    for event in events:
        if event.score is not None and event.score <= 2:
            found[customer, "poor-survey-answer", event.id] += 1
        if event.wait_ms is not None and event.wait_ms >= 5 * MINUTE:
            found[customer, "missed-sla-or-long-wait", event.id] += 1
    for event_id in _ping_pongs(events):
        found[customer, "channel-ping-pong", event_id] += 1
    return found


def _ping_pongs(events: list[Event]) -> list[str]:
    """Three changes of channel within half an hour, within a visit; then none for two hours."""
    found: list[str] = []
    high: int | None = None
    place, moves, said = "", [], None
    for event in events:
        if high is not None and event.time_ms < high:
            continue  # out of order: it moves nobody
        moved = high is not None and event.channel != place and event.time_ms - high <= GAP
        place, high = event.channel, event.time_ms
        if not moved:
            continue
        moves = [at for at in moves if event.time_ms - at <= 30 * MINUTE]
        moves = [*moves[-2:], event.time_ms]
        if len(moves) == 3 and (said is None or event.time_ms - said >= 120 * MINUTE):
            found.append(event.id)
            said, moves = event.time_ms, []
    return found


def all_expected(applied: dict[str, list[Event]]) -> Counter[tuple[str, str, str]]:
    want: Counter[tuple[str, str, str]] = Counter()
    for customer, events in applied.items():
        want += expected_signals(customer, events)
    return want


def _signals(seen: Observed, applied: dict[str, list[Event]], verdict: Verdict) -> None:
    want = Counter(all_expected(applied).keys())  # a retry outside the window completes the same signal again
    by_event = {event.id: customer for customer, events in applied.items() for event in events}
    ids: dict[str, tuple[str, str, str]] = {}
    for signal in seen.signals:
        last = signal["evidence"][-1]
        ids[signal["signal_id"]] = (by_event.get(last, "?"), signal["rule"], last)
    have = Counter(ids.values())
    verdict.raise_to("missing", (want - have).total(), some(want - have))
    verdict.raise_to("unexpected", (have - want).total(), some(have - want))
    # A retry outside the window is a new event, and completes its signal once more.
    times = Counter(event.id for events in applied.values() for event in events)
    sent = Counter(signal["signal_id"] for signal in seen.signals)
    again = {ids[i]: n - max(1, times[ids[i][2]]) for i, n in sent.items() if n > max(1, times[ids[i][2]])}
    verdict.raise_to("repeated", sum(again.values()), f"signals that were sent again: {some(again)}")


def dead_letters(ledger: Ledger, seen: Observed, verdict: Verdict) -> None:
    """What cannot be used is there once, byte for byte, with its reason; nothing else is."""
    found: dict[tuple[str, int, int], list[Letter]] = defaultdict(list)
    for letter in seen.letters:
        found[letter.origin].append(letter)
    lost = [at for at in ledger.bad if at not in found]
    strange = [at for at in found if at not in ledger.bad]
    changed = [
        (at, letters[0].reason)
        for at, letters in found.items()
        if at in ledger.bad and (letters[0].key, letters[0].value, letters[0].reason) != ledger.bad[at][:3]
    ]
    verdict.raise_to("lost", len(lost), f"bad records that are no dead letters: {some(lost)}")
    verdict.raise_to("over", sum(len(each) - 1 for each in found.values()), "dead letters that are there again")
    verdict.raise_to("unexpected", len(strange), f"dead letters of good records: {some(strange)}")
    verdict.raise_to("lost", len(changed), f"dead letters not as they came, or with another reason: {some(changed)}")


class Sighting(NamedTuple):
    """What a reader saw of one customer: owner's epoch and revision, at a time (monotonic s)."""

    at: float
    epoch: int | None
    revision: int


class Watch:
    """What readers saw over time; fed by pollers."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Sighting]] = defaultdict(list)
        self.regressions: list[str] = []
        self.rewinds: list[str] = []

    def add(self, customer: str, sighting: Sighting) -> None:
        known = self.seen[customer]
        if known and sighting.revision < known[-1].revision:
            before = known[-1].epoch
            restored = before is None or sighting.epoch is None or sighting.epoch > before
            (self.rewinds if restored else self.regressions).append(
                f"{customer} {known[-1].revision} to {sighting.revision} in epoch {known[-1].epoch} to {sighting.epoch}"
            )
        if not known or (sighting.revision, sighting.epoch) != (known[-1].revision, known[-1].epoch):
            known.append(sighting)

    def quantile_ms(
        self, ledger: Ledger, share: float, spans: Iterable[tuple[float, float]], leave_out: str = ""
    ) -> float | None:
        """From acknowledgement to readable, of what was acknowledged within `spans`; to a reader's 50 ms."""
        took = sorted(self._took(ledger, list(spans), leave_out))
        return 1000 * took[min(len(took) - 1, int(len(took) * share))] if took else None

    def _took(self, ledger: Ledger, spans: list[tuple[float, float]], leave_out: str) -> Iterator[float]:
        for customer, seen in self.seen.items():
            rising: list[Sighting] = []  # when a revision was first reached
            for sighting in seen:
                if not rising or sighting.revision > rising[-1].revision:
                    rising.append(sighting)
            for n, acked in enumerate(() if customer == leave_out else ledger.when.get(customer, ()), 1):
                at = bisect_left(rising, n, key=lambda each: each.revision)
                if at < len(rising) and any(start <= acked <= end for start, end in spans):
                    yield max(0.0, rising[at].at - acked)
