"""What lies in `segue.dead-letters`, what was done about it, and doing it: replay and discard.

A replay sends the record to its origin again: same bytes, same key, so the event keeps its id and its customer,
and a second replay is dropped as the duplicate that it is. Its place in the customer's order is a later one: that
of now. The record goes first and the note of it second, so a crash in between leaves a letter open that can be
replayed once more without harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct, field

from segue.core.event import Rejected
from segue.core.interaction import Interaction, StepView
from segue.deadletters import Action, Letter, action_record, read
from segue.log.port import Log, Output
from segue.log.sqlite import Row
from segue.mending import Step, mend
from segue.runtime import logged_layout
from segue.topics import DEAD_LETTERS, EVENT_TOPICS, EVENTS, INTERACTIONS, JOURNEY_STEPS
from streams.resolve import check

MOST_ATTEMPTS = 3
"""A record that was refused after so many replays is parked: what helps it is not another one."""
_TOGETHER = 500
"""Records sent before their acknowledgements are waited for."""

State = Literal["open", "replayed", "discarded", "parked"]


class Case(Struct):
    """A letter and what was done about it, oldest first, each with its time (ms since 1970)."""

    letter: Letter
    actions: list[tuple[int, Action]] = field(default_factory=list)
    came_back_as: str | None = None
    """The letter that its last replay became."""

    @property
    def attempts(self) -> int:
        """How often the record was replayed, counting those of the letters before this one."""
        return self.letter.attempt + sum(action.action == "replayed" for _, action in self.actions)

    @property
    def state(self) -> State:
        if self.actions:
            return self.actions[-1][1].action
        return "parked" if self.attempts >= MOST_ATTEMPTS else "open"


class Box(Struct):
    """The cases, oldest first, and how many records of the topic are neither letters nor actions of ours."""

    cases: list[Case]
    strangers: int


def look(source: Log, keep: Callable[[str], bool] = lambda _: False) -> Box:
    """Read all of `segue.dead-letters`. Keys and values are kept of those letters only whose id `keep` wants."""
    cases: dict[str, Case] = {}
    actions: dict[str, list[tuple[int, Action]]] = {}
    strangers = 0
    for record in source.read(DEAD_LETTERS):
        found = read(record)
        if isinstance(found, Action):
            actions.setdefault(found.letter, []).append((record.timestamp()[1], found))
        elif found is None:
            strangers += 1
        elif found.id not in cases:  # a crash may have doubled it
            kept = found if keep(found.id) else msgspec.structs.replace(found, key=None, value=None)
            cases[found.id] = Case(kept)
    for name, done in actions.items():
        if name in cases:
            cases[name].actions = done
    ordered = sorted(cases.values(), key=_age)
    for case in ordered:
        before = cases.get(case.letter.replay_of or "")
        if before is not None:
            before.came_back_as = case.letter.id
    return Box(ordered, strangers)


def _age(case: Case) -> tuple[int, str, int, int]:
    letter = case.letter
    return letter.at_ms, letter.topic, letter.partition, letter.offset


class Choice(Struct, frozen=True):
    """Which letters are meant; what is None does not choose."""

    ids: frozenset[str] | None = None
    reason: str | None = None
    topic: str | None = None
    since_ms: int | None = None
    states: tuple[State, ...] = ("open", "parked", "replayed", "discarded")

    def takes(self, case: Case) -> bool:
        letter = case.letter
        return (
            (self.ids is None or letter.id in self.ids)
            and (self.reason is None or letter.reason == self.reason)
            and (self.topic is None or letter.topic == self.topic)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and case.state in self.states
        )


# --- replay and discard


class Repair(Struct, frozen=True):
    """What to change before a replay. `topic` and `key` replace the record's own."""

    steps: tuple[Step, ...] = ()
    topic: str | None = None
    key: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """What it changes, without values."""
        return (*(step.path for step in self.steps), *(("key",) if self.key is not None else ()))


class Sent(NamedTuple):
    """A letter that was replayed, or the reason why it was not."""

    id: str
    why_not: str | None = None


def replay(
    source: Log, cases: Iterable[Case], repair: Repair | None = None, region: str | None = None, dry_run: bool = False
) -> Iterator[Sent]:
    """Send records to their origin again, in their order, and say of each what became of it.

    What would be refused again, has had its attempts, or does not take the repair is not sent. The cases must hold
    their letters whole (`look`). Raises LogUnavailable; what was said to be sent is.
    """
    repair = repair or Repair()
    place = logged_layout(source)
    interactions = INTERACTIONS if place is None else place.interactions
    ready: list[tuple[Case, Output]] = []
    for case in cases:
        made = _made(source, case, repair, region, interactions)
        if isinstance(made, str):
            yield Sent(case.letter.id, made)
        else:
            ready.append((case, made))
    # One topic after another, as they came: who moved from one channel to the next arrives there in that order.
    for _, run in groupby(ready, key=lambda each: each[1].topic):
        while some := list(islice(run, _TOGETHER)):
            if not dry_run:
                source.append([output for _, output in some])
                source.append([_noted(case, output, repair) for case, output in some])
            yield from (Sent(case.letter.id) for case, _ in some)


def _made(source: Log, case: Case, repair: Repair, region: str | None, interactions: str) -> Output | str:
    """The record to send, or why there is none."""
    letter = case.letter
    if case.attempts >= MOST_ATTEMPTS:
        return f"parked: it had its {MOST_ATTEMPTS} replays; mend it by hand (`show --raw`) or discard it"
    topic = repair.topic or letter.topic
    if topic.startswith(f"{INTERACTIONS}."):  # where a rebuild had moved them
        topic = INTERACTIONS
    check_again = _CHECKS.get(topic)
    if check_again is None:
        return f"{topic} is no topic that Segue's processors read"
    value = letter.value
    if repair.steps:
        try:
            value = mend(value or b"", repair.steps)
        except ValueError as error:
            return str(error)
    if topic == INTERACTIONS:
        topic = interactions
    key = letter.key if repair.key is None else repair.key.encode()
    output = Output(topic, key, value, _partition(source, letter, topic, key), letter.again(case.attempts + 1))
    refused = check_again(output, region)
    return (
        output if refused is None else f"would be refused again: {refused.reason} at {refused.field}: {refused.detail}"
    )


def _partition(source: Log, letter: Letter, topic: str, key: bytes | None) -> int:
    """Where the customer's other records are: the partition that it came from, which its sender chose."""
    moved = topic != letter.topic or key != letter.key
    if moved or (key is not None and topic not in EVENT_TOPICS):  # ours go by their key alone
        return -1
    return letter.partition if letter.partition < source.partitions(topic) else -1


def _noted(case: Case, output: Output, repair: Repair) -> Output:
    topic = output.topic if output.topic != case.letter.topic else None
    return action_record(Action(case.letter.id, "replayed", case.attempts + 1, topic, repair.paths))


def _as_event(output: Output, region: str | None) -> Rejected | None:
    row = Row((output.topic, 0), 0, 0, output.key, output.value, None)
    found = check(row, output.topic.removeprefix(EVENTS), region)
    return found if isinstance(found, Rejected) else None


def _as(struct: type[Struct]) -> Callable[[Output, str | None], Rejected | None]:
    def checked(output: Output, region: str | None) -> Rejected | None:
        try:
            msgspec.json.decode(output.value or b"", type=struct)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Rejected("not_readable", "$", str(error))
        return None

    return checked


_CHECKS: dict[str, Callable[[Output, Any], Rejected | None]] = {
    **dict.fromkeys(EVENT_TOPICS, _as_event),
    INTERACTIONS: _as(Interaction),
    JOURNEY_STEPS: _as(StepView),
}
"""What the reader of each topic would refuse at once; sending that again would only count against the limit."""


def discard(source: Log, cases: Iterable[Case], reason: str | None) -> list[str]:
    """Note that nothing more will be done about these. Returns their ids."""
    ids = [case.letter.id for case in cases]
    for at in range(0, len(ids), _TOGETHER):
        source.append([action_record(Action(name, "discarded", reason=reason)) for name in ids[at : at + _TOGETHER]])
    return ids
