"""The entries of a timeline as one piece of JSON, so that a document is read and written without looking at them.

Theory of operation. A full context is mostly its timeline, and the timeline is nearly always only appended to.
So it stands last in the document, as an array with a newline between the entries: the decoder cuts it off
unread, an entry is appended to the text, and the encoder puts the text back as it is. Newlines can separate,
because JSON has none inside strings and entries are compact. Whoever wants to see the entries gets them as
from a list; that takes the text apart, which only events out of order, timers and merges do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence
from typing import Any, overload

import msgspec
from msgspec import Raw

_BETWEEN = b",\n"


class Lines(MutableSequence[Raw]):
    """A list of encoded entries. `text` is what stands between the brackets of the array, `count` how many they
    are: counting them would be a look at every byte."""

    __slots__ = ("_count", "_new", "_start", "_text")

    def __init__(self, text: bytes = b"", count: int = 0) -> None:
        self._text, self._start, self._new, self._count = text, 0, list[bytes](), count

    @property
    def text(self) -> bytes:
        """The entries as JSON, without the brackets."""
        if self._new or self._start:
            kept = memoryview(self._text)[self._start :]  # one copy of all of it, not two
            self._text = _BETWEEN.join([kept, *self._new] if kept else self._new)
            self._start = 0
            self._new.clear()
        return self._text

    def append(self, value: Raw) -> None:
        line = bytes(value)
        self._new.append(msgspec.json.format(line, indent=-1) if b"\n" in line else line)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def insert(self, index: int, value: Raw) -> None:
        every = list(self)
        every.insert(index, value)
        self._become(every)

    @overload
    def __getitem__(self, index: int) -> Raw: ...
    @overload
    def __getitem__(self, index: slice) -> list[Raw]: ...
    def __getitem__(self, index: Any) -> Any:
        if index == -1 and self._new:
            return Raw(self._new[-1])
        return self._apart()[index]

    def __iter__(self) -> Iterator[Raw]:
        return iter(self._apart())

    def __reversed__(self) -> Iterator[Raw]:
        return reversed(self._apart())

    def __setitem__(self, index: Any, value: Any) -> None:
        every = self._apart()
        every[index] = value
        self._become(every)

    def __delitem__(self, index: int | slice) -> None:
        if isinstance(index, slice) and index.start is None and index.step is None and (index.stop or 0) < 0:
            self._drop(self._count + index.stop)
            return
        every = self._apart()
        del every[index]
        self._become(every)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Iterable) and [bytes(line) for line in self] == [bytes(line) for line in other]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Lines({self.text!r})"

    def _drop(self, first: int) -> None:
        """Drop the oldest: the way a timeline stays bounded."""
        if first <= 0:
            return
        kept = self._count - len(self._new)
        if first >= kept:
            del self._new[: first - kept]
            self._text, self._start = b"", 0
        else:
            for _ in range(first):
                self._start = self._text.index(_BETWEEN, self._start) + len(_BETWEEN)
        self._count -= first

    def _apart(self) -> list[Raw]:
        text = self.text
        return [Raw(line) for line in text.split(_BETWEEN)] if text else []

    def _become(self, every: Iterable[Raw]) -> None:
        self._text, self._start, self._count = b"", 0, 0
        self._new.clear()
        for line in every:
            self.append(line)
