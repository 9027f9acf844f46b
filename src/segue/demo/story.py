"""The scripted story: from `story.toml` and a seed to events, bad input, and what both imply.

Deterministic: the same seed and start give the same bytes. What the story implies is counted from the
notes that its author made line by line (`implies`), never by running Segue's own code.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import msgspec
import orjson

from segue.demo.counts import Counts
from segue.demo.script import BadLine, Customer, Line, Note, Script


@dataclass(frozen=True)
class Person:
    """A customer of the story; `identifiers` are `type:value` as the API takes them.

    The first of them is in the customer's first event. `interesting` marks whose context is worth a look.
    """

    role: str
    title: str
    about: str
    identifiers: tuple[str, ...]
    interesting: bool


@dataclass(frozen=True)
class Scene:
    """One event and when to send it. `offset` is story time; a late one is sent long after its own time."""

    offset: timedelta
    person: Person
    event: dict[str, Any]
    say: str | None
    late: bool = False
    times: int = 1


@dataclass(frozen=True)
class BadInput:
    """Bytes to be refused with `reason`: by the API, or as a record on the topic of `channel`."""

    offset: timedelta
    what: str
    reason: str
    body: bytes
    channel: str | None = None
    key: bytes | None = None


class Story:
    """The story, placed in time. `start` is aware; nothing in it lies more than `length` after that."""

    def __init__(self, seed: int, start: datetime) -> None:
        self.seed, self.start = seed, start
        self._random = random.Random(seed)
        self._script = load()
        self.length = timedelta(hours=self._script.hours)
        self.people: list[Person] = []
        self.scenes: list[Scene] = []
        for customer in self._script.customer:
            self._play(customer)
        self.scenes.sort(key=lambda scene: scene.offset)
        self.bad = [self._bad(at, line) for at, line in enumerate(self._script.bad)]

    @property
    def interesting(self) -> Person:
        """The customer whose context is worth a look."""
        return next(person for person in self.people if person.interesting)

    def parts(self) -> list[Scene | BadInput]:
        """Everything in the order of playing."""
        return sorted([*self.scenes, *self.bad], key=lambda part: part.offset)

    # --- from lines to events

    def _play(self, customer: Customer) -> None:
        numbers = {name: self._random.randrange(10_000, 100_000) for name in customer.numbers}
        # One shift for the whole storyline, so that no gap within it changes.
        shift = timedelta(seconds=self._random.randrange(60))
        ids = {
            name: {"type": kind, "value": value.format_map(numbers), "level": level}
            for name, (kind, value, level) in customer.ids.items()
        }
        person = Person(
            role=customer.role,
            title=customer.title,
            about=customer.about,
            identifiers=tuple(_named_as(found["type"], found["value"]) for found in ids.values()),
            interesting=customer.interesting,
        )
        self.people.append(person)
        for number, line in enumerate(customer.steps, 1):
            data = {"identifiers": [ids[name] for name in line.as_.split()]} | self._data(line, numbers, shift)
            happened = moment(line.at) + shift
            event = {
                "specversion": "1.0",
                "id": f"story-{self.seed}-{self.start:%Y%m%dT%H%M%S}-{customer.role}-{number:02d}",
                "source": f"https://shop.example.com/{line.on}",
                "type": line.type,
                "time": self._time(happened),
                "channel": line.on,
                "data": data,
            }
            late = line.delivered is not None
            offset = moment(line.delivered) + shift if line.delivered is not None else happened
            times = 2 if line.sent_twice else 1
            self.scenes.append(Scene(offset, person, event, data.get("text"), late, times))

    def _data(self, line: Line, numbers: dict[str, int], shift: timedelta) -> dict[str, Any]:
        data: dict[str, Any] = {}
        if line.where is not None:
            data["touchpoint"] = line.where
        if line.by is not None:
            kind, _, group = line.by.partition("/")
            data["actor"] = {"kind": kind, "group": group} if group else {"kind": kind}
        if line.item is not None:
            item = {name: value for name, value in msgspec.structs.asdict(line.item).items() if value is not None}
            item["id"] = line.item.id.format_map(numbers)
            if line.item.due_at is not None:
                item["due_at"] = self._time(moment(line.item.due_at) + shift)
            data["item"] = item
        if line.wait_s is not None:
            data["wait_ms"] = line.wait_s * 1000
        if line.survey is not None:
            metric, score = line.survey.split()
            data["survey"] = {"metric": metric, "score": float(score)}
        if line.say is not None:
            data["text"] = line.say.format_map(numbers)
        if line.device is not None:
            data["device"] = line.device
        return data

    def _time(self, offset: timedelta) -> str:
        return (self.start + offset).astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    def _bad(self, number: int, line: BadLine) -> BadInput:
        channel = line.channel or "web"
        who = [{"type": "email", "value": "bad-input@example.com"}] if line.who is None else line.who
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": f"story-{self.seed}-{self.start:%Y%m%dT%H%M%S}-bad-{number:02d}",
            "source": f"https://shop.example.com/{channel}",
            "type": "page.viewed",
            "time": self._time(moment(line.at)),
            "channel": channel,
            "data": {"identifiers": who, "text": "坏数据"},
        } | line.change
        body = orjson.dumps(event)
        if line.encoding is not None:
            body = body.decode().encode(line.encoding)
        if line.cut:
            body = body[: body.index(b'"identifiers"')]
        topic = line.channel if line.door == "log" else None
        key = None if line.keyless else b"email:bad-input@example.com"
        return BadInput(moment(line.at), line.what, line.reason, body, topic, key)

    # --- what the story implies

    def expected(self) -> Counts:
        """Sum up the author's notes."""
        notes = Counter(note for customer in self._script.customer for line in customer.steps for note in line.implies)
        return Counts(
            events=Counter(line.on for customer in self._script.customer for line in customer.steps),
            customers=len(self._script.customer),
            sessions=notes["session"],
            cases=len(
                {
                    (customer.role, line.item.id)
                    for customer in self._script.customer
                    for line in customer.steps
                    if line.item is not None and line.item.kind == "case"
                }
            ),
            handoffs=_named(notes, "handoff"),
            signals=_named(notes, "signal"),
            late=notes["late"],
            duplicates=notes["duplicate"],
            refused=Counter(line.reason for line in self._script.bad if line.door == "http"),
            dead_letters=Counter(line.reason for line in self._script.bad if line.door == "log"),
        )


def load() -> Script:
    """Read the script. Raises ValueError naming the line that is wrong."""
    text = files("segue.demo").joinpath("story.toml").read_text("utf-8")
    return msgspec.toml.decode(text, type=Script)


def moment(text: str) -> timedelta:
    """Read a story time, h:mm."""
    hours, _, minutes = text.partition(":")
    return timedelta(hours=int(hours), minutes=int(minutes))


def _named_as(kind: str, value: str) -> str:
    """`type:value`; a telephone number without the spaces and strokes that people write."""
    return f"{kind}:{value.translate({ord(' '): None, ord('-'): None}) if kind == 'phone' else value}"


def _named(notes: Counter[Note], kind: str) -> Counter[str]:
    """The notes `kind:name`, by name."""
    return Counter({note.partition(":")[2]: times for note, times in notes.items() if note.startswith(f"{kind}:")})
