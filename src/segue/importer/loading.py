"""Reading mappings: shipped ones by name, others by path. Wrong ones are refused before a row is read.

Messages name the field (`item.status.map.Open`) and say how to mend it; a mapping holds no customer's
data, so its own words may be quoted.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from segue.core.channels import CHANNELS, ActorKind
from segue.core.event import ItemStatus, Metric
from segue.importer.mapping import (
    INSTANT_FORMATS,
    ActorMapping,
    Duration,
    IdentifierSource,
    ItemMapping,
    Mapping,
    MappingError,
    Property,
    Skip,
    Source,
    SurveyMapping,
    Time,
    Value,
)

_EVENT_TYPE = re.compile(r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$")


def shipped() -> list[str]:
    """Names of the mappings that come with Segue."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files("segue.importer").joinpath("mappings").iterdir()
        if entry.name.endswith(".toml")
    )


def load(name: str) -> Mapping:
    """Read a mapping: a shipped one by its name, or a file. Raises MappingError."""
    if name in shipped():
        return parse(files("segue.importer").joinpath("mappings", f"{name}.toml").read_text("utf-8"), name)
    path = Path(name)
    try:
        return parse(path.read_text("utf-8"), path.name)
    except FileNotFoundError:
        raise MappingError(
            f"{name}: no such file, nor a shipped mapping{_hint(name, shipped())}; shipped: {', '.join(shipped())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(f"{name}: cannot be read: {error}") from error


def parse(text: str, name: str) -> Mapping:
    """Read a mapping from TOML; `name` is for messages. Raises MappingError with every problem found."""
    try:
        mapping = Mapping.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"{name}: not valid TOML: {error}") from None
    except ValidationError as error:
        raise MappingError("; ".join(f"{name}: {problem}" for problem in _problems(error))) from None
    wrong = [f"{name}: {path}: {what}" for path, what in _beyond_types(mapping)]
    if wrong:
        raise MappingError("; ".join(wrong))
    return mapping


def sources(part: BaseModel, path: str = "") -> Iterator[tuple[str, Source]]:
    """Every value of a mapping with the path of its field."""
    for field in type(part).model_fields:
        value = getattr(part, field)
        where = f"{path}.{field}" if path else field
        if isinstance(value, list):
            named: Iterable[tuple[str, Any]] = ((f"{where}[{at}]", each) for at, each in enumerate(value))
        elif isinstance(value, dict):
            named = ((f"{where}.{key}", each) for key, each in value.items())
        else:
            named = ((where, value),)
        for place, each in named:
            if isinstance(each, Source):
                yield place, each
            elif isinstance(each, BaseModel):
                yield from sources(each, place)


def check_columns(mapping: Mapping, columns: Iterable[str]) -> None:
    """Raise MappingError when the mapping reads columns that the file does not have."""
    have = list(columns)
    missing = [
        f"{path}: the file has no column `{column}`{_hint(column, have)}"
        for path, source in sources(mapping)
        for column in source.columns()
        if column not in have
    ]
    if missing:
        raise MappingError(f"{'; '.join(missing)}; it has: {', '.join(have)}")


def _beyond_types(mapping: Mapping) -> Iterator[tuple[str, str]]:
    """What a mapping says and no event may hold; found here rather than once per row."""
    choices: list[tuple[str, Value | None, tuple[str, ...]]] = [("channel", mapping.channel, CHANNELS)]
    if mapping.actor is not None:
        choices.append(("actor.kind", mapping.actor.kind, get_args(ActorKind)))
    if mapping.item is not None:
        choices.append(("item.status", mapping.item.status, get_args(ItemStatus)))
        choices.append(("item.sla_missed", mapping.item.sla_missed, ("true", "false")))
    if mapping.survey is not None:
        choices.append(("survey.metric", mapping.survey.metric, get_args(Metric)))
    for path, value, allowed in choices:
        for where, outcome in () if value is None else value.outcomes():
            if outcome not in allowed:
                yield path + where, f"`{outcome}` is not one of: {', '.join(allowed)}"
    for where, outcome in mapping.type.outcomes():
        if not _EVENT_TYPE.match(outcome):
            yield f"type{where}", f"`{outcome}` is not an event type; write lower case with a dot, as in case.opened"
    yield from _times(mapping)


def _times(mapping: Mapping) -> Iterator[tuple[str, str]]:
    for path, source in sources(mapping):
        if isinstance(source, Time):
            form = source.format or mapping.time.format or "iso"
            if form in INSTANT_FORMATS or "%z" in form or source.zone or mapping.time.zone:
                continue
            yield f"{path}.zone", "this format says no offset, so name the zone its times are in, e.g. UTC"


def _problems(error: ValidationError) -> Iterator[str]:
    """pydantic's findings as sentences that name the field."""
    for found in error.errors(include_url=False, include_input=False):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]).lstrip(".")
        if found["type"] == "extra_forbidden":
            yield f"{path}: there is no such field{_hint(str(found['loc'][-1]), _FIELDS)}"
        else:
            yield f"{path}: {found['msg'].removeprefix('Value error, ')}"


def _hint(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(known), 1)
    return f"; did you mean `{near[0]}`?" if near else ""


_FIELDS = sorted(
    {
        field
        for model in (
            Mapping,
            ActorMapping,
            ItemMapping,
            SurveyMapping,
            Property,
            Time,
            Duration,
            IdentifierSource,
            Skip,
        )
        for field in model.model_fields
    }
)
