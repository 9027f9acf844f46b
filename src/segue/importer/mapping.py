"""The mapping: a TOML file that says which column becomes which field of the event.

A value is written either short, as a template (`"{number}"`, `"category {category}"`, or a constant such as
`"case"`), or as a table with `column` or `template` and what else the field takes: `map` and `default`,
`empty`, `pointer` (into a column of JSON), `format` and `zone`, `unit`, `type`. Rows that are no interactions are
left out by `[[skip]]`. The shipped mappings in `mappings/` are examples.

`loading` reads mappings and refuses wrong ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, tzinfo
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from segue.core.event import Level
from segue.errors import SegueError

TEMPLATE = re.compile(r"\{([^{}]+)\}")
"""A column within a template. No escapes: event ids and touchpoints need no braces of their own."""

INSTANT_FORMATS = ("iso", "unix_s", "unix_ms")
"""Time formats other than strptime's; the last two need no zone."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class MappingError(SegueError):
    """The mapping is wrong, or does not fit the file. The message names the field and says how to mend it."""


def zone_of(name: str) -> tzinfo:
    """The time zone of that name. UTC needs no database, which a small container may not have."""
    return UTC if name == "UTC" else ZoneInfo(name)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Strict):
    """Where a value comes from: one column, or a template over several. `empty`: values that mean missing.

    `pointer` (RFC 6901, such as `/0/id`) takes a part of a column that holds JSON; one that leads nowhere, missing.
    """

    column: Annotated[str, StringConstraints(min_length=1)] | None = None
    template: str | None = None
    pointer: Annotated[str, StringConstraints(pattern="^/")] | None = None
    empty: list[str] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Source:
        if (self.column is None) == (self.template is None):
            raise ValueError("give either `column` or `template`")
        if self.template is not None and set(TEMPLATE.sub("", self.template)) & set("{}"):
            raise ValueError("unpaired brace; write a column as {column}")
        if self.pointer is not None and self.column is None:
            raise ValueError("`pointer` reads from a `column`, not a template")
        return self

    def columns(self) -> list[str]:
        """The columns it reads; none for a constant."""
        return [self.column] if self.column is not None else TEMPLATE.findall(self.template or "")


def _as_table(given: Any) -> Any:
    return {"template": given} if isinstance(given, str) else given


def _as_texts(given: Any) -> Any:
    """Let TOML's own booleans and numbers stand in a map; values are text until their field reads them."""
    if not isinstance(given, dict):
        return given
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float) else value
        for key, value in given.items()
    }


class Value(Source):
    """A text. `map` translates it; what `map` does not list becomes `default` or, without one, refuses the row."""

    map: Annotated[dict[str, str] | None, BeforeValidator(_as_texts)] = None
    default: str | None = None

    def outcomes(self) -> Iterator[tuple[str, str]]:
        """What it can become, as far as the mapping says: (where it says so, value)."""
        for given, becomes in (self.map or {}).items():
            yield f".map.{given}", becomes
        if self.default is not None:
            yield ".default", self.default
        if self.template is not None and self.map is None and not self.columns():
            yield "", self.template


class Time(Source):
    """A time: strptime's format, `iso`, `unix_s` or `unix_ms`. A format without an offset needs a `zone`.

    Within `item`, `format` and `zone` default to those of the event's `time`. A local time that a clock
    change makes ambiguous is read as the earlier.
    """

    format: str | None = None
    zone: str | None = None

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                zone_of(value)
            except (KeyError, OSError, ValueError):
                raise ValueError("no such time zone; use a name such as UTC or America/New_York") from None
        return value


class Duration(Source):
    unit: Literal["ms", "s", "m", "h"]


class Property(Value):
    type: Literal["str", "int", "float", "bool"] = "str"


class IdentifierSource(Source):
    type: Name
    level: Level = "claimed"


class Skip(Source):
    """Rows that become no event: where the value is one of `among`, where it is `missing`, or where it is a time and
    the time in the column `until` is more than `longer_than_h` hours after it (both in the format of `time`).

    `why` is what the import's summary counts them under.
    """

    why: Annotated[str, StringConstraints(min_length=1, max_length=80)]
    among: Annotated[list[str], Field(min_length=1)] | None = None
    missing: Literal[True] | None = None
    until: Annotated[str, StringConstraints(min_length=1)] | None = None
    longer_than_h: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Skip:
        if sum(test is not None for test in (self.among, self.missing, self.until)) != 1:
            raise ValueError("say which rows: give one of `among`, `missing` and `until`")
        if (self.until is None) != (self.longer_than_h is None):
            raise ValueError("`until` and `longer_than_h` go together")
        return self

    def columns(self) -> list[str]:
        return [*super().columns(), *([] if self.until is None else [self.until])]


Text = Annotated[Value, BeforeValidator(_as_table)]
Moment = Annotated[Time, BeforeValidator(_as_table)]


class ActorMapping(_Strict):
    """Who acted. `id` and `group` say who served, so they are left out where the kind is `customer`."""

    kind: Text
    id: Text | None = None
    group: Text | None = None


class ItemMapping(_Strict):
    """The item. A row without an item id has no item."""

    kind: Text
    id: Text
    status: Text | None = None
    title: Text | None = None
    group: Text | None = None
    assignee: Text | None = None
    opened_at: Moment | None = None
    due_at: Moment | None = None
    sla_missed: Text | None = None
    reopen_count: Text | None = None
    reassign_count: Text | None = None


class SurveyMapping(_Strict):
    """An answer. A row without a score has none."""

    metric: Text
    score: Text


class Mapping(_Strict):
    """The whole mapping; see the head of this module."""

    about: str = ""
    source: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """The events' `source`. Default: `import/` and the file's name."""
    format: Literal["csv", "jsonl"] | None = None
    """Default: by the file's name."""
    delimiter: Annotated[str, StringConstraints(min_length=1, max_length=1)] = ","
    empty: list[str] = ["?", ""]
    order_by: Literal["file", "time"] = "file"
    """`time` sorts in memory by event time; rows of the same time stay in the file's order."""
    skip: list[Skip] = []
    """A row is left out for the first reason that applies."""
    id: Text | None = None
    """Default: derived from the file's name, the row's number and the row."""
    type: Text
    channel: Text
    time: Time
    identifiers: Annotated[list[IdentifierSource], Field(min_length=1, max_length=16)]
    touchpoint: Text | None = None
    text: Text | None = None
    device: Text | None = None
    source_session_id: Text | None = None
    wait_ms: Duration | None = None
    actor: ActorMapping | None = None
    item: ItemMapping | None = None
    survey: SurveyMapping | None = None
    properties: dict[str, Annotated[Property, BeforeValidator(_as_table)]] = {}
