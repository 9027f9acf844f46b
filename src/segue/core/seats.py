"""Who sits at a device that several people use: whoever was named on it last.

Theory of operation. A device belongs to the customer it was first seen with. When another person is named on it (their
unique identifiers differ), they take the seat, from the time of that event on; when the first one is named again, they
take it back. An event that names the device alone is of whoever sat there at its time, so what came before a login is
never the new person's, however late it arrives. Of each person the latest taking is kept.
"""

from __future__ import annotations

Seats = dict[str, tuple[int, str]]
"""Of each customer who took the seat: the time of the event by which they did last (ms), and its id."""

MOST = 16
"""People remembered for one device, those of the latest takings. A kiosk sees more, and none of them again."""


def sitting(seats: Seats, at_ms: int) -> str | None:
    """Who sat there at a time; None is whoever the device belongs to."""
    taken = ((since, key) for key, (since, _) in seats.items() if since <= at_ms)
    return max(taken, default=(0, None), key=lambda each: (each[0], each[1] or ""))[1]


def together(one: Seats, other: Seats) -> Seats:
    """What both say; the same in whatever order and however often it is said."""
    every = one | {key: max(one.get(key, taken), taken) for key, taken in other.items()}
    latest = sorted(every.items(), key=lambda each: (each[1], each[0]))[-MOST:]
    return dict(sorted(latest))
