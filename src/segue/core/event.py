"""The public contract: what a channel app sends, a CloudEvent 1.0 in JSON (structured mode).

`decode` is the only door: the resolve processor, the HTTP collector and the importer all use it, so a
sender gets the same answer everywhere. The JSON Schema in `schemas/event.schema.json` says the same in
the standard's words; a test holds the two together.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from segue.core.channels import CHANNELS, ActorKind

MAX_EVENT_BYTES = 256 * 1024
"""Largest event accepted. Segment stops at 32 KB, CloudEvents asks intermediaries for 64 KB at least;
transcripts of calls need more."""

MAX_PROPERTIES_BYTES = 2048
"""Properties up to this size travel with the timeline; larger ones stay in the event topic only."""

NO_PROPERTIES = Raw(b"")
"""One object, because encoders leave out a default only when it is the very same."""

Level = Literal["verified", "claimed", "inferred"]
ItemStatus = Literal["open", "waiting", "resolved", "closed"]
Metric = Literal["csat", "nps", "ces"]

# \Z and not $, which in Python also holds before a newline at the end.
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_]*\Z")]
Short = Annotated[str, Meta(min_length=1, max_length=256)]
Aware = Annotated[datetime, Meta(tz=True)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class Named(Struct, frozen=True, omit_defaults=True, gc=False):
    """An identifier in a record that *resolve* wrote: its form was checked at the door, which costs."""

    type: str
    value: str
    level: Level = "claimed"


class Identifier(Named, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One way to name the customer. `level`: verified by the channel, claimed by the customer, or inferred."""

    type: Name
    value: Short


class Actor(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Who acted: the customer (the default), a bot, an agent of some group, or a system."""

    kind: ActorKind = "customer"
    id: Short | None = None
    group: Short | None = None


class Item(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A matter that stays open over interactions: a case, an order, a promise.

    Only what is known is sent; what is left out stays as it was. `reopen_count` and `reassign_count` are
    the sender's running totals, where its desk keeps them.
    """

    kind: Name
    id: Short
    status: ItemStatus | None = None
    title: Annotated[str, Meta(max_length=256)] | None = None
    group: Short | None = None
    assignee: Short | None = None
    opened_at: Aware | None = None
    due_at: Aware | None = None
    sla_missed: bool | None = None
    reopen_count: Count | None = None
    reassign_count: Count | None = None


class Survey(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """An answer: CSAT 1 to 5, NPS 0 to 10, CES 1 (hard) to 5 (easy)."""

    metric: Metric
    score: Annotated[float, Meta(ge=0, le=10)]


class Data(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Segue's part of the event. Anything of the sender's own goes into `properties`."""

    identifiers: Annotated[tuple[Identifier, ...], Meta(min_length=1, max_length=16)]
    touchpoint: Short | None = None
    actor: Actor | None = None
    item: Item | None = None
    survey: Survey | None = None
    wait_ms: Annotated[int, Meta(ge=0, le=7 * 86_400_000)] | None = None
    text: Annotated[str, Meta(max_length=4000)] | None = None
    device: Short | None = None
    source_session_id: Short | None = None
    sent_at: Aware | None = None
    properties: Raw = NO_PROPERTIES


class Event(Struct, frozen=True, gc=False):
    """A CloudEvent 1.0. Extension attributes other than `channel` are allowed and ignored."""

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(min_length=1, max_length=128)]
    source: Short
    type: Annotated[str, Meta(max_length=128, pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+\Z")]
    time: Aware
    channel: str
    data: Data


class Rejected(Struct, frozen=True, gc=False):
    """Why an event cannot be used: a reason code, the field (a JSONPath), and how to mend it."""

    reason: str
    field: str
    detail: str


_decoder = msgspec.json.Decoder(Event)
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.S)


def decode(raw: bytes) -> Event | Rejected:
    """Decode and check one event. Never raises for what a sender can send."""
    if len(raw) > MAX_EVENT_BYTES:
        return Rejected(
            "too_large",
            "$",
            f"{len(raw)} bytes; at most {MAX_EVENT_BYTES}. Send a reference instead of content.",
        )
    try:
        if not raw.isascii():
            raw.decode()  # properties stay undecoded below, so their UTF-8 is checked here
        event = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        return _refused(str(error))
    except RecursionError:
        return Rejected("not_json", "$", "nested too deeply; send flat properties")
    except UnicodeDecodeError as error:
        return Rejected("not_utf8", "$", f"byte {error.start} is not UTF-8; encode the event as UTF-8 JSON")
    except msgspec.DecodeError as error:
        return Rejected("not_json", "$", f"not valid JSON: {error}")
    return _checked(event)


def _checked(event: Event) -> Event | Rejected:
    """What the types alone cannot say."""
    if event.channel not in CHANNELS:
        known = ", ".join(CHANNELS)
        return Rejected("unknown_channel", "$.channel", f"not one of: {known}. Use `other` if none fits.")
    survey = event.data.survey
    if survey is not None and not _in_scale(survey):
        return Rejected("schema", "$.data.survey.score", "NPS is 0 to 10; CSAT and CES are 1 to 5")
    properties = event.data.properties
    if properties and not bytes(properties).lstrip().startswith(b"{"):
        return Rejected("schema", "$.data.properties", "expected an object")
    return event


def _in_scale(survey: Survey) -> bool:
    return survey.metric == "nps" or 1 <= survey.score <= 5


def _refused(message: str) -> Rejected:
    """Turn msgspec's sentence into a reason, a path and a sentence."""
    match = _AT.match(message)
    what, path = (match["what"], match["path"] or "$") if match else (message, "$")
    if "timezone" in what:
        return Rejected("time_without_zone", path, "a time needs its zone: add Z or an offset such as +08:00")
    missing = re.search(r"missing required field `([^`]+)`", what)
    if missing:
        path = f"{path}.{missing[1]}"
    if path.startswith("$.data.identifiers") and (missing or "length >= 1" in what) and "[" not in path:
        return Rejected("missing_identifiers", path, "name the customer by at least one identifier: {type, value}")
    unknown = re.search(r"unknown field `([^`]+)`", what)
    if unknown:
        path = f"{path}.{unknown[1]}"
        return Rejected("schema", path, "unknown field; put fields of your own into data.properties")
    return Rejected("schema", path, what)


def encode(value: Any) -> bytes:
    """Encode an event (or any part) as JSON bytes."""
    return msgspec.json.encode(value)
