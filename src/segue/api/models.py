"""The shapes of the answers, for the OpenAPI description. Answers are written as JSON bytes, not through these.

A test holds real answers against them.
"""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/"


class Answer(BaseModel):
    """Every answer from the store says until when it is complete."""

    as_of: AwareDatetime | None = Field(
        description="All events received up to this moment are in the answer. Null until every processor has reported.",
        examples=["2026-03-01T09:30:00.120Z"],
    )
    lag_ms: int | None = Field(description="How long ago `as_of` was, in milliseconds.", examples=[130])


class ContextAnswer(Answer):
    """A customer's context and latest signals."""

    epoch: int = Field(
        description="Of the process that wrote the context. Within an epoch `context.revision` never falls. It rises "
        "when another process takes over, and then the revision may fall for a moment, if the store lost writes."
    )
    context: dict[str, Any] = Field(
        description="The document of `schemas/context.schema.json` without its bookkeeping (`seen`, `openings`, "
        "`loose`, `due_ms`, `fired_ms`), with two things added that depend on the present: `session_active`, and "
        "`age_ms` of each item that is open or waiting. Fields at their default are left out. Times named `_ms` are "
        "ms since 1970 UTC.",
    )
    signals: list[dict[str, Any]] = Field(description="The customer's latest signals, oldest first, at most 20.")
    signals_as_of: AwareDatetime | None = Field(
        description="As `as_of`, for `signals`: they follow the context by some milliseconds."
    )


class TimelineAnswer(Answer):
    """The latest interactions on all channels."""

    customer_key: str
    entries: list[dict[str, Any]] = Field(description="In event-time order, the latest last.")


class SignalsAnswer(Answer):
    """The latest signals of one customer."""

    customer_key: str
    signals: list[dict[str, Any]] = Field(description="Oldest first, at most 20.")


class IdentityAnswer(Answer):
    """What is known around one identifier."""

    identifier: str = Field(description="`type:value`, normalised.")
    belongs_to: str = Field(description="Its customer before any merge.")
    customer_key: str = Field(description="The customer who stands for that one now.")
    links: list[dict[str, Any]] = Field(
        description="Every identifier of the customer: whose it is before any merge (`customer_key`), since when "
        "(`since_ms`) and by which event (`event_id`)."
    )
    merges: list[dict[str, Any]] = Field(
        description="Who was absorbed by whom, oldest first: `event_id` (or the command's id), `at_ms`, `reason`."
    )
    candidates: list[dict[str, Any]] = Field(
        description="Who used an identifier of this customer's and was not merged with them: `reason`, and `why` in "
        "`en` and `zh`."
    )
    apart: list[str] = Field(
        description="Customers whom an operator took out of this one, or this one of them: no event merges them again."
    )


class MergeOrder(BaseModel):
    """That the customers of two identifiers are one person."""

    model_config = ConfigDict(extra="forbid", strict=True)

    identifiers: list[str] = Field(
        min_length=2,
        max_length=2,
        description="`type:value`, one of each customer. The older customer survives, so there is none to choose.",
        examples=[["user_id:4711", "email:ana@example.com"]],
    )
    dry_run: bool = Field(False, description="Say what would be done, and do nothing.")


class UnmergeOrder(BaseModel):
    """That the customer whom an identifier belonged to before a merge is one of their own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    identifier: str = Field(description="`type:value`", examples=["cookie_id:c-81"])
    dry_run: bool = Field(False, description="Say what would be done, and do nothing.")


class OrderAnswer(BaseModel):
    """A command that the log has acknowledged."""

    command_id: str = Field(description="Names what comes of it, in `segue.identity` and as a merge's `event_id`.")
    action: str = Field(examples=["merge"])


class PlanAnswer(BaseModel):
    """What a command would do; nothing was done."""

    would_merge: dict[str, str] = Field(
        {}, description="The keys of the two customers: the `survivor`, who is the older, and the `absorbed`."
    )
    would_leave: dict[str, Any] = Field(
        {}, description="Who would leave whom (`from`), with how many `interactions` and which `identifiers`."
    )


class FieldError(BaseModel):
    """One thing that was wrong, and how to mend it."""

    field: str = Field(description="A JSONPath into the event, or the name of a parameter.", examples=["$.time"])
    reason: str = Field(examples=["time_without_zone"])
    detail: str = Field(examples=["a time needs its zone: add Z or an offset such as +08:00"])


class ProblemAnswer(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="A page of this API that explains it.", examples=["/problems/invalid-event"])
    title: str
    status: int
    detail: str
    instance: str | None = Field(None, description="Names this occurrence; a fault is logged under it.")
    reason: str = Field(description="A code that stays the same over versions.")
    field: str | None = None
    errors: list[FieldError] = []


class Candidate(BaseModel):
    """One of several customers who use an identifier. No identifier of theirs: it may be another person who asks."""

    customer_key: str
    reason: str = Field(
        description="`first`: the identifier belongs to them. Otherwise why they are not that one: `another_person`, "
        "`type_never_merges`, `not_verified`, `shared`, `too_many` or `kept_apart`."
    )
    why: dict[str, str] = Field(description="The reason in words, `en` and `zh`.")
    since: AwareDatetime = Field(description="When they first used the identifier,")
    event_id: str = Field(description="and the event that said so.")
    last_seen: AwareDatetime | None = Field(description="The time of their latest event.")
    channels: list[str]
    open_items: int
    context: str = Field(description="Where their context is.")


class AmbiguousAnswer(ProblemAnswer):
    """Several customers use the identifier: one has to be chosen."""

    identifier_type: str
    message: dict[str, str] = Field(description="For a screen, `en` and `zh`.")
    candidates: list[Candidate] = Field(description="Most recently seen first.")
    complete: bool = Field(description="Whether these are all. If not, others may have used it after those remembered.")
    remembered: int = Field(description="How many are remembered for one identifier: the first who used it.")
    as_of: AwareDatetime | None
    lag_ms: int | None


class RejectedEvent(BaseModel):
    """An event of a batch that was not accepted."""

    index: int = Field(description="Its place in the batch, from 0.")
    id: str | None = None
    problem: ProblemAnswer


class AcceptedAnswer(BaseModel):
    """What of a request was acknowledged by the log."""

    accepted: int
    ids: list[str] = Field(description="Ids of the accepted events, in the order sent.")
    rejected: list[RejectedEvent] = []


class ByReason(BaseModel):
    total: int
    by_reason: dict[str, int]


class ByKind(BaseModel):
    total: int
    by_kind: dict[str, int]


class ByRule(BaseModel):
    total: int
    by_rule: dict[str, int]


class ByIdentifier(BaseModel):
    total: int
    by_identifier: dict[str, int] = Field(description="By the customer's strongest identifier type at the time.")


class EventCounts(BaseModel):
    total: int
    by_channel: dict[str, int]
    by_type: dict[str, int]
    by_channel_and_type: dict[str, dict[str, int]]


class ItemCounts(BaseModel):
    opened: int
    by_channel: dict[str, int] = Field(description="By the channel it was opened on.")
    by_status: dict[str, int]
    open: int = Field(description="Open or waiting now.")


class ItemsWith(BaseModel):
    """Items, each counted once."""

    reopened: int
    reassigned: int
    sla_missed: int


class Stats(Answer):
    """Counts over all customers, ever."""

    accepted: int
    rejected: ByReason
    duplicates: int
    late: int
    events: EventCounts
    touchpoints: dict[str, dict[str, int]]
    customers: int
    customers_with_items: ByIdentifier
    sessions: int = Field(description="Opened, less those that a late event joined to another.")
    handoffs: ByKind
    items: dict[str, ItemCounts] = Field(description="By kind of item.")
    items_with: ItemsWith
    contacts_repeated: int
    facts: dict[str, int]
    signals: ByRule


class Ready(Answer):
    model_config = ConfigDict(extra="forbid")

    status: str = Field(examples=["ready"])
    processors: dict[str, int] = Field(description="Each processor's lag in milliseconds.")


_MODELS = (
    ContextAnswer, TimelineAnswer, SignalsAnswer, IdentityAnswer, MergeOrder, UnmergeOrder, OrderAnswer, PlanAnswer,
    AcceptedAnswer, Stats, Ready, ProblemAnswer, AmbiguousAnswer,
)  # fmt: skip


def components() -> dict[str, Any]:
    """The models as OpenAPI component schemas."""
    _, found = models_json_schema([(model, "serialization") for model in _MODELS], ref_template=_REF + "{model}")
    return dict(found["$defs"])


def body(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a JSON body of this model."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(model)}}}}


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF + model.__name__}


def readings(model: type[BaseModel] | None, description: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that reads by an identifier, which several customers may use."""
    several = {"application/problem+json": {"schema": _schema(AmbiguousAnswer)}}
    return answers(model, description) | {409: {"description": "Several customers use it", "content": several}}


def answers(model: type[BaseModel] | None, description: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its own answer, and a problem for everything else."""
    problem = {"application/problem+json": {"schema": _schema(ProblemAnswer)}}
    found: dict[int | str, dict[str, Any]] = {
        "4XX": {"description": "A problem of the request", "content": problem},
        "503": {"description": "Something is away; see the header Retry-After", "content": problem},
    }
    if model is not None:
        found[status] = {"description": description, "content": {"application/json": {"schema": _schema(model)}}}
    return found
