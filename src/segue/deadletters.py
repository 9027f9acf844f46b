"""Dead letters: what could not be used, byte for byte, with the reason in headers of our own.

The record keeps its key, value and headers; `schemas/dead-letter-headers.schema.json` describes what is
added. A record of `segue.dead-letters` can therefore be produced to its origin again as it is: that is a
replay (`segue.letterbox`), and headers of our own say how often it was tried.

What an operator did with a letter is a record of the same topic (`Action`), keyed by the letter's id and
told apart by a header. Nothing is ever edited.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from segue import __version__
from segue.core.event import Rejected
from segue.log.port import Headers, Output, Record
from segue.topics import DEAD_LETTERS

PREFIX = "segue.err."
REPLAY_ATTEMPT = "segue.replay.attempt"
REPLAY_OF = "segue.replay.of"
REPLAY_STAGE = "segue.replay.stage"
ACTION = "segue.dlq.action"

_ADDED = ("code", "field", "message", "stage", "topic", "partition", "offset", "version")
_REPLAY = (REPLAY_ATTEMPT, REPLAY_OF, REPLAY_STAGE)
_OUR_STAGES = ("resolve", "context", "signals")


def dead_letter(record: Record, why: Rejected, stage: str) -> Output:
    """Return the dead letter of `record`. `stage` is the processor that refused it."""
    values = (
        why.reason,
        why.field,
        why.detail,
        stage,
        record.topic(),
        str(record.partition()),
        str(record.offset()),
        __version__,
    )
    added = [(PREFIX + name, text.encode()) for name, text in zip(_ADDED, values, strict=True)]
    return Output(DEAD_LETTERS, record.key(), record.value(), -1, [*(record.headers() or ()), *added])


def attempts(headers: Headers | None) -> int:
    """How often a record was sent again by an operator; 0 for one that came from its sender."""
    raw = dict(headers or ()).get(REPLAY_ATTEMPT) or b""
    return int(raw) if raw.isdigit() else 0


def replayed_for(headers: Headers | None) -> str | None:
    """The processor that had refused the record, when it was sent again by an operator."""
    raw = dict(headers or ()).get(REPLAY_STAGE)
    return None if raw is None else raw.decode(errors="replace")


class Letter(Struct, frozen=True):
    """A dead letter as read. `key`, `value` and `headers` are the sender's, as they came."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    reason: str
    field: str
    detail: str
    stage: str
    version: str
    at_ms: int
    """When it was put away (ms since 1970)."""

    @property
    def id(self) -> str:
        """The place that it came from: a letter that a crash doubled has one id.

        Several agents may read one topic, so a letter of somebody else's agent names it too.
        """
        place = f"{self.topic}-{self.partition}-{self.offset}"
        return place if self.stage in _OUR_STAGES else f"{place}@{self.stage}"

    @property
    def attempt(self) -> int:
        """Which replay it is that was refused; 0: none, it came from its sender."""
        return attempts(self.headers)

    @property
    def replay_of(self) -> str | None:
        """The letter whose replay this is."""
        raw = dict(self.headers).get(REPLAY_OF)
        return None if raw is None else raw.decode(errors="replace")

    def again(self, attempt: int) -> list[tuple[str, bytes]]:
        """The headers of its next replay: the sender's own and ours."""
        mine = (str(attempt), self.id, self.stage)
        own = [header for header in self.headers if header[0] not in _REPLAY]
        return [*own, *((name, text.encode()) for name, text in zip(_REPLAY, mine, strict=True))]


class Action(Struct, frozen=True, omit_defaults=True):
    """What was done with a dead letter: a record of `segue.dead-letters` whose header `segue.dlq.action` says so.

    Its key is the letter's id, its time the record's.
    """

    letter: str
    """Id of the letter: topic, partition and offset of its origin."""
    action: Literal["replayed", "discarded"]
    attempt: int = 0
    """Which replay of the record it was."""
    topic: str | None = None
    """Where it was sent, when that was not its origin."""
    mended: tuple[str, ...] = ()
    """What was changed before, as paths; no values."""
    reason: str | None = None
    """Why it was discarded, in the operator's words."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Action).decode


def action_record(action: Action) -> Output:
    """The record of an action."""
    marker = [(ACTION, action.action.encode())]
    return Output(DEAD_LETTERS, action.letter.encode(), _encode(action), -1, marker)


def read(record: Record) -> Letter | Action | None:
    """Tell what a record of `segue.dead-letters` is; None for one that neither of us wrote."""
    headers = tuple(record.headers() or ())
    if headers and headers[0][0] == ACTION and len(headers) == 1:
        try:
            return _decode(record.value() or b"")
        except msgspec.DecodeError:
            return None
    cut = len(headers) - len(_ADDED)
    added = headers[max(cut, 0) :]
    if [name for name, _ in added] != [PREFIX + name for name in _ADDED]:
        return None
    reason, field, detail, stage, topic, partition, offset, version = (
        (value or b"").decode(errors="replace") for _, value in added
    )
    if not (partition.isdigit() and offset.isdigit()):
        return None
    return Letter(
        topic=topic,
        partition=int(partition),
        offset=int(offset),
        key=record.key(),
        value=record.value(),
        headers=headers[:cut],
        reason=reason,
        field=field,
        detail=detail,
        stage=stage,
        version=version,
        at_ms=record.timestamp()[1],
    )
