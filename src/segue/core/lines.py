"""The entries of a timeline, kept apart from the document that they belong to.

Theory of operation. A full context is mostly its timeline, and the timeline is nearly always only appended to. So
in Redis the entries are a list beside the document, and in memory there are only the latest of them: what is stored
is described by counts, and a change becomes what has to be cut off its end, appended, and dropped from its start.
Only who looks further back than memory reaches (events out of order, merges) has the list read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSequence
from typing import Any, overload

import msgspec
from msgspec import Raw, Struct

BETWEEN = b",\n"
"""What separates entries in a document that has them inside. JSON has no newline inside strings, and entries are
compact, so they can be told apart without being read."""
_NEWLINE = ord("\n")
"""As a number: looking for bytes in bytes makes, and forgets, an exception first."""
_RECENT = 2
"""Stored entries that stay in memory: most events that come out of order belong just before the last."""

Fetch = Callable[[], list[bytes]]
"""Reads the stored entries, all of them."""


class Change(Struct, frozen=True, gc=False):
    """What becomes of the stored list, in this order."""

    anew: bool
    """It goes, if there is one."""
    cut: int
    """So many entries go from its end."""
    append: list[bytes]
    drop: int
    """So many entries go from its start."""


class Lines(MutableSequence[Raw]):
    """A list of encoded entries. Made from nothing it replaces whatever is stored."""

    # The stored list is: `_dropped` that went, `_behind` that are not in memory, the first `_saved` of `_tail`, `_cut`
    # that went. The rest of `_tail` is new.
    __slots__ = ("_anew", "_behind", "_cut", "_dropped", "_saved", "_tail", "fetch")

    def __init__(self, entries: Iterable[bytes] = ()) -> None:
        self._tail = list(entries)
        self._behind = self._saved = self._cut = self._dropped = 0
        self._anew = True
        self.fetch: Fetch | None = None
        """What reads the stored entries, once there are any."""

    def stand_for(self, count: int, fetch: Fetch) -> None:
        """Of a list made from nothing: so many are stored, and `fetch` reads them."""
        self._behind, self.fetch, self._anew = count, fetch, False

    @property
    def text(self) -> bytes:
        """The entries as JSON, without the brackets of the array."""
        self._read()
        return BETWEEN.join(self._tail)

    @property
    def unread(self) -> int:
        """How many are stored and not in memory."""
        return self._behind

    def read(self, stored: list[bytes]) -> None:
        """Take in what is stored, read in advance."""
        self._tail[:0] = stored[self._dropped : self._dropped + self._behind]
        self._saved += self._behind
        self._behind = 0

    def take(self, fetch: Fetch) -> Change:
        """What has changed; it counts as stored from now on, where `fetch` finds it."""
        tail = self._tail
        change = Change(self._anew, self._cut, tail[self._saved :], self._dropped)
        forgotten = len(tail) - _RECENT
        if forgotten > 0:
            self._behind += forgotten
            del tail[:forgotten]
        self._saved = len(tail)
        self._cut = self._dropped = 0
        self._anew, self.fetch = False, fetch
        return change

    def append(self, value: Raw | bytes) -> None:
        self._tail.append(value if type(value) is bytes and _NEWLINE not in value else _compact(value))

    def __len__(self) -> int:
        return self._behind + len(self._tail)

    def insert(self, index: int, value: Raw | bytes) -> None:
        index = min(max(0, index if index >= 0 else len(self) + index), len(self))
        if index < self._behind:
            self._read()
        at = index - self._behind
        self._changed_from(at)
        self._tail.insert(at, _compact(value))

    @overload
    def __getitem__(self, index: int) -> Raw: ...
    @overload
    def __getitem__(self, index: slice) -> list[Raw]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            at = (index if index >= 0 else len(self) + index) - self._behind
            if 0 <= at < len(self._tail):
                return Raw(self._tail[at])
        self._read()
        return [Raw(line) for line in self._tail][index]

    def __reversed__(self) -> Iterator[Raw]:
        for index in range(len(self) - 1, -1, -1):
            yield self[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("entries do not change")

    def __delitem__(self, index: int | slice) -> None:
        raise TypeError("the oldest entries go, by `keep`")

    def keep(self, latest: int) -> None:
        """Drop all but so many, the oldest first: the way a timeline stays bounded."""
        gone = self._behind + len(self._tail) - latest
        if gone <= 0:
            return
        behind = min(gone, self._behind)
        self._behind -= behind
        del self._tail[: gone - behind]
        saved = min(gone - behind, self._saved)
        self._saved -= saved
        self._dropped += behind + saved

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Iterable) and [bytes(line) for line in self] == [bytes(line) for line in other]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Lines(<{self._behind} stored>, {self._tail!r})"

    def _changed_from(self, at: int) -> None:
        if at < self._saved:
            self._cut += self._saved - at
            self._saved = at

    def _read(self) -> None:
        if self._behind:
            assert self.fetch is not None
            self.read(self.fetch())


def _compact(value: Raw | bytes) -> bytes:
    line = value if type(value) is bytes else bytes(value)
    return msgspec.json.format(line, indent=-1) if _NEWLINE in line else line
