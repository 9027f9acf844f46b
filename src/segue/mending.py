"""Small repairs to a JSON value, by path: set a field, remove a field. For events that go in a second time.

A path is a JSONPath to one place: `$.data.survey.score`, `$.data.identifiers[0].value`, `$['odd name']`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from msgspec import UNSET, Struct

_PART = re.compile(r"\.([^.\[\]'=]+)|\[(\d+)\]|\['([^']*)'\]")


class Step(Struct, frozen=True):
    """One repair. Without a value it removes what is at the path."""

    path: str
    parts: tuple[str | int, ...]
    value: Any = UNSET


def setting(text: str) -> Step:
    """Read `PATH=VALUE`. The value is JSON, or else a string as it stands. Raises ValueError."""
    parts, end = _parts(text)
    if text[end : end + 1] != "=" or not parts:
        raise ValueError(f"{text[:end]}: write PATH=VALUE, e.g. $.data.survey.score=4")
    raw = text[end + 1 :]
    try:
        value = json.loads(raw)
    except ValueError:
        value = raw
    return Step(text[:end], parts, value)


def removal(text: str) -> Step:
    """Read `PATH`. Raises ValueError."""
    parts, end = _parts(text)
    if end != len(text) or not parts:
        raise ValueError(f"{text}: write a path, e.g. $.data.properties")
    return Step(text, parts)


def _parts(text: str) -> tuple[tuple[str | int, ...], int]:
    if not text.startswith("$"):
        raise ValueError("a path starts with $, e.g. $.data.survey.score")
    found: list[str | int] = []
    end = 1
    while match := _PART.match(text, end):
        name, index, quoted = match.groups()
        found.append(int(index) if index is not None else name if name is not None else quoted)
        end = match.end()
    return tuple(found), end


def mend(raw: bytes, steps: Iterable[Step]) -> bytes:
    """Apply the steps in order. Raises ValueError naming the path, never a value, where one does not fit."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("not JSON: nothing can be set or removed in it") from None
    for step in steps:
        _apply(document, step)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _apply(document: Any, step: Step) -> None:
    remove = step.value is UNSET
    place = document
    for part in step.parts[:-1]:
        if remove and not _has(place, part):
            return
        if isinstance(place, dict) and isinstance(part, str):
            place = place.setdefault(part, {})
        elif _has(place, part):
            place = place[part]
        else:
            raise ValueError(f"{step.path}: there is no {part!r} in it")
    last = step.parts[-1]
    if remove:
        if _has(place, last):
            del place[last]
    elif (isinstance(place, dict) and isinstance(last, str)) or _has(place, last):
        place[last] = step.value
    else:
        raise ValueError(f"{step.path}: there is no place for {last!r}")


def _has(place: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(place, list) and part < len(place)
    return isinstance(place, dict) and part in place
