"""Where an event goes: its topic, and the key that decides its partition.

The collector and the client both ask here, so that a customer's events meet in one partition whichever
door they came in by. What is refused is refused in the words of the resolve processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from segue.core.event import Event, Identifier, Rejected, decode
from segue.core.identity import ref
from segue.log.port import Output
from segue.normalise import normalise
from segue.topics import event_topic

NO_USABLE_IDENTIFIER = Rejected(
    "missing_identifiers",
    "$.data.identifiers",
    "no usable identifier: placeholders, malformed addresses and numbers name nobody",
)


class Routed(Struct, frozen=True):
    """An event that passed the checks, with its place in the log. `raw` is as the sender wrote it."""

    event: Event
    topic: str
    key: bytes
    raw: bytes

    @property
    def output(self) -> Output:
        return Output(self.topic, self.key, self.raw)


def routing_key(identifiers: tuple[Identifier, ...], region: str | None = None) -> bytes | None:
    """The strongest usable identifier, normalised, as `type:value`; None when there is none.

    `region` reads phone numbers written without a country code (`Settings.phone_region`).
    """
    usable = normalise(identifiers, region)
    return ref(usable[0]).encode() if usable else None


def route(raw: bytes, region: str | None = None) -> Routed | Rejected:
    """Check one event and say where it goes. Never raises for what a sender can send."""
    event = decode(raw)
    if isinstance(event, Rejected):
        return event
    key = routing_key(event.data.identifiers, region)
    if key is None:
        return NO_USABLE_IDENTIFIER
    return Routed(event, event_topic(event.channel), key, raw)


def in_order(outputs: Iterable[Output]) -> Iterator[list[Output]]:
    """Cut outputs into runs to be acknowledged one after another.

    A log keeps order within a topic only. So where a key turns up in a second topic, a new run begins: the
    customer's next contact is then received after the last, not beside it.
    """
    run: list[Output] = []
    topics: dict[bytes | None, str] = {}
    for output in outputs:
        if topics.setdefault(output.key, output.topic) != output.topic:
            yield run
            run, topics = [], {output.key: output.topic}
        run.append(output)
    if run:
        yield run
