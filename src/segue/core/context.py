"""The context: one document per customer, as it stands in Redis and as readers get it.

Its JSON Schema is `schemas/context.schema.json`. Every list in it is bounded, so a document stays a few
kilobytes whatever a customer does.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from segue.core.interaction import KnownIdentifier, Place
from segue.core.lineage import Kin
from segue.core.lines import BETWEEN, Fetch, Lines

SCHEMA = 1


class SourceSession(Struct, frozen=True, gc=False):
    """The sender's own session, and since when it has been going on."""

    id: str
    since_ms: int


class Session(Struct, omit_defaults=True, gc=False):
    """One visit over all channels: interactions with no gap longer than the inactivity gap between them."""

    session_id: str
    started_at_ms: int
    last_event_at_ms: int
    until_ms: int = 0
    """How far it reaches: an event up to this time joins it."""
    reach_ms: int = 0
    """How far it would reach without the call or conversation that holds it; 0 while nothing does."""
    events: int = 0
    channels: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    """Ids of sessions that a late-arriving event joined to this one."""
    source_sessions: dict[str, SourceSession] = field(default_factory=dict)
    """What its senders call it, by the events' `source`."""
    quarantined: bool = False
    """A sender went on with it beyond the maximum length; that part is in no session."""
    closed: bool = False
    """Time has passed it by; it never changes again."""


class Loose(Struct, frozen=True, gc=False, array_like=True):
    """What an agent or a system did outside of every session, kept while one that reaches it may still come."""

    at_ms: int
    channel: str
    extends: bool
    holds: str | None = None
    """The call or conversation that it started."""
    source: str | None = None
    source_session_id: str | None = None


class Item(Struct, omit_defaults=True, gc=False):
    """A matter of the customer's. Open while `status` is open or waiting.

    `attempts` counts the contacts the customer made about it: a new session or another channel is a new
    contact. `last_contact` is `session_id/channel` of the latest.
    """

    kind: str
    id: str
    status: str
    opened_at_ms: int
    updated_at_ms: int
    channel: str
    title: str | None = None
    group: str | None = None
    assignee: str | None = None
    due_at_ms: int | None = None
    attempts: int = 0
    last_contact: str | None = None
    contacts: list[str] = field(default_factory=list)
    """Event ids of the latest contacts about it, at most five."""
    sla_missed: bool = False
    reopened: int = 0
    reassigned: int = 0
    resolved_at_ms: int | None = None


class Handoff(Struct, frozen=True, omit_defaults=True, gc=False):
    """A detected move: between channels, between bot and agent, or of an item between groups."""

    handoff_id: str
    kind: str
    before: str
    after: str
    at_ms: int
    event_id: str
    item: str | None = None


class Opening(Struct, omit_defaults=True, gc=False, array_like=True):
    """When an item was opened: what `contact.repeated` is counted from."""

    opened_at_ms: int
    ref: str
    repeated: bool = False


class Deadline(Struct, frozen=True, omit_defaults=True, gc=False):
    """A moment at which something is due (`core.timers`), and what is waited for."""

    due_ms: int
    since_ms: int = 0
    channel: str | None = None
    touchpoint: str | None = None
    item: str | None = None
    event_id: str | None = None
    """The event that it was set by."""


class Context(Struct, omit_defaults=True):
    """Everything whoever serves the customer next needs. Mutable: its one owner applies interactions to it."""

    customer_key: str
    revision: int = 0
    kin: Kin | None = None
    """Merges with other customers, where there were any."""
    schema: int = SCHEMA
    created_at_ms: int = 0
    stream_time_ms: int = 0
    """The highest event time seen for this customer: what lateness is measured against."""
    received_at_ms: int = 0
    identifiers: list[KnownIdentifier] = field(default_factory=list)
    """In the order in which they became known, at most `Policy.keep_identifiers`."""
    current: Place | None = None
    sessions: list[Session] = field(default_factory=list)
    """Recent sessions in time order, at most `Policy.keep_sessions`; the last is the current one."""
    holds: dict[str, int] = field(default_factory=dict)
    """Calls and conversations that are open, with the time of their start in ms."""
    loose: list[Loose] = field(default_factory=list)
    """Work outside of every session within the grace."""
    deadlines: dict[str, Deadline] = field(default_factory=dict)
    """What is waited for: the end of the session, of a cart, checkout, form or queue, or an item by `kind:id`."""
    due_ms: int = 0
    """The earliest of the deadlines; 0 without any."""
    fired_ms: int = 0
    """The latest deadline that left an entry on the timeline."""
    items: dict[str, Item] = field(default_factory=dict)
    handoffs: list[Handoff] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    """Interactions per channel, ever."""
    openings: list[Opening] = field(default_factory=list)
    seen: str = ""
    """Fingerprints of the last event ids (`core.window`)."""
    entries: int = 0
    """How many entries the stored timeline has."""
    timeline: MutableSequence[Raw] = field(default_factory=Lines)
    """Recent entries (`interaction.Entry`) in event-time order, at most `Policy.keep_timeline`. Always `Lines`, and
    the last field: it is cut off, and kept in a list of its own."""


class Policy(Struct, frozen=True):
    """The numbers the core works by. Kept with the settings; the same for all customers."""

    session_gap_ms: int = 30 * 60_000
    channel_gaps_ms: dict[str, int] = field(default_factory=dict)
    """The gap after an event of a channel, where it is another one."""
    session_max_ms: int = 24 * 3_600_000
    hold_max_ms: int = 4 * 3_600_000
    """How long a call or conversation without an end holds a session. Telephone networks cut calls at four hours."""
    grace_ms: int = 10 * 60_000
    abandoned_after_ms: dict[str, int] = field(default_factory=dict)
    """How long an end is awaited, by what is awaited, where it is not as in `core.timers`."""
    recontact_ms: int = 7 * 86_400_000
    keep_sessions: int = 10
    keep_timeline: int = 50
    keep_handoffs: int = 20
    keep_closed_items: int = 50
    keep_openings: int = 200
    keep_ids: int = 512
    keep_identifiers: int = 64


_TIMELINE = b',"timeline":['
"""Where the timeline begins in a document that has it inside. Nothing before it can hold these bytes: inside of a
string the quotes are escaped."""
_END = b"]}"
_LEFT_OUT: Any = msgspec.UNSET


class _Decoder:
    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(Context).decode

    def decode(self, raw: bytes) -> Context:
        """Decode a document that `encoder.encode` made. Raises msgspec.DecodeError."""
        at = raw.find(_TIMELINE)
        if at < 0:
            return self._decode(raw)
        context = self._decode(raw[:at] + b"}")
        text = raw[at + len(_TIMELINE) : -len(_END)]
        context.timeline = Lines(text.split(BETWEEN) if text else ())
        return context

    def stored(self, raw: bytes, fetch: Fetch) -> Context:
        """Decode a document as it stands in Redis; `fetch` reads its timeline, should it be asked for."""
        context = self._decode(raw)
        lines = context.timeline
        if isinstance(lines, Lines):
            lines.stand_for(context.entries, fetch)
        else:  # written before timelines were lists of their own
            context.timeline = Lines(map(bytes, lines))
        return context


class _Encoder:
    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode

    def encode(self, context: Context) -> bytes:
        """The document with its timeline, as readers get it and as it is handed over in a merge."""
        return whole(self.stored(context), lines_of(context).text)

    def stored(self, context: Context) -> bytes:
        """The document as it stands in Redis: without the timeline, which is a list of its own."""
        lines = context.timeline
        context.entries = len(lines)
        context.timeline = _LEFT_OUT
        try:
            return self._encode(context)
        finally:
            context.timeline = lines


def lines_of(context: Context) -> Lines:
    """The timeline as what it is; the field's type is what a document is decoded into."""
    lines = context.timeline
    assert isinstance(lines, Lines), type(lines)
    return lines


def whole(stored: bytes, entries: bytes) -> bytes:
    """The document as it stands in Redis, and the text of its timeline's entries, made one."""
    if stored.endswith(_END) and _TIMELINE in stored:  # written before timelines were lists of their own
        return stored
    return b"%b%b%b%b" % (stored[:-1], _TIMELINE, entries, _END)


encoder = _Encoder()
decoder = _Decoder()
