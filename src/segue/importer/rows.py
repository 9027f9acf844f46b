"""The rows of a file as events: read, mapped, and put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from segue.importer.convert import Converter, Skipped
from segue.importer.loading import check_columns
from segue.importer.mapping import Mapping
from segue.importer.readers import Unusable, open_table


class Mapped(Struct, gc=False):
    """A row that became an event."""

    line: int
    event: dict[str, Any]


Read = Mapped | Skipped | Unusable


def in_file_order(path: Path, mapping: Mapping, limit: int | None = None) -> Iterator[Read]:
    """The first `limit` rows of a file, one after the other. Raises UnreadableFile, MappingError."""
    converter = Converter(mapping, path.name)
    with open_table(path, mapping.format, mapping.delimiter) as table:
        if table.columns is not None:
            check_columns(mapping, table.columns)
        for row in islice(table.rows, limit):
            found = row if isinstance(row, Unusable) else converter.convert(row)
            yield Mapped(row.line, found) if isinstance(found, dict) else found


def in_time_order(rows: Iterator[Read], reading: Callable[[int], None]) -> tuple[int, Iterator[Read]]:
    """The same rows by event time, those of one time as they came, behind those without an event; and how many.

    Events wait as JSON, about 1 KB each; as Python objects they take several times that. (orjson's bytes
    keep its whole work buffer: 4 KB each.) `reading` is told after every row how many have been read.
    """
    without: list[Read] = []
    waiting: list[tuple[str, int, bytes]] = []
    for count, row in enumerate(rows, 1):
        if not isinstance(row, Mapped):
            without.append(row)
        else:
            waiting.append((row.event["time"], row.line, msgspec.json.encode(row.event)))
        reading(count)
    waiting.sort(key=lambda each: each[0])

    def ordered() -> Iterator[Read]:
        yield from without
        for _, line, event in waiting:
            yield Mapped(line, msgspec.json.decode(event))

    return len(without) + len(waiting), ordered()
