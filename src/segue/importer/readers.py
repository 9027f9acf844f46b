"""Reading rows: CSV (RFC 4180, with line breaks in quotes) and JSONL, plain or gzipped, in UTF-8.

A row that cannot be read is a value (`Unusable`) with its line, and the next row is read; a file that
cannot be read raises. Lines are those of the uncompressed file, from 1; a row's line is its first.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import orjson
from msgspec import Struct

from segue.errors import SegueError

_GZIP = b"\x1f\x8b"


class UnreadableFile(SegueError):
    """The file cannot be read (further). The message names it, the line and the reason."""


class Row(Struct, gc=False):
    """One row: its line, its number among the rows (from 1), and its values by column, all text."""

    line: int
    number: int
    values: dict[str, str]


class Unusable(Struct, frozen=True, gc=False):
    """A row that becomes no event: where, a reason code, the field, and how to mend it. Holds no values."""

    line: int
    reason: str
    field: str
    detail: str


class Table(Struct):
    """An open file. `columns` is None where every row brings its own (JSONL)."""

    columns: list[str] | None
    rows: Iterator[Row | Unusable]


def format_of(path: Path) -> Literal["csv", "jsonl"]:
    """The format that a file's name says; CSV when it says none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "jsonl" if {".jsonl", ".ndjson"} & set(suffixes) else "csv"


@contextmanager
def open_table(path: Path, form: Literal["csv", "jsonl"] | None = None, delimiter: str = ",") -> Iterator[Table]:
    """Open a file for reading row by row. Raises UnreadableFile, also while rows are read."""
    with ExitStack() as stack:
        stream = _opened(path, stack)
        if (form or format_of(path)) == "jsonl":
            table = Table(None, _guarded(path, _jsonl(stream)))
        else:
            table = _csv_table(path, stream, delimiter)
        yield table


def _opened(path: Path, stack: ExitStack) -> Any:
    try:
        raw = stack.enter_context(path.open("rb"))
        return stack.enter_context(gzip.open(raw)) if raw.peek(2)[:2] == _GZIP else raw
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror or error}") from error


def _guarded(path: Path, rows: Iterator[Row | Unusable]) -> Iterator[Row | Unusable]:
    """Name the file and the last good line when reading breaks off: a truncated or damaged gzip."""
    line = 0
    try:
        for row in rows:
            line = row.line
            yield row
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{path}: damaged after line {line}: {error}") from error


# --- CSV


def _csv_table(path: Path, stream: Any, delimiter: str) -> Table:
    # Bytes that are no UTF-8 come through as surrogates, so that one bad row does not end the file.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    bad: set[int] = set()
    reader = csv.reader(_noting(text, bad), delimiter=delimiter, strict=True)
    try:
        columns = next(reader, None)
    except (csv.Error, OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{path}: line 1, the header: {error}") from error
    if not columns:
        raise UnreadableFile(f"{path}: no header; the first line names the columns")
    if bad:
        raise UnreadableFile(f"{path}: line 1, the header: not UTF-8; convert the file, e.g. with iconv")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise UnreadableFile(f"{path}: line 1, the header: more than one column named {', '.join(twice)}")
    return Table(columns, _guarded(path, _csv_rows(reader, columns, bad)))


def _noting(lines: Iterator[str] | io.TextIOWrapper, bad: set[int]) -> Iterator[str]:
    """Pass lines on, noting the numbers of those that are no UTF-8."""
    for number, line in enumerate(lines, 1):
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:
                bad.add(number)
        yield line


def _csv_rows(reader: Any, columns: list[str], bad: set[int]) -> Iterator[Row | Unusable]:
    number = 0
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            number += 1
            yield Unusable(first, "not_csv", "$", f"{error}; double the quotes within quotes, close what is opened")
            continue
        if fields is None:
            return
        if not fields:  # an empty line
            continue
        number += 1
        if bad and not bad.isdisjoint(range(first, reader.line_num + 1)):
            yield _not_utf8(first)
        elif len(fields) != len(columns):
            detail = f"{len(fields)} fields under {len(columns)} columns; quote fields that hold the delimiter"
            yield Unusable(first, "not_csv", "$", detail)
        else:
            yield Row(first, number, dict(zip(columns, fields, strict=True)))


def _not_utf8(line: int) -> Unusable:
    return Unusable(line, "not_utf8", "$", "not UTF-8; convert the file, e.g. with iconv")


# --- JSONL


def _jsonl(stream: Any) -> Iterator[Row | Unusable]:
    number = 0
    for at, raw in enumerate(stream, 1):
        if not raw.strip():
            continue
        number += 1
        try:
            found = orjson.loads(raw.removeprefix(b"\xef\xbb\xbf") if at == 1 else raw)
        except orjson.JSONDecodeError:
            try:
                raw.decode()
            except UnicodeDecodeError:
                yield _not_utf8(at)
            else:
                yield Unusable(at, "not_json", "$", "not JSON; write one whole object per line")
            continue
        if isinstance(found, dict):
            yield Row(at, number, _flat(found))
        else:
            yield Unusable(at, "not_json", "$", "not an object; write one object per line")


def _flat(found: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Values as text; `{"user": {"id": 7}}` gives the column `user.id`. A null is a missing value."""
    flat: dict[str, str] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            flat[prefix + key] = value
        elif value is not None:
            flat[prefix + key] = orjson.dumps(value).decode()
    return flat
