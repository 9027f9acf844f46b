"""What can go wrong, by whose fault it is and what to do about it.

    SegueError
    ├── SettingsError        the operator's: a setting is wrong; refused at start, names the setting
    ├── LogUnavailable       nobody's here: the broker is away; retry with backoff
    ├── StoreUnavailable     nobody's here: Redis is away; retry with backoff, then restore
    │   └── WentBack         Redis does not hold what we left there; nothing was done on it; restore, go on
    ├── Fenced               normal life: another member owns the partition now; drop it, go on with the rest
    ├── MemberLost           the group seat is beyond repair; take a new one
    └── Undelivered          the client's: the event was not acknowledged; send it again (same id)
        └── Refused          the sender's: the event is wrong; the reason names the field

What a sender can send wrong is not an exception inside Segue but a value (`core.event.Rejected`).
"""

from __future__ import annotations


class SegueError(Exception):
    """Base of all errors raised by Segue."""


class SettingsError(SegueError):
    """A setting is wrong. The message names it and says how to mend it."""


class LogUnavailable(SegueError):
    """The log (Kafka or the embedded one) cannot be reached now; the call may be repeated."""


class StoreUnavailable(SegueError):
    """Redis cannot be reached, or refuses writes, now; the outcome of the last write is unknown."""


class WentBack(StoreUnavailable):
    """Redis does not hold what was written last: it lost writes, is another server, or has another owner's."""


class Fenced(SegueError):
    """This member no longer owns what it tried to commit."""


class MemberLost(SegueError):
    """The group membership failed for good; close it and take a new one."""


class Undelivered(SegueError):
    """The event was not acknowledged. Sending it again with the same id is safe."""


class Refused(Undelivered):
    """The event is wrong and was not sent. `reason` is a code, `field` a JSONPath, `detail` how to mend it."""

    def __init__(self, reason: str, field: str, detail: str) -> None:
        super().__init__(f"{reason} at {field}: {detail}")
        self.reason = reason
        self.field = field
        self.detail = detail
