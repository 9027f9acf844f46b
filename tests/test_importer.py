"""The importer: mappings, readers, conversion, and the run that accounts for every row."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
import pytest

from segue.core.channels import CHANNELS
from segue.core.event import Event, decode
from segue.errors import Refused, Undelivered
from segue.importer.loading import load, parse, shipped
from segue.importer.mapping import MappingError
from segue.importer.readers import UnreadableFile
from segue.importer.rows import Mapped, in_file_order
from segue.importer.run import Deliveries, DryRun, Pacer, Summary, run_import

SF311 = Path(__file__).parent / "data" / "sf311" / "sf311_service_requests.csv.gz"
INCIDENT_LOG = Path(str(files("segue").joinpath("data/incident_log/incident_event_log.csv.gz")))

SMALL = """
id = "{id}"
type = "contact.made"
text = "{note}"
[time]
column = "at"
[channel]
column = "by"
default = "other"
map = { Phone = "voice", Web = "web" }
[[identifiers]]
type = "user_id"
column = "who"
"""
HEADER = "id,at,by,who,note\n"
AT = "2024-05-01T10:00:00Z"


class Collected:
    """A sink that keeps events, and answers as a client does: at once, through `Deliveries`."""

    def __init__(self, deliveries: Deliveries, answer: Callable[[dict[str, Any]], Undelivered | None]) -> None:
        self.events: list[dict[str, Any]] = []
        self._deliveries, self._answer = deliveries, answer
        self._open: list[dict[str, Any]] = []

    def send(self, event: dict[str, Any]) -> None:
        self._open.append(event)

    def flush(self, timeout_s: float) -> None:
        failed: list[Undelivered] = []
        for event in self._open:
            error = self._answer(event)
            self._deliveries.report(event["id"], error)
            if error is None:
                self.events.append(event)
            else:
                failed.append(error)
        self._open.clear()
        if failed:
            raise failed[0]


def imported(
    path: Path,
    mapping: str = SMALL,
    answer: Callable[[dict[str, Any]], Undelivered | None] = lambda event: None,
    **more: Any,
) -> tuple[Summary, list[dict[str, Any]]]:
    deliveries = Deliveries()
    sink = Collected(deliveries, answer)
    return run_import(sink, deliveries, path, parse(mapping, "m.toml"), **more), sink.events


def file(tmp_path: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def one_event(tmp_path: Path, mapping: str, values: dict[str, str]) -> dict[str, Any]:
    """The event of a row that has these values."""
    summary, events = imported(file(tmp_path, orjson.dumps(values), "row.jsonl"), mapping)
    assert not summary.refused, summary.refused
    return events[0]


def refused_at(summary: Summary) -> dict[str, list[tuple[int, str]]]:
    """Lines and fields of what was refused, by reason."""
    return {reason: [(row.line, row.field) for row in found.examples] for reason, found in summary.refused.items()}


# --- mappings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("text =", "txt ="), "m.toml: txt: there is no such field; did you mean `text`?"),
        (('"web"', '"webb"'), "m.toml: channel.map.Web: `webb` is not one of: web, app,"),
        (('default = "other"', 'default = "fax"'), "m.toml: channel.default: `fax` is not one of"),
        (('"contact.made"', '"ContactMade"'), "m.toml: type: `ContactMade` is not an event type"),
        (('column = "at"', 'column = "at"\nzone = "Mars/Olympus"'), "m.toml: time.zone: no such time zone"),
        (('column = "at"', 'column = "at"\nformat = "%Y"'), "m.toml: time.zone: this format says no offset"),
        (('column = "at"', ""), "m.toml: time: give either `column` or `template`"),
        (('type = "user_id"', 'type = "User Id"'), "m.toml: identifiers[0].type: "),
        (('column = "who"', 'column = "who"\nlevel = "sure"'), "m.toml: identifiers[0].level: "),
        (('"{note}"', '"{note"'), "m.toml: text: unpaired brace"),
        (('"{note}"', "7"), "m.toml: text: "),
        (('id = "{id}"', 'id = "{id}'), "m.toml: not valid TOML: "),
        (('"{note}"', '{ template = "{note}", pointer = "/a" }'), "m.toml: text: `pointer` reads from a `column`"),
        (('"{note}"', '{ column = "note", pointer = "a" }'), "m.toml: text.pointer: "),
        (
            ("[time]", '[[skip]]\ncolumn = "by"\nwhy = "x"\n[time]'),
            "m.toml: skip[0]: say which rows: give one of `among`",
        ),
        (("[time]", '[[skip]]\ncolumn = "by"\nmissing = true\n[time]'), "m.toml: skip[0].why: "),
        (
            ("[time]", '[[skip]]\ncolumn = "at"\nwhy = "x"\nuntil = "by"\n[time]'),
            "m.toml: skip[0]: `until` and `longer_than_h` go together",
        ),
        (
            ("[time]", '[[skip]]\ncolumn = "by"\nwhy = "x"\namong_ = []\n[time]'),
            "among_: there is no such field; did you",
        ),
        (('text = "{note}"', '[item]\nkind = "case"\nid = "{id}"\nstatus = "done"'), "m.toml: item.status: `done` is"),
    ],
)
def test_a_wrong_mapping_is_refused_naming_the_field(change: tuple[str, str], message: str) -> None:
    with pytest.raises(MappingError) as error:
        parse(SMALL.replace(*change), "m.toml")
    assert message in str(error.value)


def test_every_problem_of_a_mapping_is_named_at_once() -> None:
    with pytest.raises(MappingError, match=r"txt: .*; m.toml: tim: .*"):
        parse(SMALL.replace("text =", "txt =").replace("[time]", "[tim]"), "m.toml")


def test_a_column_that_the_file_does_not_have_is_named_with_its_field(tmp_path: Path) -> None:
    path = file(tmp_path, "id,at,by,who,notes\n")
    with pytest.raises(MappingError, match=r"text: the file has no column `note`; did you mean `notes`\?; it has: "):
        imported(path)


def test_an_unknown_mapping_is_answered_with_the_shipped_ones() -> None:
    with pytest.raises(MappingError, match=r"did you mean `sf311`\?; shipped: incident_log, sf311"):
        load("sf31")


def test_a_mapping_of_ones_own_is_read_from_its_path(tmp_path: Path) -> None:
    path = file(tmp_path, SMALL, "my.toml")
    assert load(str(path)) == parse(SMALL, "my.toml")


# --- readers


def test_a_quoted_field_may_span_lines_and_lines_are_counted_from_the_first(tmp_path: Path) -> None:
    rows = f'1,{AT},Web,ana,"two\nlines, and a ""quote"""\n2,never,Web,ben,x\n'
    summary, events = imported(file(tmp_path, HEADER + rows))
    assert events[0]["data"]["text"] == 'two\nlines, and a "quote"'
    assert refused_at(summary) == {"bad_time": [(4, "time")]}


def test_bad_rows_are_reported_by_line_and_the_rest_is_sent(tmp_path: Path) -> None:
    rows = [
        f"1,{AT},Web,ana,a",
        "2,yesterday,Web,ana,a",  # line 3
        "3,2024-05-01T10:00:00,Web,ana,a",  # 4
        f"4,{AT},Web,,a",  # 5
        f",{AT},Web,ana,a",  # 6
        f"6,{AT},Web,ana",  # 7
        f"7,{AT},Web,ana,a,b",  # 8
        f'8,{AT},Web,ana,"a" b',  # 9
        f"9,{AT},Web,ana," + "long" * 1001,  # 10, the contract's limit
        "",
        f"10,{AT},Web,ana,a",
    ]
    summary, events = imported_dry(file(tmp_path, HEADER + "\n".join(rows)))
    assert refused_at(summary) == {
        "bad_time": [(3, "time")],
        "time_without_zone": [(4, "time")],
        "missing_identifiers": [(5, "identifiers")],
        "missing": [(6, "id")],
        "not_csv": [(7, "$"), (8, "$"), (9, "$")],
        "schema": [(10, "$.data.text")],
    }
    assert (summary.rows, summary.sent, summary.refused_rows, summary.unacknowledged) == (10, 2, 8, 0)
    assert [event["id"] for event in events] == ["1", "10"]


def imported_dry(path: Path, mapping: str = SMALL) -> tuple[Summary, list[dict[str, Any]]]:
    """Import into a dry run, which refuses what the real door refuses; and the events it let through."""
    deliveries, events = Deliveries(), []

    class Kept(DryRun):
        def send(self, event: dict[str, Any]) -> None:
            super().send(event)
            events.append(event)

    return run_import(Kept(deliveries), deliveries, path, parse(mapping, "m.toml")), events


def test_reasons_never_repeat_the_values_of_a_row(tmp_path: Path) -> None:
    rows = "ana@example.com,ana@example.com,ana@example.com,ana@example.com,ana@example.com\n"
    summary, _ = imported(file(tmp_path, HEADER + rows))
    assert summary.refused_rows == 1
    assert "ana@example.com" not in repr(summary)


def test_a_line_that_is_no_utf_8_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    rows = f"1,{AT},Web,ana,".encode() + "café\n".encode("latin-1") + f"2,{AT},Web,zoë,naïve\n".encode()
    summary, events = imported(file(tmp_path, HEADER.encode() + rows))
    assert refused_at(summary) == {"not_utf8": [(2, "$")]}
    assert events[0]["data"]["text"] == "naïve"


def test_a_gzipped_file_and_a_byte_order_mark_are_read_as_they_are_meant(tmp_path: Path) -> None:
    text = "\ufeff" + HEADER + f"1,{AT},Web,ana,a\n"
    summary, events = imported(file(tmp_path, gzip.compress(text.encode()), "rows.bin"))
    assert (summary.sent, events[0]["id"]) == (1, "1")


def test_a_gzip_that_breaks_off_ends_the_import_with_the_line(tmp_path: Path) -> None:
    rows = HEADER + "".join(f"{n},{AT},Web,user {n},{n * 7919}\n" for n in range(5000))
    with pytest.raises(UnreadableFile, match=r"rows.csv.gz: damaged after line \d+"):
        imported(file(tmp_path, gzip.compress(rows.encode())[:-4000], "rows.csv.gz"))


def test_a_file_without_a_header_a_double_column_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no header"):
        imported(file(tmp_path, ""))
    with pytest.raises(UnreadableFile, match="more than one column named who"):
        imported(file(tmp_path, "id,who,at,who\n"))
    with pytest.raises(UnreadableFile, match="No such file"):
        imported(tmp_path / "nothing.csv")


def test_json_lines_are_read_with_nested_fields_as_dotted_columns(tmp_path: Path) -> None:
    lines = [
        {"id": 1, "at": AT, "by": "Web", "user": {"name": "ana"}, "note": None},
        {"id": 2, "at": AT, "by": "Web", "user": {}},
    ]
    text = b"\n".join(orjson.dumps(line) for line in lines) + b"\n{broken\n[1]\n"
    mapping = SMALL.replace('"who"', '"user.name"')
    summary, events = imported(file(tmp_path, text, "rows.jsonl"), mapping)
    assert [(event["id"], event["data"]) for event in events] == [
        ("1", {"identifiers": [{"type": "user_id", "value": "ana", "level": "claimed"}]})
    ]
    assert refused_at(summary) == {"missing_identifiers": [(2, "identifiers")], "not_json": [(3, "$"), (4, "$")]}


# --- values


@pytest.mark.parametrize(
    ("time", "given", "becomes"),
    [
        ('format = "%d/%m/%Y %H:%M"\nzone = "UTC"', "29/2/2016 01:23", "2016-02-29T01:23:00.000Z"),
        ('format = "%d/%m/%Y %H:%M"\nzone = "America/New_York"', "29/2/2016 01:23", "2016-02-29T06:23:00.000Z"),
        ('format = "%d/%m/%Y %H:%M"\nzone = "America/New_York"', "1/7/2016 01:23", "2016-07-01T05:23:00.000Z"),
        ('format = "%d/%m/%Y %H:%M %z"', "29/2/2016 01:23 +0800", "2016-02-28T17:23:00.000Z"),
        ('format = "iso"\nzone = "Asia/Shanghai"', "2016-02-29 01:23:00", "2016-02-28T17:23:00.000Z"),
        ('format = "iso"\nzone = "Asia/Shanghai"', "2016-02-29T01:23:00+00:00", "2016-02-29T01:23:00.000Z"),
        ('zone = "Europe/Berlin"', "2024-10-27T02:30:00", "2024-10-27T00:30:00.000Z"),  # twice that night: the first
        ('format = "unix_s"', "1456708980", "2016-02-29T01:23:00.000Z"),
        ('format = "unix_ms"', "1456708980250", "2016-02-29T01:23:00.250Z"),
    ],
)
def test_times_are_read_in_their_format_and_zone(tmp_path: Path, time: str, given: str, becomes: str) -> None:
    mapping = SMALL.replace('column = "at"', f'column = "at"\n{time}')
    assert one_event(tmp_path, mapping, {"id": "1", "at": given, "by": "Web", "who": "ana"})["time"] == becomes


def test_what_a_value_map_does_not_list_becomes_its_default(tmp_path: Path) -> None:
    rows = "".join(f"{n},{AT},{by},ana,\n" for n, by in enumerate(("Phone", "Web", "Pigeon", "?", "")))
    _, events = imported(file(tmp_path, HEADER + rows))
    assert [event["channel"] for event in events] == ["voice", "web", "other", "other", "other"]


def test_what_a_value_map_without_default_does_not_list_refuses_the_row_unless_empty(tmp_path: Path) -> None:
    item = (
        '[item]\nkind = "case"\nid = "{id}"\n[item.status]\ncolumn = "note"\nmap = { New = "open" }\nempty = ["-100"]'
    )
    mapping = SMALL.replace('text = "{note}"\n', "") + item
    rows = f"1,{AT},Web,ana,New\n2,{AT},Web,ana,Done\n3,{AT},Web,ana,-100\n"
    summary, events = imported(file(tmp_path, HEADER + rows), mapping)
    assert refused_at(summary) == {"unmapped_value": [(3, "item.status")]}
    assert [event["data"]["item"] for event in events] == [
        {"id": "1", "kind": "case", "status": "open"},
        {"id": "3", "kind": "case"},
    ]


WIDE = """
source = "desk"
type = { column = "kind", map = { c = "case.updated" } }
channel = "voice"
touchpoint = "queue {queue}/{line}"
device = "{device}"
source_session_id = "{visit}"
wait_ms = { column = "wait", unit = "s" }
time = { column = "at", zone = "UTC" }
identifiers = [
    { type = "user_id", column = "who", empty = ["anon"] },
    { type = "case_id", template = "C-{case}", level = "inferred" },
]
[actor]
kind = { column = "by", map = { cust = "customer" }, default = "agent" }
id = "{agent}"
group = "{group}"
[item]
kind = "case"
id = "C-{case}"
title = "{title}"
opened_at = { column = "opened", format = "%d.%m.%Y" }
due_at = "{due}"
sla_missed = { column = "made_sla", map = { true = false, false = true } }
reopen_count = "{reopened}"
[survey]
metric = "csat"
score = "{score}"
[properties]
vip = { column = "vip", type = "bool" }
spent = { column = "spent", type = "float" }
visits = { column = "visits", type = "int" }
region = "{region}"
"""


def test_every_field_of_an_event_can_be_mapped(tmp_path: Path) -> None:
    values = {
        "kind": "c", "queue": "q1", "line": "2", "device": "d1", "visit": "v1", "wait": "1.5",
        "at": "2024-05-01 10:00:00",
        "who": "ana", "case": "7", "by": "x", "agent": "a1", "group": "g1", "title": "Broken", "opened": "30.04.2024",
        "due": "2024-05-02T00:00:00+02:00", "made_sla": "false", "reopened": "2", "score": "4", "vip": "Yes",
        "spent": "12.5", "visits": "3", "region": "north",
    }  # fmt: skip
    event = one_event(tmp_path, WIDE, values)
    assert isinstance(decode(orjson.dumps(event)), Event)
    assert {key: event[key] for key in ("source", "type", "channel", "time")} == {
        "source": "desk", "type": "case.updated", "channel": "voice", "time": "2024-05-01T10:00:00.000Z",
    }  # fmt: skip
    assert event["data"] == {
        "identifiers": [
            {"type": "user_id", "value": "ana", "level": "claimed"},
            {"type": "case_id", "value": "C-7", "level": "inferred"},
        ],
        "touchpoint": "queue q1/2",
        "device": "d1",
        "source_session_id": "v1",
        "wait_ms": 1500,
        "actor": {"kind": "agent", "id": "a1", "group": "g1"},
        "item": {
            "id": "C-7", "kind": "case", "title": "Broken", "opened_at": "2024-04-30T00:00:00.000Z",
            "due_at": "2024-05-01T22:00:00.000Z", "sla_missed": True, "reopen_count": 2,
        },
        "survey": {"metric": "csat", "score": 4.0},
        "properties": {"vip": True, "spent": 12.5, "visits": 3, "region": "north"},
    }  # fmt: skip


def test_what_is_empty_in_a_row_is_left_out_of_its_event(tmp_path: Path) -> None:
    values = {"kind": "c", "queue": "?", "line": "2", "at": AT, "who": "anon", "case": "7", "by": "cust", "group": "g"}
    event = one_event(tmp_path, WIDE, values)
    assert event["data"] == {
        "identifiers": [{"type": "case_id", "value": "C-7", "level": "inferred"}],
        "actor": {"kind": "customer"},  # nobody served, so no group did
        "item": {"id": "C-7", "kind": "case"},
    }


@pytest.mark.parametrize(
    ("column", "value", "reason", "field"),
    [
        ("reopened", "two", "bad_number", "item.reopen_count"),
        ("score", "nan", "bad_number", "survey.score"),
        ("wait", "long", "bad_number", "wait_ms"),
        ("vip", "maybe", "bad_flag", "properties.vip"),
        ("opened", "2024-04-30", "bad_time", "item.opened_at"),
        ("kind", "d", "unmapped_value", "type"),
    ],
)
def test_a_value_that_does_not_fit_its_field_refuses_the_row(
    tmp_path: Path, column: str, value: str, reason: str, field: str
) -> None:
    row = {"kind": "c", "at": AT, "who": "ana", "by": "cust", "case": "7", column: value}
    summary, _ = imported(file(tmp_path, orjson.dumps(row), "row.jsonl"), WIDE)
    assert refused_at(summary) == {reason: [(1, field)]}


# --- rows that are left out, and columns of JSON

SKIPPING = """
[[skip]]
why = "no interaction"
column = "by"
among = ["Robot", "Probe"]
[[skip]]
why = "nobody"
template = "{who}"
missing = true
[[skip]]
why = "too late"
column = "at"
until = "note"
longer_than_h = 1.5
"""


def test_rows_are_left_out_for_the_first_reason_that_applies_and_counted_by_it(tmp_path: Path) -> None:
    rows = (
        "1,2024-05-01T10:00:00Z,Robot,,\n"
        "2,2024-05-01T10:00:00Z,Web,,\n"
        "3,2024-05-01T10:00:00Z,Web,ana,2024-05-01T11:30:00Z\n"
        "4,2024-05-01T10:00:00Z,Web,ana,2024-05-01T11:30:01Z\n"
        "5,2024-05-01T10:00:00Z,Web,ana,\n"
        "6,2024-05-01T10:00:00Z,Web,ana,soon\n"
    )
    summary, events = imported(file(tmp_path, HEADER + rows), 'order_by = "time"\n' + SMALL + SKIPPING)
    assert [event["id"] for event in events] == ["3", "5"]
    assert summary.skipped == {"no interaction": 1, "nobody": 1, "too late": 1}
    assert refused_at(summary) == {"bad_time": [(7, "skip[2]")]}
    assert (summary.rows, summary.sent, summary.unacknowledged) == (6, 2, 0)


def test_a_column_that_a_skip_reads_must_be_in_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER)
    for change in (('column = "by"', 'column = "bye"'), ('until = "note"', 'until = "noted"')):
        with pytest.raises(MappingError, match=r"skip\[\d\]: the file has no column `\w+`; did you mean"):
            imported(path, SMALL + SKIPPING.replace(*change))


@pytest.mark.parametrize(
    ("pointer", "given", "becomes"),
    [
        ("/0/id", '[{"id": "v1"}]', "v1"),
        ("/a~1b/m~0n", '{"a/b": {"m~n": 7}}', "7"),
        ("/1", '["x", true]', "true"),
        ("/0/id", '[{"id": null}]', None),
        ("/0/id", "[]", None),
        ("/0/id", '{"id": 1}', None),
        ("/-1", "[1]", None),
        ("/0/id", "", None),
    ],
)
def test_a_pointer_takes_a_part_of_a_column_of_json(
    tmp_path: Path, pointer: str, given: str, becomes: str | None
) -> None:
    mapping = SMALL.replace('"{note}"', f'{{ column = "note", pointer = "{pointer}" }}')
    event = one_event(tmp_path, mapping, {"id": "1", "at": AT, "who": "ana", "note": given})
    assert event["data"].get("text") == becomes


def test_a_pointer_into_what_is_no_json_refuses_the_row(tmp_path: Path) -> None:
    mapping = SMALL.replace('"{note}"', '{ column = "note", pointer = "/0" }')
    summary, _ = imported(file(tmp_path, f"{HEADER}1,{AT},Web,ana,[1\n"), mapping)
    assert refused_at(summary) == {"not_json": [(2, "text")]}


# --- the run


def test_rows_go_out_in_the_files_order_unless_the_mapping_orders_by_time(tmp_path: Path) -> None:
    times = ("10:00", "09:00", "10:00", "08:30")
    rows = "".join(f"{n},2024-05-01T{at}:00Z,Web,ana,\n" for n, at in enumerate(times))
    path = file(tmp_path, HEADER + rows + "4,bad,Web,ana,\n")
    _, events = imported(path)
    assert [event["id"] for event in events] == ["0", "1", "2", "3"]
    summary, events = imported(path, 'order_by = "time"\n' + SMALL)
    assert [event["id"] for event in events] == ["3", "1", "0", "2"]
    assert refused_at(summary) == {"bad_time": [(6, "time")]}


def test_ids_derived_from_rows_are_the_same_each_time_and_differ_between_rows_and_files(tmp_path: Path) -> None:
    mapping = SMALL.replace('id = "{id}"\n', "")
    row = f"1,{AT},Web,ana,\n"
    path = file(tmp_path, HEADER + row + row)

    def ids(path: Path) -> list[str]:
        return [event["id"] for event in imported(path, mapping)[1]]

    first = ids(path)
    assert ids(path) == first
    assert ids(file(tmp_path, gzip.compress(path.read_bytes()), "rows.csv.gz")) == first
    assert len({*first, *ids(file(tmp_path, path.read_bytes(), "other.csv"))}) == 4
    assert not {*first} & {*ids(file(tmp_path, path.read_bytes().replace(b"ana", b"ben")))}  # tomorrow's rows.csv


def test_what_the_destination_refuses_is_counted_by_line(tmp_path: Path) -> None:
    rows = "".join(f"{n},{AT},Web,ana,\n" for n in range(5))
    wrong = {"1", "3"}
    summary, _ = imported(
        file(tmp_path, HEADER + rows),
        answer=lambda event: Refused("schema", "$.data.text", "shorter") if event["id"] in wrong else None,
    )
    assert refused_at(summary) == {"schema": [(3, "$.data.text"), (5, "$.data.text")]}
    assert (summary.sent, summary.stopped) == (3, None)


def test_a_destination_that_acknowledges_nothing_stops_the_import_and_is_told(tmp_path: Path) -> None:
    rows = "".join(f"{n},{AT},Web,ana,\n" for n in range(5))
    summary, _ = imported(file(tmp_path, HEADER + rows), answer=lambda event: Undelivered("away"))
    assert summary.stopped == "line 2: away"
    assert (summary.sent, summary.refused_rows, summary.unacknowledged) == (0, 0, 5)


def test_only_the_first_rows_are_sent_when_limited(tmp_path: Path) -> None:
    rows = "".join(f"{n},{AT},Web,ana,\n" for n in range(5))
    summary, events = imported(file(tmp_path, HEADER + rows), limit=2)
    assert (summary.rows, [event["id"] for event in events]) == (2, ["0", "1"])


def test_the_pace_is_kept_from_the_start_so_that_delays_do_not_add_up() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds + 0.0005  # a sleep lasts longer than asked for

    pacer = Pacer(1000, lambda: now, sleep)
    for _ in range(10_001):
        pacer.wait()
    assert now == pytest.approx(10.0, abs=0.003)


# --- the command


@pytest.mark.parametrize(
    ("rows", "mapping", "code", "says"),
    [
        (f"1,{AT},Web,ana,a\n", SMALL, 0, "would be sent  1"),
        (f"1,{AT},Web,ana,a\n2,bad,Web,ana,a\n", SMALL, 1, "bad_time"),
        (f"1,{AT},Web,ana,a\n", SMALL.replace("text =", "txt ="), 2, "my.toml: txt: there is no such field"),
        (f"1,{AT},Web,ana,a\n", SMALL.replace("{note}", "{nothing}"), 2, "text: the file has no column `nothing`"),
    ],
)
def test_the_command_says_what_became_of_the_rows_and_its_exit_code_whether_all_is_well(
    tmp_path: Path, rows: str, mapping: str, code: int, says: str
) -> None:
    path, rules = file(tmp_path, HEADER + rows), file(tmp_path, mapping, "my.toml")
    done = subprocess.run(
        [sys.executable, "-m", "segue", "import", path, "--mapping", rules, "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done


# --- the shipped mappings on their real files


@pytest.mark.parametrize(("name", "path"), [("incident_log", INCIDENT_LOG), ("sf311", SF311)])
def test_a_shipped_mapping_makes_an_event_that_decodes_of_every_real_row(name: str, path: Path) -> None:
    assert name in shipped()
    ids, channels = set(), set()
    for row in in_file_order(path, load(name)):
        assert isinstance(row, Mapped), row
        event = decode(orjson.dumps(row.event))
        assert isinstance(event, Event), event
        ids.add(event.id)
        channels.add(event.channel)
    assert channels <= set(CHANNELS)
    # As many ids as rows. In the incident log, number and sys_mod_count alone would give four fewer.
    assert len(ids) == {"incident_log": 68_947, "sf311": 10_000}[name]


def test_every_source_of_the_service_requests_is_mapped_and_two_become_other() -> None:
    rows = [row.event for row in in_file_order(SF311, load("sf311")) if isinstance(row, Mapped)]
    assert Counter((row["channel"], row["data"]["touchpoint"]) for row in rows) == {
        ("voice", "Phone"): 4865, ("web", "Web"): 4148, ("app", "Mobile/Open311"): 839, ("social", "Twitter"): 90,
        ("other", "Integrated Agency"): 52, ("other", "Other Department"): 4, ("email", "Email"): 2,
    }  # fmt: skip


def test_a_state_of_the_incident_log_that_means_nothing_leaves_the_status_out(tmp_path: Path) -> None:
    with gzip.open(INCIDENT_LOG, "rt") as log:
        header, row = next(log), next(log)
    path = file(tmp_path, header + row.replace(",New,", ",-100,"))
    (found,) = in_file_order(path, load("incident_log"))
    assert isinstance(found, Mapped)
    assert found.event["type"] == "case.updated"
    assert "status" not in found.event["data"]["item"]
