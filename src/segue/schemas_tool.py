"""Writes `schemas/*.schema.json` from the structs, so that the published contract and the code are one.

    python -m segue.schemas_tool write     after a change of a struct
    python -m segue.schemas_tool check     exit code 1 and the names of files that are out of date

Structure, limits and descriptions come from the types and their docstrings, by `msgspec.inspect` (its own
`schema_components` cannot encode a default of type Raw). What types cannot say stands in `_BY_HAND` below.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec import inspect as mi

from segue.core.channels import CHANNELS
from segue.core.context import Context
from segue.core.event import Event
from segue.core.interaction import Entry, Interaction, Step
from segue.core.lineage import Command, Transfer
from segue.core.rules import Signal
from segue.core.timers import TimerDue
from segue.deadletters import PREFIX, Action
from segue.identity_records import IdentityRecord

Schema = dict[str, Any]
Number = Annotated[str, Meta(pattern=r"^[0-9]+\Z")]
DIRECTORY = Path(__file__).parents[2] / "schemas"


class DeadLetterHeaders(Struct, frozen=True, rename=lambda name: PREFIX + name):
    """The headers that are added to a dead letter, each value UTF-8; the record's own headers stay beside them."""

    code: str
    """Reason code, e.g. `schema`, `unknown_channel`, `not_json`."""
    field: str
    """Where it is wrong: a JSONPath into the value, or `key`."""
    message: str
    """How to mend it."""
    stage: str
    """The processor that refused the record."""
    topic: str
    """Where the record was read: its topic, partition and offset."""
    partition: Number
    offset: Number
    version: str
    """Version of Segue that refused it."""


PUBLISHED: dict[str, type[Struct]] = {
    "event": Event,
    "interaction": Interaction,
    "transfer": Transfer,
    "timer-due": TimerDue,
    "journey-step": Step,
    "signal": Signal,
    "identity": IdentityRecord,
    "command": Command,
    "dead-letter-headers": DeadLetterHeaders,
    "dead-letter-action": Action,
    "context": Context,
}

_DATE_TIME: Schema = {
    "description": "A moment as RFC 3339 writes it, with its zone. No year 0 and no leap second.",
    "type": "string",
    "format": "date-time",
    # Also for validators that take `format` as a mere remark.
    "pattern": "^(?!0000)[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]"
    "[0-9]{2}:[0-9]{2}:[0-5][0-9]([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$",
}
_UUID: Schema = {"format": "uuid"}
_SINCE_1970: Schema = {"description": "Milliseconds since 1970-01-01 UTC."}
_PATIENT: Schema = {"description": "How long the customer waited, in milliseconds."}

_RAW: dict[str, type[Struct] | None] = {
    "Data.properties": None,
    "Entry.properties": None,
    "Step.entry": Entry,
    "Step.signals": None,
    "Transfer.document": Context,
    "Context.timeline": Entry,
}
"""What the undecoded parts hold: a struct, or an object of the sender's own."""

_BY_HAND: dict[str, Schema] = {
    **{f"{name}.customer_key": _UUID for name in ("Interaction", "Step", "Signal", "Context", "Transfer", "TimerDue")},
    "Event.id": {"description": "Unique among the sender's events. The same id again is a duplicate and ignored."},
    "Event.source": {"description": "Who sends, as a URI reference, e.g. `/shop` or `urn:desk:berlin`."},
    "Event.type": {"description": "What happened: thing and past participle, e.g. `page.viewed`, `complaint.made`."},
    "Event.time": {"description": "When it happened, with its zone. When it was sent is `data.sent_at`."},
    "Data.sent_at": {"description": "The sender's clock when it sent, again at each try. Shows a clock that is ahead."},
    "Event.channel": {"enum": list(CHANNELS), "description": "The kind of contact. `other` if none fits."},
    "Data.identifiers": {"description": "Whose event it is; one is enough, all that are known are better."},
    "Data.touchpoint": {"description": "The place within the channel: a page, a queue, a till."},
    "Data.source_session_id": {
        "description": "The sender's own session, where it has such: what it gives one id is one session, whatever the "
        "gap, and never one with what it gives another. Elsewhere: `session.id`, `domain_sessionid`, `ga_session_id`."
    },
    "Data.wait_ms": _PATIENT,
    "Data.text": {"description": "What the customer said or wrote."},
    "Data.properties": {"description": "The sender's own fields. Up to 2 KB of them travel with the timeline."},
    "Survey": {
        "if": {"properties": {"metric": {"const": "nps"}}, "required": ["metric"]},
        "else": {"properties": {"score": {"minimum": 1, "maximum": 5}}},
    },
    "Entry.wait_ms": _PATIENT,
    "Entry.session_id": _UUID,
    "Session.session_id": _UUID,
    "Handoff.handoff_id": _UUID,
    "Signal.signal_id": _UUID,
    "Signal.subject": {"pattern": "^(customer|touchpoint):."},
    "Signal.reason": {"required": ["en", "zh"], "description": "The finding in a sentence, by language."},
    "IdentityRecord": {
        "oneOf": [
            {"properties": {"kind": {"enum": ["link", "seat"]}}, "required": ["identifier"]},
            {
                "properties": {"kind": {"const": "candidate"}},
                "required": ["identifier", "other_customer_key", "reason"],
            },
            {"properties": {"kind": {"enum": ["merge", "unmerge"]}}, "required": ["other_customer_key", "merge"]},
            {"properties": {"kind": {"const": "refused"}}, "required": ["reason"]},
        ]
    },
}


class Builder:
    """Builds the schema of one root struct; the structs within become `$defs`."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._seen: dict[str, type] = {}

    def root(self, name: str, struct: type[Struct]) -> Schema:
        """The whole document."""
        info = mi.type_info(struct)
        assert isinstance(info, mi.StructType)
        body = self._struct(info)
        found = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"https://segue.dev/schemas/{name}.schema.json",
            "title": struct.__name__,
            **body,
        }
        if self.definitions:
            found["$defs"] = dict(sorted(self.definitions.items()))
        return found

    def _reference(self, info: mi.StructType) -> Schema:
        name = info.cls.__name__
        if self._seen.setdefault(name, info.cls) is not info.cls:
            raise ValueError(f"two structs named {name} in one schema")
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self._struct(info)
        return {"$ref": f"#/$defs/{name}"}

    def _struct(self, info: mi.StructType) -> Schema:
        name, words = info.cls.__name__, _field_words(info.cls)
        fields = {field.encode_name: self._field(f"{name}.{field.name}", field, words) for field in info.fields}
        required = [field.encode_name for field in info.fields if field.required]
        if info.tag is not None and info.tag_field is not None:
            fields, required = {info.tag_field: {"const": info.tag}} | fields, [info.tag_field, *required]
        found: Schema = {"description": inspect.cleandoc(info.cls.__doc__)} if info.cls.__doc__ else {}
        if info.array_like:
            return found | {"type": "array", "prefixItems": list(fields.values()), "minItems": len(required)}
        found |= {"type": "object", "properties": fields} | ({"required": required} if required else {})
        if info.forbid_unknown_fields:
            found["additionalProperties"] = False
        return found | _BY_HAND.get(name, {})

    def _field(self, path: str, field: mi.Field, words: dict[str, str]) -> Schema:
        found = self._raw(path, field.type) if path in _RAW else self.of(field.type)
        if field.name in words:
            found["description"] = words[field.name]
        elif path.endswith("_ms"):
            found |= _SINCE_1970
        found |= _BY_HAND.get(path, {})
        if isinstance(field.default, str | int | float) and field.default != "":
            found["default"] = field.default
        return found

    def _raw(self, path: str, info: mi.Type) -> Schema:
        holds = _RAW[path]
        if holds is None:
            return {"type": "object"}
        within = self.of(mi.type_info(holds))
        return {"type": "array", "items": within} if isinstance(info, mi.ListType) else within

    def of(self, info: mi.Type) -> Schema:
        """The schema of one type."""
        if isinstance(info, mi.StructType):
            return self._reference(info)
        if isinstance(info, mi.UnionType):
            return self._union([self.of(each) for each in info.types])
        return _SIMPLE[type(info)](self, info)

    def _union(self, found: list[Schema]) -> Schema:
        """Optional values: `type: [string, null]` where that can be said, `anyOf` where not."""
        some = [each for each in found if each != {"type": "null"}]
        if len(some) == 1 and len(found) == 2:
            (one,) = some
            if "enum" in one:
                return one | {"enum": [*one["enum"], None]}
            if "type" in one:
                return one | {"type": [one["type"], "null"]}
        return {"anyOf": found}

    def _array(self, info: Any) -> Schema:
        return _limited({"type": "array", "items": self.of(info.item_type)}, info, length="Items")

    def _dict(self, info: Any) -> Schema:
        return {"type": "object", "additionalProperties": self.of(info.value_type)}

    def _date_time(self, _info: Any) -> Schema:
        self.definitions["DateTime"] = _DATE_TIME
        return {"$ref": "#/$defs/DateTime"}


def _limited(found: Schema, info: Any, length: str = "Length") -> Schema:
    """Add the limits of a `Meta`. \\Z is Python's word for what $ means in JSON Schema."""
    limits = {
        f"min{length}": getattr(info, "min_length", None),
        f"max{length}": getattr(info, "max_length", None),
        "minimum": getattr(info, "ge", None),
        "maximum": getattr(info, "le", None),
        "pattern": (getattr(info, "pattern", None) or "").replace(r"\Z", "$") or None,
    }
    return found | {name: limit for name, limit in limits.items() if limit is not None}


_SIMPLE: dict[type[mi.Type], Callable[[Builder, Any], Schema]] = {
    mi.StrType: lambda _, info: _limited({"type": "string"}, info),
    mi.IntType: lambda _, info: _limited({"type": "integer"}, info),
    mi.FloatType: lambda _, info: _limited({"type": "number"}, info),
    mi.BoolType: lambda *_: {"type": "boolean"},
    mi.NoneType: lambda *_: {"type": "null"},
    mi.DateTimeType: Builder._date_time,
    mi.LiteralType: lambda _, info: {"enum": list(info.values)} if len(info.values) > 1 else {"const": info.values[0]},
    mi.ListType: Builder._array,
    mi.VarTupleType: Builder._array,
    mi.DictType: Builder._dict,
}


def _field_words(cls: type) -> dict[str, str]:
    """The docstrings below a class's fields, which Python itself does not keep."""
    (tree,) = ast.parse(dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = inspect.cleandoc(str(below.value.value))
    return found


def generate(directory: Path = DIRECTORY) -> dict[str, str]:
    """Every schema file's text by its name. The first valid example of each, by name, goes into it."""
    files = {}
    for name, struct in PUBLISHED.items():
        schema = Builder().root(name, struct)
        examples = sorted((directory / "examples" / name / "valid").glob("*.json"))
        schema["examples"] = [json.loads(path.read_text()) for path in examples[:1]]
        files[f"{name}.schema.json"] = (
            _SHORT_LIST.sub(_on_one_line, json.dumps(schema, indent=2, ensure_ascii=False)) + "\n"
        )
    return files


_SHORT_LIST = re.compile(r"\[\n[^\[\]{}]*\n *\]")
"""A list of plain values, one a line; within a JSON string there are no line ends."""


def _on_one_line(found: re.Match[str]) -> str:
    line = re.sub(r"\n *", " ", found[0]).replace("[ ", "[").replace(" ]", "]")
    return line if len(line) <= 90 else found[0]


def main(arguments: list[str]) -> int:
    """`write` or `check`; see the head of this module."""
    if arguments not in (["write"], ["check"]):
        print("usage: python -m segue.schemas_tool write|check", file=sys.stderr)
        return 2
    stale = []
    for name, text in generate().items():
        path = DIRECTORY / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if arguments == ["write"]:
                path.write_text(text)
    print(f"{'written' if arguments == ['write'] else 'out of date'}: {', '.join(stale) or 'none'}")
    return int(arguments == ["check"] and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
