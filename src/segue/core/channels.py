"""The channels, the one list of them. A channel is a kind of contact; a touchpoint is a place within one."""

from __future__ import annotations

from typing import Literal, get_args

Channel = Literal[
    "web", "app", "chat", "bot", "messaging", "voice", "ivr", "email", "sms", "push", "social",
    "store", "kiosk", "in_person", "ads", "survey", "marketplace", "other",
]  # fmt: skip
CHANNELS: tuple[str, ...] = get_args(Channel)

ActorKind = Literal["customer", "bot", "agent", "system"]
"""Who acted in an interaction. `system` events (a parcel scanned, an invoice sent) move nobody anywhere."""
