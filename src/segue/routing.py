"""Where an event goes: its topic, and the key that decides its partition.

The collector and the client both ask here, so that a customer's events meet in one partition whichever
door they came in by. What is refused is refused in the words of the resolve processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from segue.core.event import Event, Identifier, Rejected, decode
from segue.core.identity import contradictory, ref
from segue.log.port import Output
from segue.normalise import normalise
from segue.topics import event_topic

NO_USABLE_IDENTIFIER = Rejected(
    "missing_identifiers",
    "$.data.identifiers",
    "no usable identifier: placeholders, malformed addresses and numbers name nobody",
)
CONTRADICTORY = Rejected(
    "contradictory_identifiers",
    "$.data.identifiers",
    "two user_ids: an event is about one person. Send an event for each; a second account of one person is an "
    "external_id",
)


class Routed(Struct, frozen=True):
    """An event that passed the checks, with its place in the log. `raw` is as the sender wrote it.

    `names` are its usable identifiers, `type:value`, strongest first; the first is the key.
    """

    event: Event
    topic: str
    key: bytes
    raw: bytes
    names: tuple[str, ...]

    @property
    def lane(self) -> tuple[str, bytes]:
        """Events of one lane keep their order by themselves: same topic, same partition."""
        return self.topic, self.key

    @property
    def output(self) -> Output:
        return Output(self.topic, self.key, self.raw)


def unusable(identifiers: tuple[Identifier, ...]) -> Rejected | None:
    """Why these identifiers, normalised, cannot say whose an event is; None when they can."""
    if not identifiers:
        return NO_USABLE_IDENTIFIER
    return CONTRADICTORY if contradictory(identifiers) else None


def route(raw: bytes, region: str | None = None) -> Routed | Rejected:
    """Check one event and say where it goes. Never raises for what a sender can send.

    `region` reads phone numbers written without a country code (`Settings.phone_region`).
    """
    event = decode(raw)
    if isinstance(event, Rejected):
        return event
    identifiers = normalise(event.data.identifiers, region)
    why = unusable(identifiers)
    if why is not None:
        return why
    names = tuple(ref(identifier) for identifier in identifiers)
    return Routed(event, event_topic(event.channel), names[0].encode(), raw, names)


def in_order(events: Iterable[Routed]) -> Iterator[list[Output]]:
    """Cut events into runs to be acknowledged one after another.

    A log keeps order within a partition only. So where an identifier turns up in a second lane (the customer
    changed channel, or signed in), a new run begins: what came later is then received later.
    """
    run: list[Output] = []
    lanes: dict[str, tuple[str, bytes]] = {}
    for event in events:
        if any(lanes.get(name, event.lane) != event.lane for name in event.names):
            yield run
            run, lanes = [], {}
        lanes.update(dict.fromkeys(event.names, event.lane))
        run.append(event.output)
    if run:
        yield run
