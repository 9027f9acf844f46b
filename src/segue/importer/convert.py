"""From a row to an event, by a mapping. Pure: the same row of the same file gives the same event.

A mapping is compiled once into one small function per field. A row that cannot be mapped is a value
(`Unusable`) that names the field and how to mend it, never the row's own values.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

from msgspec import Struct

from segue.core import ids
from segue.importer.mapping import (
    ActorMapping,
    Duration,
    ItemMapping,
    Mapping,
    Property,
    Skip,
    Source,
    SurveyMapping,
    Time,
    Value,
    zone_of,
)
from segue.importer.readers import Row, Unusable
from segue.importer.values import READ, Get, Unmapped, Values, getter, instant

ROW = bytes.fromhex("fbcdf1aad89f5914b83c7e4d674b4c3c")
"""Namespace of the ids of imported rows: UUIDv5 of the DNS namespace and "import.segue". Never change it."""

UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


class Skipped(Struct, frozen=True, gc=False):
    """A row that the mapping leaves out, and why."""

    line: int
    why: str


class Field(Protocol):
    """Reads one field of the event from a row; None leaves it out."""

    def __call__(self, values: Values, /) -> Any: ...


class Converter:
    """Turns the rows of one file into events. `file_name` names the file in derived ids and `source`."""

    def __init__(self, mapping: Mapping, file_name: str) -> None:
        self._empty = tuple(mapping.empty)
        self._zone, self._format = mapping.time.zone, mapping.time.format
        self._file = file_name.removesuffix(".gz")
        self._source = mapping.source or f"import/{self._file}"[:256]
        self._id = None if mapping.id is None else self._required("id", self._text("id", mapping.id))
        self._type = self._required("type", self._text("type", mapping.type))
        self._channel = self._required("channel", self._text("channel", mapping.channel))
        self._time = self._required("time", self._moment("time", mapping.time))
        self._identifiers = [
            (each.type, each.level, self._get(each, f"identifiers[{at}]"))
            for at, each in enumerate(mapping.identifiers)
        ]
        self._data = self._fields(mapping)
        self._skips = [(each.why, self._skip(f"skip[{at}]", each)) for at, each in enumerate(mapping.skip)]

    def convert(self, row: Row) -> dict[str, Any] | Unusable | Skipped:
        """Return the event, or why there is none."""
        try:
            for why, applies in self._skips:
                if applies(row.values):
                    return Skipped(row.line, why)
            return self._event(row)
        except Unmapped as why:
            return Unusable(row.line, why.reason, why.field, why.detail)

    def _event(self, row: Row) -> dict[str, Any]:
        values = row.values
        time = self._time(values)
        data = {"identifiers": self._who(values)}
        for name, field in self._data:
            found = field(values)
            if found is not None:
                data[name] = found
        return {
            "specversion": "1.0",
            "id": self._derived(row) if self._id is None else self._id(values),
            "source": self._source,
            "type": self._type(values),
            "time": time,
            "channel": self._channel(values),
            "data": data,
        }

    def _derived(self, row: Row) -> str:
        """The row itself is part of the name, so that another day's file of the same name brings new events."""
        return ids.derive(ROW, "\x1f".join((self._file, str(row.number), *row.values.values())))

    def _who(self, values: Values) -> list[dict[str, str]]:
        found = [
            {"type": kind, "value": value, "level": level}
            for kind, level, get in self._identifiers
            if (value := get(values)) is not None
        ]
        if not found:
            raise Unmapped("missing_identifiers", "identifiers", "all are empty; name one more column that is not")
        return found

    # --- compiling

    def _fields(self, mapping: Mapping) -> list[tuple[str, Field]]:
        fields: list[tuple[str, Field | None]] = [
            ("touchpoint", self._text("touchpoint", mapping.touchpoint)),
            ("text", self._text("text", mapping.text)),
            ("device", self._text("device", mapping.device)),
            ("source_session_id", self._text("source_session_id", mapping.source_session_id)),
            ("wait_ms", None if mapping.wait_ms is None else self._duration("wait_ms", mapping.wait_ms)),
            ("actor", None if mapping.actor is None else self._actor(mapping.actor)),
            ("item", None if mapping.item is None else self._item(mapping.item)),
            ("survey", None if mapping.survey is None else self._survey(mapping.survey)),
            ("properties", self._properties(mapping.properties)),
        ]
        return [(name, field) for name, field in fields if field is not None]

    def _actor(self, mapping: ActorMapping) -> Field:
        kind = self._required("actor.kind", self._text("actor.kind", mapping.kind))
        served = _part({"id": self._text("actor.id", mapping.id), "group": self._text("actor.group", mapping.group)})

        def field(values: Values) -> dict[str, Any]:
            who = kind(values)
            return {"kind": who} if who == "customer" else {"kind": who, **served(values)}

        return field

    def _item(self, mapping: ItemMapping) -> Field:
        texts = ("kind", "status", "title", "group", "assignee")
        counts = ("reopen_count", "reassign_count")
        times = ("opened_at", "due_at")
        rest = _part(
            {name: self._text(f"item.{name}", getattr(mapping, name)) for name in texts}
            | {name: self._moment(f"item.{name}", getattr(mapping, name)) for name in times}
            | {name: self._typed(f"item.{name}", getattr(mapping, name), "int") for name in counts}
            | {"sla_missed": self._typed("item.sla_missed", mapping.sla_missed, "bool")}
        )
        name = self._get(mapping.id, "item.id")

        def field(values: Values) -> dict[str, Any] | None:
            found = name(values)
            return None if found is None else {"id": found, **rest(values)}

        return field

    def _survey(self, mapping: SurveyMapping) -> Field:
        metric = self._required("survey.metric", self._text("survey.metric", mapping.metric))
        score = self._typed("survey.score", mapping.score, "float")
        assert score is not None

        def field(values: Values) -> dict[str, Any] | None:
            found = score(values)
            return None if found is None else {"metric": metric(values), "score": found}

        return field

    def _properties(self, mapping: dict[str, Property]) -> Field | None:
        if not mapping:
            return None
        part = _part({name: self._typed(f"properties.{name}", each, each.type) for name, each in mapping.items()})
        return lambda values: part(values) or None

    def _typed(self, path: str, value: Value | None, kind: str) -> Field | None:
        if value is None:
            return None
        get, read = self._get(value, path), READ[kind]
        return lambda values: None if (found := get(values)) is None else read(found, path)

    def _duration(self, path: str, source: Duration) -> Field:
        get, unit = self._get(source, path), UNIT_MS[source.unit]
        return lambda values: None if (found := get(values)) is None else round(READ["float"](found, path) * unit)

    def _moment(self, path: str, time: Time | None) -> Field | None:
        if time is None:
            return None
        get, form = self._get(time, path), time.format or self._format or "iso"
        name = time.zone or self._zone
        zone = None if name is None else zone_of(name)
        return lambda values: None if (found := get(values)) is None else instant(found, form, zone, path)

    def _skip(self, path: str, skip: Skip) -> Callable[[Values], bool]:
        get = self._get(skip, path)
        if skip.among is not None:
            among = frozenset(skip.among)
            return lambda values: get(values) in among
        if skip.until is None:
            return lambda values: get(values) is None
        since, until = (self._moment(path, Time(column=name)) for name in skip.columns())
        longest = timedelta(hours=skip.longer_than_h or 0)
        assert since is not None
        assert until is not None

        def longer(values: Values) -> bool:
            one, other = since(values), until(values)
            return None not in (one, other) and datetime.fromisoformat(other) - datetime.fromisoformat(one) > longest

        return longer

    def _text(self, path: str, value: Value | None) -> Field | None:
        return None if value is None else self._get(value, path)

    def _required(self, path: str, field: Field | None) -> Field:
        assert field is not None

        def required(values: Values) -> Any:
            found = field(values)
            if found is None:
                raise Unmapped("missing", path, "empty in this row; give the field another column or a default")
            return found

        return required

    def _get(self, source: Source, path: str) -> Get:
        """The text of a source; a source without an `empty` of its own takes the mapping's."""
        return getter(source, self._empty if source.empty is None else tuple(source.empty), path)


def _part(fields: dict[str, Field | None]) -> Callable[[Values], dict[str, Any]]:
    """A sub-object of those fields that have a value."""
    given = [(name, field) for name, field in fields.items() if field is not None]

    def part(values: Values) -> dict[str, Any]:
        return {name: found for name, field in given if (found := field(values)) is not None}

    return part
