"""The topics: their names, what they are keyed by, and how they are made. No other module spells a name."""

from __future__ import annotations

from msgspec import Struct

from segue.core.channels import CHANNELS

EVENTS = "segue.events."
INTERACTIONS = "segue.interactions"
JOURNEY_STEPS = "segue.journey-steps"
SIGNALS = "segue.signals"
IDENTITY = "segue.identity"
COMMANDS = "segue.commands"
DEAD_LETTERS = "segue.dead-letters"
LAYOUTS = "segue.layout"
"""How the state is laid out, after each switch: what an emptied Redis is laid out by."""

EVENT_TOPICS: tuple[str, ...] = tuple(EVENTS + channel for channel in CHANNELS)

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""What the topics take. Larger than any event we accept, so that an oversized one reaches the dead letters."""

PRODUCER: dict[str, str | int] = {
    "acks": "all",
    "enable.idempotence": True,
    # With more, the first of several may fail while a leader is being made and the next be the first that it sees.
    # The repeated first is then "a duplicate", which the client takes for an acknowledgement (docs/adr/0014). A
    # transaction can look before it ends, and has more (docs/adr/0020).
    "max.in.flight.requests.per.connection": 1,
    "partitioner": "murmur2_random",
    "message.max.bytes": MAX_RECORD_BYTES,
}
"""What every producer must have, so that what is acknowledged is in the log, once and in the place of its key."""

DEAD_LETTERS_MS = str(30 * 86_400_000)
"""How long a dead letter can be mended and replayed; they hold personal data, so not for ever."""


class Topic(Struct, frozen=True):
    """One topic: partitions and settings as Kafka names them."""

    name: str
    partitions: int
    config: dict[str, str]


def event_topic(channel: str) -> str:
    """The topic that a channel publishes to."""
    return EVENTS + channel


def all_topics(
    partitions: int, event_partitions: int, interactions: str = INTERACTIONS, steps: int | None = None
) -> list[Topic]:
    """Every topic of a deployment. `partitions` is the layout's; interactions, steps and signals share it, unless a
    rebuild gave the interactions another number than the `steps`."""
    steps = steps or partitions
    large = {"max.message.bytes": str(MAX_RECORD_BYTES)}
    # LogAppendTime: received_at is the broker's clock, not the sender's.
    arriving = large | {"message.timestamp.type": "LogAppendTime"}
    # What the state is rebuilt from, at whatever age; a broker's own retention is seven days.
    kept = large | {"retention.ms": "-1"}
    return [
        *(Topic(name, event_partitions, arriving) for name in EVENT_TOPICS),
        Topic(interactions, partitions, kept),
        Topic(JOURNEY_STEPS, steps, kept),
        Topic(SIGNALS, steps, large),
        Topic(IDENTITY, steps, large | {"cleanup.policy": "compact"}),
        Topic(LAYOUTS, 1, {"cleanup.policy": "compact"}),
        Topic(COMMANDS, event_partitions, arriving),
        Topic(DEAD_LETTERS, event_partitions, large | {"retention.ms": DEAD_LETTERS_MS}),
    ]
