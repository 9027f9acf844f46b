"""Repairs by path: what they reach, what they leave alone, and what they say where they do not fit."""

from __future__ import annotations

import json

import pytest

from segue.mending import mend, removal, setting

EVENT = {"id": "ü1", "data": {"identifiers": [{"type": "email", "value": "x"}], "odd name": 1, "big": 2**70}}
RAW = json.dumps(EVENT, ensure_ascii=False).encode()


def changed(*steps: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(mend(RAW, [setting(s) if "=" in s else removal(s) for s in steps]))
    return found


def test_a_field_is_set_and_all_else_stays() -> None:
    found = changed(
        "$.data.survey.score=4", "$.data.identifiers[0].value=lin@example.com", '$.time="2026-01-05T09:00:00Z"'
    )
    assert found == EVENT | {
        "time": "2026-01-05T09:00:00Z",
        "data": EVENT["data"]  # type: ignore[operator]
        | {"survey": {"score": 4}, "identifiers": [{"type": "email", "value": "lin@example.com"}]},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("$.a=4", 4), ("$.a=true", True), ('$.a="4"', "4"), ("$.a=a=b", "a=b"), ("$.a=", ""), ("$.a=[1]", [1])],
)
def test_a_value_is_json_or_the_text_as_it_stands(text: str, value: object) -> None:
    assert changed(text)["a"] == value


def test_a_field_is_removed_and_what_is_not_there_may_be() -> None:
    assert changed("$.data['odd name']", "$.data.identifiers[0].type", "$.nothing.here", "$.data.identifiers[7]") == {
        "id": "ü1", "data": {"identifiers": [{"value": "x"}], "big": 2**70},
    }  # fmt: skip


@pytest.mark.parametrize("text", ["data.x=1", "$=1", "$.data.x", "$..x=1", "$.a[x]=1"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\$"):
        setting(text)


@pytest.mark.parametrize("text", ["data", "$", "$.a=1", "$.a[*]"])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\$"):
        removal(text)


@pytest.mark.parametrize("step", ["$.id.x=1", "$.data.identifiers[3].value=1", "$.data.identifiers.value=1"])
def test_a_step_that_does_not_fit_says_where_and_shows_no_value(step: str) -> None:
    with pytest.raises(ValueError, match=r"\$\.") as error:
        mend(RAW, [setting(step)])
    assert "ü1" not in str(error.value)


@pytest.mark.parametrize("raw", [b"", b"{cut", b"\xff", b"[" * 100_000])
def test_what_is_not_json_cannot_be_mended(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        mend(raw, [removal("$.x")])
