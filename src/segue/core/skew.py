"""Clocks that run ahead. Pure: the times are arguments.

Theory of operation. Between a sender's clock and ours lie two things, the error of the sender's clock and the
time in transit, and one number, received minus sent, holds both. Transit is never negative. So an event that was
sent *after* we received it proves a clock ahead, by at least that much, and its time is moved by exactly that.
An event that was sent long before may come from a clock behind or from a queue, a dead zone, a retry; it is left
alone, for to correct it would move every delayed event away from when it happened. Only a time before 1970, when
no channel was there to send, is no time at all.
"""

from __future__ import annotations

TOLERANCE_MS = 5 * 60_000
"""Clocks may differ by so much, as in Kerberos (RFC 4120, 1.6). Less than the grace, so order still holds."""


def event_time(time_ms: int, sent_at_ms: int | None, received_at_ms: int) -> int:
    """When the event happened by our clock: `time_ms` unless that is impossible. Never beyond the tolerance, and
    never before 1970."""
    at = time_ms
    if sent_at_ms is not None and sent_at_ms - received_at_ms > TOLERANCE_MS:
        at -= sent_at_ms - received_at_ms
    return received_at_ms if at <= 0 or at - received_at_ms > TOLERANCE_MS else at
