"""How much of a partition may be refused before it is rather a bad deployment than bad records.

A sender that sends one wrong event in a hundred gets a hundredth of them back as dead letters. When nearly
everything is refused, something else is broken, and turning a whole stream into dead letters makes it worse.
The limit only says when to go on reading, never what becomes of a record: so it is counted in memory, from
the start of the process or the take-over of the partition on, and a replay gives the same whatever it says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from msgspec import Struct

WINDOW = 1000
"""Of so many latest records the share is taken; none is before so many were seen."""


class Limit(Struct, frozen=True):
    """The most that may be refused; 0 means no limit."""

    share: float = 0.05
    """Of the last WINDOW records."""
    run: int = 100
    """So many in a row are too many."""


class Over(Struct, frozen=True):
    """The record, by its position among those given, that is one refusal too many, and in what way."""

    position: int
    why: str


class Rejections(Struct, frozen=True):
    """What was refused of a partition lately."""

    seen: int = 0
    run: int = 0
    """Refused in a row, up to now."""
    recent: tuple[int, ...] = ()
    """The latest refused, by their number, counted from 1; never more than WINDOW."""

    def after(self, count: int, refused: Sequence[int], limit: Limit) -> tuple[Rejections, Over | None]:
        """Count on: `count` more records, of which those at the positions `refused` (ascending) were refused.

        Returns the counts and, when that is too much, the record that must not be taken.
        """
        if not refused:
            return Rejections(self.seen + count, 0 if count else self.run, self.recent), None
        run, last = self.run, -1
        recent = list(self.recent)
        for position in refused:
            run = run + 1 if position == last + 1 else 1
            last = position
            number = self.seen + position + 1
            recent.append(number)
            share = len(recent) - bisect_right(recent, number - WINDOW)
            if limit.run and run >= limit.run:
                return self, Over(position, f"{limit.run} in a row")
            if limit.share and number >= WINDOW and share > limit.share * WINDOW:
                return self, Over(position, f"more than {limit.share:.2%} of the last {WINDOW}")
        return Rejections(self.seen + count, run if last == count - 1 else 0, tuple(recent[-WINDOW:])), None
