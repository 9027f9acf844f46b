"""What flows between the processors: the accepted interaction, the journey step, the facts in it.

Times are integers in milliseconds since 1970 UTC, named `..._ms`. These structs are decoded and encoded
for every event, hence `omit_defaults` (small) and `gc=False` (they hold no cycles).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from msgspec import Raw, Struct

from segue.core import skew
from segue.core.channels import ActorKind
from segue.core.event import NO_PROPERTIES, Event, ItemStatus, Level, Metric, Named


class ItemChange(Struct, frozen=True, omit_defaults=True, gc=False):
    """What an event says of an item (see `event.Item`), with times in ms."""

    kind: str
    id: str
    status: ItemStatus | None = None
    title: str | None = None
    group: str | None = None
    assignee: str | None = None
    opened_at_ms: int | None = None
    due_at_ms: int | None = None
    sla_missed: bool | None = None
    reopen_count: int | None = None
    reassign_count: int | None = None

    @property
    def ref(self) -> str:
        """`kind:id`, the item's name within a customer."""
        return f"{self.kind}:{self.id}"


class Actor(Struct, frozen=True, omit_defaults=True, gc=False):
    kind: ActorKind = "customer"
    id: str | None = None
    group: str | None = None


class Answer(Struct, frozen=True, gc=False):
    metric: Metric
    score: float


class Entry(Struct, omit_defaults=True, gc=False):
    """One line of a customer's timeline: the event in the form that readers see."""

    id: str
    type: str
    channel: str
    event_time_ms: int
    received_at_ms: int
    touchpoint: str | None = None
    actor: Actor | None = None
    item: ItemChange | None = None
    survey: Answer | None = None
    wait_ms: int | None = None
    text: str | None = None
    device: str | None = None
    source: str | None = None
    source_session_id: str | None = None
    """The sender's own name for the visit. Which session of ours that is says `session_id`."""
    late: bool = False
    skew_ms: int = 0
    """What was added to the sender's time, because it lay ahead of when it was received (`core.skew`)."""
    session_id: str | None = None
    properties: Raw = NO_PROPERTIES

    def acting(self) -> ActorKind:
        """Who acted; the customer where nobody is named. A method: to call a property costs more."""
        return "customer" if self.actor is None else self.actor.kind


class Interaction(Struct, omit_defaults=True, gc=False):
    """An accepted event with its customer: the record of `segue.interactions`.

    `contested` names the identifier types of this event that belong to another customer, so that the core
    does not count, say, a case twice. `via` is the customer that the event was addressed to, where that one
    has been absorbed since and passed it on.
    """

    customer_key: str
    entry: Entry
    identifiers: tuple[Named, ...]
    contested: tuple[str, ...] = ()
    via: str | None = None


class Fact(Struct, frozen=True, omit_defaults=True, gc=False):
    """One thing that an interaction changed. `docs/facts.md` lists the kinds; `core.facts` builds them."""

    fact: str
    item: str | None = None
    before: str | None = None
    after: str | None = None
    value: float | None = None
    evidence: tuple[str, ...] = ()
    """Ids of earlier events that this fact also rests on."""


class Place(Struct, omit_defaults=True, gc=False):
    """Where a customer is: channel, touchpoint within it, device, and who is serving."""

    channel: str
    since_ms: int
    touchpoint: str | None = None
    device: str | None = None
    served_by: str | None = None


class Step(Struct, omit_defaults=True, gc=False):
    """One applied interaction and what it changed: the record of `segue.journey-steps`.

    A merge of customers is a step too; then `customers` are all whom the survivor stands for or, when it is undone,
    all who leave. `via`: see `Interaction`. `signals` carries the state of somebody's signals to another partition;
    such a step is for the signals processor alone and has no facts.
    """

    customer_key: str
    revision: int
    entry: Raw
    facts: tuple[Fact, ...] = ()
    previous: Place | None = None
    via: str | None = None
    customers: tuple[str, ...] = ()
    signals: Raw = NO_PROPERTIES


class StepView(Struct, omit_defaults=True, gc=False):
    """The part of a step that signals need; the rest is skipped while decoding."""

    customer_key: str
    revision: int
    entry: Entry
    facts: tuple[Fact, ...] = ()
    via: str | None = None
    customers: tuple[str, ...] = ()
    signals: Raw = NO_PROPERTIES


class KnownIdentifier(Struct, frozen=True, omit_defaults=True, gc=False):
    type: str
    value: str
    level: Level
    since_ms: int


_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 UTC of an aware datetime, rounded down. In integers: a float would lose one at times."""
    return (moment - _EPOCH) // _MS


def _optional_ms(moment: datetime | None) -> int | None:
    return None if moment is None else to_ms(moment)


def happened_ms(event: Event, received_at_ms: int) -> int:
    """When a decoded event happened by our clock (`core.skew`)."""
    given, sent_at = to_ms(event.time), event.data.sent_at
    if 0 < given <= received_at_ms and sent_at is None:
        return given
    return skew.event_time(given, _optional_ms(sent_at), received_at_ms)


def entry_of(event: Event, received_at_ms: int, properties: Raw) -> Entry:
    """Return the timeline entry of a decoded event, at the time it happened by our clock."""
    data = event.data
    actor, item, survey = data.actor, data.item, data.survey
    given, at = to_ms(event.time), happened_ms(event, received_at_ms)
    return Entry(
        id=event.id,
        type=event.type,
        channel=event.channel,
        event_time_ms=at,
        received_at_ms=received_at_ms,
        touchpoint=data.touchpoint,
        actor=None if actor is None else Actor(actor.kind, actor.id, actor.group),
        item=None
        if item is None
        else ItemChange(
            kind=item.kind,
            id=item.id,
            status=item.status,
            title=item.title,
            group=item.group,
            assignee=item.assignee,
            opened_at_ms=_optional_ms(item.opened_at),
            due_at_ms=_optional_ms(item.due_at),
            sla_missed=item.sla_missed,
            reopen_count=item.reopen_count,
            reassign_count=item.reassign_count,
        ),
        survey=None if survey is None else Answer(survey.metric, survey.score),
        wait_ms=data.wait_ms,
        text=data.text,
        device=data.device,
        source=event.source,
        source_session_id=data.source_session_id,
        skew_ms=at - given,
        properties=properties,
    )
