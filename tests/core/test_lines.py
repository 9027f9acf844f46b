"""A timeline kept beside its document is the list it stands for, in memory and as it is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from segue.core.context import Context, decoder, encoder, lines_of, whole
from segue.core.lines import BETWEEN, Change, Lines

VALUES = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
ENTRIES = st.builds(
    lambda value, indent: json.dumps({"id": value}, indent=indent).encode(), VALUES, st.sampled_from([None, 2])
)
STEPS = st.lists(
    st.tuples(st.just("append"), ENTRIES)
    | st.tuples(st.just("insert"), st.integers(0, 9), ENTRIES)
    | st.tuples(st.just("keep"), st.integers(1, 5))
    | st.tuples(st.sampled_from(["look back", "write", "load", "hand over"])),
    max_size=40,
)
SEEN = '","timeline":['


class Stored:
    """The list in Redis, and how a change is made to it; counts how often it is read."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.read = 0

    def change(self, change: Change) -> None:
        kept = [] if change.anew else self.entries[: len(self.entries) - change.cut]
        self.entries = [*kept, *change.append][change.drop :]

    def fetch(self) -> list[bytes]:
        self.read += 1
        return list(self.entries)


def parsed(lines: Any) -> list[object]:
    return [json.loads(bytes(line)) for line in lines]


def entry(name: str) -> Raw:
    return Raw(b'{"id":"%b"}' % name.encode())


@given(STEPS)
def test_it_is_the_list_it_stands_for(steps: list[tuple[object, ...]]) -> None:
    stored, context, expected = Stored(), Context("c", seen=SEEN), []
    stored.entries = [b'{"id":"of somebody before"}']
    raw = b""
    for step in steps:
        match step:
            case ("append", bytes(line)):
                context.timeline.append(Raw(line))
                expected.append(json.loads(line))
            case ("insert", int(at), bytes(line)):
                context.timeline.insert(at, Raw(line))
                expected.insert(at, json.loads(line))
            case ("keep", int(keep)):
                lines_of(context).keep(keep)
                del expected[:-keep]
            case ("look back",):
                assert parsed(reversed(context.timeline)) == expected[::-1]
            case ("write",) | ("load",):
                raw = encoder.stored(context)
                stored.change(lines_of(context).take(stored.fetch))
                assert parsed(stored.entries) == expected
                if step == ("load",):
                    context = decoder.stored(raw, stored.fetch)
            case _:
                context = decoder.decode(encoder.encode(context))
        assert len(context.timeline) == len(expected)
    document = json.loads(encoder.encode(context))
    assert parsed(context.timeline) == expected
    assert document.get("entries", 0) == len(expected)
    assert document["timeline"] == expected
    assert document["seen"] == SEEN


def many(stored: Stored, count: int) -> Lines:
    """As many entries, written."""
    lines = Lines()
    for n in range(count):
        lines.append(entry(f"{n}"))
    stored.change(lines.take(stored.fetch))
    return lines


def test_what_is_only_appended_to_is_neither_read_nor_written_again() -> None:
    stored = Stored()
    lines = many(stored, 50)
    lines.append(entry("new"))
    lines.keep(50)
    assert lines.take(stored.fetch) == Change(anew=False, cut=0, append=[b'{"id":"new"}'], drop=1)
    assert stored.read == 0


def test_before_the_last_is_in_memory_and_further_back_is_read() -> None:
    stored = Stored()
    lines = many(stored, 50)
    lines.insert(49, entry("a little late"))
    change = lines.take(stored.fetch)
    assert change == Change(anew=False, cut=1, append=[b'{"id":"a little late"}', b'{"id":"49"}'], drop=0)
    assert stored.read == 0
    stored.change(change)
    lines.insert(10, entry("late"))
    assert stored.read == 1
    stored.change(lines.take(stored.fetch))
    names = [str(json.loads(line)["id"]) for line in stored.entries]
    assert names == [*map(str, range(10)), "late", *map(str, range(10, 49)), "a little late", "49"]


def test_the_timeline_stands_last_in_the_document() -> None:
    assert Context.__struct_fields__[-1] == "timeline"


def test_what_the_document_held_before_the_timeline_is_read() -> None:
    context = Context("c", revision=7, channels={"web": 3})
    context.timeline.append(Raw(b'{"id":"a"}'))
    again = decoder.decode(encoder.encode(context))
    assert (again.revision, again.channels, again.timeline) == (7, {"web": 3}, context.timeline)
    assert Lines([b'{"id":"b"}']) != context.timeline


def test_what_is_stored_and_its_entries_make_the_document() -> None:
    context = Context("c", revision=7)
    assert json.loads(whole(encoder.stored(context), b""))["timeline"] == []
    context.timeline.extend([entry("a"), entry("b")])
    entries = BETWEEN.join(map(bytes, context.timeline))
    assert whole(encoder.stored(context), entries) == encoder.encode(context)


def test_a_document_that_has_its_timeline_inside_is_read_and_then_written_apart() -> None:
    stored, context = Stored(), Context("c")
    context.timeline.extend([entry("a"), entry("b")])
    inside = encoder.encode(context)
    assert whole(inside, b"") == inside
    again = decoder.stored(inside, stored.fetch)
    again.timeline.append(entry("c"))
    stored.change(lines_of(again).take(stored.fetch))
    assert stored.entries == [b'{"id":"a"}', b'{"id":"b"}', b'{"id":"c"}']
    assert b"timeline" not in encoder.stored(again)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"customer_key":1}'])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decoder.decode(raw)
    with pytest.raises(ValueError, match=r".+"):
        decoder.stored(raw, list)
