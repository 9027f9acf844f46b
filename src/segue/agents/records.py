"""Our topics as Faust sees them: journey steps decoded, signals encoded, what cannot be read dead-lettered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faust
import msgspec
from faust.serializers.codecs import Codec
from faust.types.tuples import Message

from segue.core import ids
from segue.core.event import Rejected
from segue.core.interaction import StepView
from segue.core.rules import Severity, Signal
from segue.deadletters import dead_letter
from segue.log.port import Headers
from segue.topics import DEAD_LETTERS, JOURNEY_STEPS, SIGNALS

_encode = msgspec.json.Encoder().encode


class StructCodec(Codec):  # type: ignore[misc]
    """JSON to a struct and back, as the processors do it."""

    def __init__(self, struct: type[Any]) -> None:
        super().__init__()
        self._decode = msgspec.json.Decoder(struct).decode

    def _loads(self, raw: bytes) -> Any:
        return self._decode(raw)

    def _dumps(self, value: Any) -> bytes:
        return _encode(value)


class Unreadable:
    """A record that Faust could not decode, as `segue.deadletters` wants it (`log.port.Record`)."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def topic(self) -> str:
        return str(self._message.topic)

    def partition(self) -> int:
        return int(self._message.partition)

    def offset(self) -> int:
        return int(self._message.offset)

    def key(self) -> bytes | None:
        key: bytes | None = self._message.key
        return key

    def value(self) -> bytes | None:
        value: bytes | None = self._message.value
        return value

    def headers(self) -> Headers | None:
        headers = self._message.headers or []
        return [(name, bytes(value)) for name, value in (headers.items() if isinstance(headers, dict) else headers)]

    def timestamp(self) -> tuple[int, int]:
        return (1, int(self._message.timestamp * 1000))


class Topic(faust.Topic):  # type: ignore[misc]
    """A topic of ours: made by `segue topics create`, never by Faust."""

    async def on_value_decode_error(self, exc: Exception, message: Message) -> None:
        """Dead-letter the record; Faust's own way is to stop the agent at it, again after every restart."""
        why = Rejected("not_readable", "$", f"{exc}; only Segue's processors write to {message.topic}")
        output = dead_letter(Unreadable(message), why, self.app.conf.id)
        sent = await self.app.send(
            DEAD_LETTERS,
            key=output.key,
            value=output.value,
            headers=list(output.headers or ()),
            key_serializer="raw",
            value_serializer="raw",
        )
        await sent


def journey_steps(app: faust.App) -> faust.Topic:
    """`segue.journey-steps`, each value a `StepView`."""
    return Topic(app, topics=[JOURNEY_STEPS], key_serializer="raw", value_serializer=StructCodec(StepView))


def signals(app: faust.App) -> faust.Topic:
    """`segue.signals`, each value a `Signal`."""
    return Topic(app, topics=[SIGNALS], key_serializer="raw", value_serializer=StructCodec(Signal))


async def tell(
    app: faust.App,
    step: StepView,
    *,
    rule: str,
    reason: Mapping[str, str],
    version: int = 1,
    severity: Severity = "medium",
    department: str = "service",
) -> Signal:
    """Write a signal about the customer of `step`, with an id that a repetition of the step gives again.

    Returns when the log has it. `reason` holds one sentence per language, `en` and `zh`.
    """
    at, event_id = step.entry.event_time_ms, step.entry.id
    signal = Signal(
        signal_id=ids.derive(ids.SIGNAL, f"{rule}/{version}/{step.customer_key}//{event_id}"),
        rule=rule,
        rule_version=version,
        severity=severity,
        department=department,
        subject=f"customer:{step.customer_key}",
        reason=dict(reason),
        evidence=(event_id,),
        first_seen_ms=at,
        last_seen_ms=at,
        customer_key=step.customer_key,
    )
    await send(signals(app), step.customer_key, signal)
    return signal


async def send(topic: faust.Topic, key: str, value: Any) -> None:
    """Send and wait for the acknowledgement: only then may the record be done that gave rise to it."""
    sent = await topic.send(key=key.encode(), value=value)
    await sent
