"""The judge where customers turn out to be one person. Like `oracle`, it imports nothing of Segue.

The load sends as *sides*: a person's user id, their tablet, their phone. Which sides are one person is known to the
load alone (`Persons`), as soon as it has sent the event that says so. Every acknowledged event of every side must then
be exactly once in the one document that stands for the person, in its part, among the steps and among the signals.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.chaos.oracle import (
    GAP,
    GRACE,
    SESSIONS,
    TIMELINE,
    Event,
    Ledger,
    Observed,
    Step,
    Verdict,
    dead_letters,
    expected_signals,
    order,
    resolved,
    some,
)

ACTIVE = 20
"""The latest signals that a customer's document of signals keeps."""
BY_ORDER = "channel-ping-pong"
"""The rule that depends on how the records of two sides met, so that only what it rests on is judged."""


class Persons:
    """Which sides are one person: a union-find."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def unite(self, one: str, other: str) -> None:
        self._above[self.of(one)] = self.of(other)

    def of(self, side: str) -> str:
        """A side that stands for the person; the same one for all of their sides."""
        while side in self._above:
            side = self._above[side]
        return side


@dataclass
class Documents:
    """What Redis holds beside the customers' documents, by their keys."""

    parts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By the survivor's key and that of whom the part would be alone."""
    signals: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the latest signals."""


class Visits(NamedTuple):
    """How far a customer's time has come, and the times of what came within the grace."""

    high: int
    times: list[int]

    @property
    def sessions(self) -> int:
        times = sorted(self.times)
        return sum(1 for n, at in enumerate(times) if n == 0 or at - times[n - 1] > GAP)


def judge(persons: Persons, ledger: Ledger, seen: Observed, held: Documents) -> Verdict:
    """Compare what was sent with what came of it."""
    verdict = Verdict(events=ledger.total)
    if ledger.failed:
        verdict.notes.append(f"{ledger.failed} sends failed: the harness could not reach its broker for too long")
    resolved(ledger, seen, verdict)
    found = _Applied(persons, ledger, seen)
    _steps(found, verdict)
    order(ledger, found.by_side, verdict)
    _documents(found, seen, held, verdict)
    _counters(found, seen, verdict)
    _signals(found, seen, held, verdict)
    dead_letters(ledger, seen, verdict)
    return verdict


def complete(ledger: Ledger, seen: Observed) -> bool:
    """Whether every signal is there that follows from one event alone."""
    have = {signal["signal_id"] for signal in seen.signals if signal["rule"] != BY_ORDER}
    return len(have) >= sum(1 for _ in _alone(ledger, ledger.acks))


def _alone(ledger: Ledger, ids: Any) -> Iterator[tuple[str, str]]:
    """(rule, event) of the signals that follow from one event alone."""
    for each in ids:
        event = ledger.events[each]
        for _, rule, last in expected_signals(event.customer, [event]):
            yield rule, last


class _Applied:
    """The journey steps, by customer key and by person."""

    def __init__(self, persons: Persons, ledger: Ledger, seen: Observed) -> None:
        self.persons, self.ledger = persons, ledger
        self.steps: dict[str, list[Step]] = defaultdict(list)
        for step in seen.steps:
            self.steps[step.customer_key].append(step)
        self.into = {step.absorbed: step.customer_key for step in seen.steps if step.absorbed}
        self.by_person: dict[str, list[Event]] = defaultdict(list)
        self.by_side: dict[str, list[Event]] = defaultdict(list)
        self.keys: dict[str, set[str]] = defaultdict(set)
        """Of each person, those under which something of theirs was applied."""
        for key in sorted(self.steps, key=self._depth, reverse=True):  # a side's own key comes before its survivor's
            for event in self.events(key):
                person = persons.of(event.customer)
                self.by_person[person].append(event)
                self.by_side[event.customer].append(event)
                self.keys[person].add(key)

    def events(self, key: str) -> list[Event]:
        found = (self.ledger.believed(step.event_id) for step in self.steps[key])
        return [event for event in found if event is not None]

    def _depth(self, key: str) -> int:
        return 1 + self._depth(self.into[key]) if key in self.into else 0

    def sides(self, person: str) -> set[str]:
        return {event.customer for event in self.by_person[person]}

    def root(self, person: str) -> str:
        """The key that stands for a person, as the steps say."""
        key = min(self.keys[person])
        while key in self.into:
            key = self.into[key]
        return key

    def visits(self, key: str) -> Visits:
        """As if each customer's events, and those of whom it absorbed, were all there is."""
        high, times = 0, []
        for step in self.steps[key]:
            if step.absorbed:
                theirs = self.visits(step.absorbed)
                high, times = max(high, theirs.high), times + theirs.times
            event = self.ledger.believed(step.event_id)
            if event is None:
                continue
            if event.time_ms >= high - GRACE:
                times.append(event.time_ms)
            high = max(high, event.time_ms)
        return Visits(high, times)


def _steps(found: _Applied, verdict: Verdict) -> None:
    """One step for each event, revisions that rise one by one, and nobody's events in another person's document."""
    count = Counter(step.event_id for steps in found.steps.values() for step in steps if not step.of_time)
    ledger = found.ledger
    lost = [event for event in ledger.acks if event not in count]
    twice = [event for event, times in count.items() if times > 1]
    strange = [event for event in count if event not in ledger.events]
    verdict.raise_to("lost", len(lost), f"events without a step: {some(lost)}")
    verdict.raise_to("over", len(twice), f"events with several steps: {some(twice)}")
    verdict.raise_to("over", len(strange), f"steps of events that nobody sent: {some(strange)}")
    mixed, broken = [], []
    for key, steps in found.steps.items():
        people = {found.persons.of(event.customer) for event in found.events(key)}
        if len(people) > 1:
            mixed.append(key)
        several = any(len(found.sides(person)) > 2 for person in people)  # who brings others along says so once
        last = 0
        for step in steps:
            if step.revision <= last or (step.revision > last + 1 and not step.absorbed and not several):
                broken.append(f"{key} {last} to {step.revision}")
            last = step.revision
    verdict.raise_to("order", len(broken), f"revisions that do not follow: {some(broken)}")
    verdict.raise_to("contexts", len(mixed), f"documents of several people: {some(mixed)}")


def _documents(found: _Applied, seen: Observed, held: Documents, verdict: Verdict) -> None:
    """Of each person one document, which says what all the sides' events say; the others are stubs that lead there."""
    stored = {document["customer_key"]: document for document in seen.documents}
    lost = over = 0
    wrong = [key for key in stored if not any(key in keys for keys in found.keys.values())]
    for person, events in found.by_person.items():
        root, keys = found.root(person), found.keys[person]
        document = stored.get(root, {})
        have, want = Counter(document.get("channels", {})), Counter(event.channel for event in events)
        lost += (want - have).total()
        over += (have - want).total()
        if any(_followed(stored, key) != root for key in keys):
            wrong.append(f"{person}: stubs")
        wrong += [f"{person}: {what}" for what in _differences(found, person, document, held.parts.get(root, {}))]
    verdict.raise_to("lost", lost, "interactions that the documents lack")
    verdict.raise_to("over", over, "interactions that the documents have beyond the events")
    verdict.raise_to("contexts", len(wrong), f"documents that differ: {some(wrong)}")


def _followed(stored: dict[str, dict[str, Any]], key: str) -> str:
    """Where the stubs lead from a key."""
    for _ in stored:
        into = stored.get(key, {}).get("kin", {}).get("into")
        if into is None:
            return key
        key = into["survivor"]
    return "round in circles"


def _differences(
    found: _Applied, person: str, document: dict[str, Any], parts: dict[str, dict[str, Any]]
) -> Iterator[str]:
    if not document:
        yield "none"
        return
    events, sides, kin = found.by_person[person], found.sides(person), document.get("kin", {})
    line = [(entry["event_time_ms"], entry["id"]) for entry in document["timeline"]]
    if [at for at, _ in line] != sorted(event.time_ms for event in events)[-TIMELINE:]:
        yield "timeline"
    if len({event for _, event in line}) != len(line) or not {e for _, e in line} <= {e.id for e in events}:
        yield "events of the timeline"
    if document["stream_time_ms"] != max(event.time_ms for event in events):
        yield "stream time"
    if len(document["sessions"]) != min(SESSIONS, found.visits(found.root(person)).sessions):
        yield "sessions"
    if {known["value"] for known in document["identifiers"]} != sides:
        yield "identifiers"
    if "into" in kin or len(kin.get("absorbed", ())) != len(sides) - 1:
        yield "whom it stands for"
    have = sorted(sum(part["channels"].values()) for part in parts.values())
    if len(sides) > 1 and have != sorted(Counter(event.customer for event in events).values()):
        yield "parts"


def _counters(found: _Applied, seen: Observed, verdict: Verdict) -> None:
    facts: Counter[str] = Counter()
    want: Counter[str] = Counter()
    for person, events in found.by_person.items():
        want["customers"] += 1
        want["sessions"] += found.visits(found.root(person)).sessions
        want.update(f"events {event.channel}" for event in events)
    want["duplicates"] = seen.interactions.total() - sum(len(events) for events in found.by_person.values())
    for name, count in seen.stats.items():
        kind, _, rest = name.partition("|")
        if kind == "fact":
            facts[rest] += count
        elif kind == "events":
            facts[f"events {rest.partition('|')[0]}"] += count
    have = Counter({name: facts[name] for name in facts if name.startswith("events ")})
    have["customers"] = facts["customer.created"] - facts["customer.merged"]
    have["sessions"] = facts["session.opened"] - facts["session.merged"] + facts["session.split"]
    have["duplicates"] = seen.stats["duplicates"]
    names = [name for name in want | have if want[name] != have[name]]
    verdict.raise_to("counters", len(names), some(f"{n} {have[n]}, not {want[n]}" for n in sorted(names)))


def _signals(found: _Applied, seen: Observed, held: Documents, verdict: Verdict) -> None:
    """Each once, and all of a person's at whoever stands for them."""
    applied = {event.id: person for person, events in found.by_person.items() for event in events}
    want = Counter(_alone(found.ledger, applied))
    rules = {signal["signal_id"]: (signal["rule"], signal["evidence"][-1]) for signal in seen.signals}
    have = Counter(last for last in rules.values() if last[0] != BY_ORDER)
    verdict.raise_to("missing", (want - have).total(), some(want - have))
    verdict.raise_to("unexpected", (have - want).total(), some(have - want))
    verdict.raise_to("repeated", len(seen.signals) - len(rules), "signals that were sent again")
    theirs: dict[str, set[str]] = defaultdict(set)
    mixed = []
    for signal in seen.signals:
        people = {applied.get(event, "?") for event in signal["evidence"]}
        theirs[min(people)].add(signal["signal_id"])
        if len(people) > 1:
            mixed.append(signal["signal_id"])
    verdict.raise_to("unexpected", len(mixed), f"signals about several people: {some(mixed)}")
    astray = []
    for person, ids in theirs.items():
        kept = held.signals.get(found.root(person), []) if person in found.keys else []
        if len(kept) != len(set(kept)) or not set(kept) <= ids or len(kept) != min(len(ids), ACTIVE):
            astray.append(person)
    verdict.raise_to("contexts", len(astray), f"people whose signals are not with their survivor: {some(astray)}")
