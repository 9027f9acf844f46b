"""Reading one value of a row: from columns, through a map, into a text, a time, a number or a flag.

What is wrong is raised as `Unmapped`, which `convert` turns into an `Unusable` row; its text names the
field and how to mend it, never the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Any

import orjson

from segue.importer.mapping import TEMPLATE, Source, Value

Values = dict[str, str]
Get = Callable[[Values], str | None]

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Unmapped(Exception):
    """A value that becomes no field: reason code, field, how to mend it. Never leaves the importer."""

    def __init__(self, reason: str, field: str, detail: str) -> None:
        self.reason, self.field, self.detail = reason, field, detail


def getter(source: Source, empty: tuple[str, ...], path: str) -> Get:
    """The text of a source, translated where it has a map; None when it is missing."""
    raw = _column(source.column, empty) if source.column is not None else _template(source.template or "", empty)
    if source.pointer is not None:
        raw = _part_of(raw, source.pointer, empty, path)
    if not isinstance(source, Value) or (source.map is None and source.default is None):
        return raw
    return _translated(raw, source.map, source.default, path)


def _column(column: str, empty: tuple[str, ...]) -> Get:
    def get(values: Values) -> str | None:
        value = values.get(column, "").strip()
        return None if value in empty or not value else value

    return get


def _part_of(raw: Get, pointer: str, empty: tuple[str, ...], path: str) -> Get:
    """What a JSON Pointer (RFC 6901) leads to in a column of JSON, as text."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]

    def get(values: Values) -> str | None:
        text = raw(values)
        if text is None:
            return None
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise Unmapped("not_json", path, "`pointer` reads JSON; list what means missing under `empty`") from None
        for step in steps:
            found = _step(found, step)
        value = found if isinstance(found, str) else orjson.dumps(found).decode()
        return None if found is None or value in empty else value

    return get


def _step(found: Any, step: str) -> Any:
    if isinstance(found, dict):
        return found.get(step)
    in_list = isinstance(found, list) and step.isascii() and step.isdecimal() and int(step) < len(found)
    return found[int(step)] if in_list else None


def _template(template: str, empty: tuple[str, ...]) -> Get:
    """Missing as a whole when one of its columns is."""
    parts = TEMPLATE.split(template)  # text, column, text, column, ..., text
    if len(parts) == 1:
        return lambda values: template or None
    if len(parts) == 3 and not parts[0] and not parts[2]:
        return _column(parts[1], empty)
    columns = [_column(name, empty) for name in parts[1::2]]
    frame = "%s".join(part.replace("%", "%%") for part in parts[::2])

    def get(values: Values) -> str | None:
        found = tuple(column(values) for column in columns)
        return None if None in found else frame % found

    return get


def _translated(raw: Get, table: dict[str, str] | None, default: str | None, path: str) -> Get:
    def get(values: Values) -> str | None:
        value = raw(values)
        if value is None or table is None:
            return default if value is None else value
        found = table.get(value, default)
        if found is None:
            detail = "a value that the map does not list; add it, give a default, or list it under `empty`"
            raise Unmapped("unmapped_value", path, detail)
        return found

    return get


def instant(value: str, form: str, zone: tzinfo | None, path: str) -> str:
    """A time as RFC 3339 in UTC. `form` as in `mapping.Time`; `zone` is used when the text has no offset."""
    try:
        return _instant(value, form, zone)
    except _NoZone:
        raise Unmapped("time_without_zone", path, "no offset in this row; set `zone`") from None
    except (ValueError, OverflowError, OSError):
        raise Unmapped("bad_time", path, f"not a time in the format {form}") from None


class _NoZone(Exception):
    """A local time, and no zone to read it in."""


@lru_cache(maxsize=65536)
def _instant(value: str, form: str, zone: tzinfo | None) -> str:
    # Of one width, so that text order is time order. Cached, because strptime takes most of a row's time and
    # files repeat their times.
    if form in ("unix_s", "unix_ms"):
        moment = datetime.fromtimestamp(float(value) / (1 if form == "unix_s" else 1000), UTC)
    else:
        moment = datetime.fromisoformat(value) if form == "iso" else datetime.strptime(value, form)
        if moment.tzinfo is None:
            if zone is None:
                raise _NoZone
            moment = moment.replace(tzinfo=zone)
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _int(value: str, path: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise Unmapped("bad_number", path, "not a whole number; list what means missing under `empty`") from None


def _float(value: str, path: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise Unmapped("bad_number", path, "not a number; list what means missing under `empty`")
    return found


def _bool(value: str, path: str) -> bool:
    found = _BOOLEANS.get(value.casefold())
    if found is None:
        raise Unmapped("bad_flag", path, "neither true nor false; map its values to true and false")
    return found


READ: dict[str, Callable[[str, str], Any]] = {
    "str": lambda value, path: value,
    "int": _int,
    "float": _float,
    "bool": _bool,
}
