"""Where two documents differ first, told without telling what is in them: values are personal data."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson


class Missing:
    """Stands where one side has nothing."""


MISSING = Missing()


class Difference(NamedTuple):
    """One key whose rebuilt and live values differ; `path` is the first differing JSONPath."""

    key: str
    path: str
    rebuilt: Any
    live: Any

    def told(self, show_values: bool) -> str:
        """The difference in one line; without `show_values`, by types and lengths only."""
        tell = shown if show_values else described
        key = self.key if show_values else without_value(self.key)
        return f"{key} at {self.path}: rebuilt {tell(self.rebuilt)}, live {tell(self.live)}"


def difference(key: str, rebuilt: bytes | None, live: bytes | None) -> Difference | None:
    """The first difference of two stored values; None when they are the same, byte for byte."""
    if rebuilt == live:
        return None
    if rebuilt is None or live is None:
        return Difference(key, "$", _parsed(rebuilt), _parsed(live))
    try:
        path, one, other = first(orjson.loads(rebuilt), orjson.loads(live))
    except orjson.JSONDecodeError:
        return Difference(key, "$", rebuilt, live)
    if path is None:  # the same content in other bytes: say from which byte on
        at = next((n for n, (a, b) in enumerate(zip(rebuilt, live, strict=False)) if a != b), len(live))
        return Difference(key, f"$ (same content, other bytes from {at} on)", rebuilt, live)
    return Difference(key, path, one, other)


def first(one: Any, other: Any, path: str = "$") -> tuple[str | None, Any, Any]:
    """Path and both values of the first difference of two JSON values; no path when there is none."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = list(dict.fromkeys([*one, *other]))
        pairs = [(f"{path}.{name}", one.get(name, MISSING), other.get(name, MISSING)) for name in names]
    elif isinstance(one, list) and isinstance(other, list):
        longest = range(max(len(one), len(other)))
        pairs = [(f"{path}[{n}]", _at(one, n), _at(other, n)) for n in longest]
    else:
        return (None, one, other) if one == other and type(one) is type(other) else (path, one, other)
    for below, a, b in pairs:
        found = first(a, b, below)
        if found[0] is not None:
            return found
    return None, one, other


def _at(found: list[Any], n: int) -> Any:
    return found[n] if n < len(found) else MISSING


def _parsed(raw: bytes | None) -> Any:
    if raw is None:
        return MISSING
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw


_NAMES: dict[type, str] = {
    dict: "an object of {} members",
    list: "a list of {}",
    str: "text of {} characters",
    bytes: "{} bytes",
}


def described(value: Any) -> str:
    """Type and length of a value, not the value."""
    if value is MISSING:
        return "nothing"
    name = _NAMES.get(type(value))
    if name is not None:
        return name.format(len(value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    return f"a number of {len(str(value))} digits"


def shown(value: Any) -> str:
    """The value itself, as JSON."""
    if value is MISSING:
        return "nothing"
    return repr(value) if isinstance(value, bytes) else orjson.dumps(value).decode()


def without_value(key: str) -> str:
    """A Redis key without an identifier's value, which entries of the identity index have in theirs."""
    head, brace, rest = key.partition("}:")
    kind, colon, value = rest.partition(":")
    if "{id" not in head or not colon or kind == ".customer":  # which a customer key follows
        return key
    return f"{head}{brace}{kind}:({len(value)} characters)"
