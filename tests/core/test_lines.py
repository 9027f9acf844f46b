"""A timeline kept as text is the list it stands for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from segue.core.context import Context, decoder, encoder
from segue.core.lines import Lines

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
    | st.tuples(st.just("insert"), st.integers(0, 6), ENTRIES)
    | st.tuples(st.just("keep"), st.integers(1, 5))
    | st.tuples(st.just("reload")),
    max_size=30,
)


def parsed(lines: object) -> list[object]:
    return [json.loads(bytes(line)) for line in lines]  # type: ignore[attr-defined]


@given(STEPS)
def test_it_is_the_list_it_stands_for(steps: list[tuple[object, ...]]) -> None:
    context, expected = Context("c", seen='","timeline":['), []
    for step in steps:
        match step:
            case ("append", bytes(raw)):
                context.timeline.append(Raw(raw))
                expected.append(json.loads(raw))
            case ("insert", int(at), bytes(raw)):
                context.timeline.insert(at, Raw(raw))
                expected.insert(at, json.loads(raw))
            case ("keep", int(keep)):
                del context.timeline[:-keep]
                del expected[:-keep]
            case _:
                context = decoder.decode(encoder.encode(context))
        assert len(context.timeline) == len(expected)
    assert parsed(context.timeline) == expected
    assert parsed(reversed(context.timeline)) == expected[::-1]
    document = json.loads(encoder.encode(context))
    assert document.get("entries", 0) == len(expected)
    assert document["timeline"] == expected
    assert document["seen"] == '","timeline":['


def test_the_timeline_stands_last_in_the_document() -> None:
    assert Context.__struct_fields__[-1] == "timeline"


def test_what_the_document_held_before_the_timeline_is_read() -> None:
    context = Context("c", revision=7, channels={"web": 3})
    context.timeline.append(Raw(b'{"id":"a"}'))
    again = decoder.decode(encoder.encode(context))
    assert (again.revision, again.channels, again.timeline) == (7, {"web": 3}, context.timeline)
    assert Lines(b'{"id":"b"}', 1) != context.timeline


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"customer_key":1}'])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decoder.decode(raw)
