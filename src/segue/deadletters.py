"""Dead letters: what could not be used, byte for byte, with the reason in headers of our own.

The record keeps its key, value and headers; `schemas/dead-letter-headers.schema.json` describes what is
added. A record of `segue.dead-letters` can therefore be produced to its origin again as it is.
"""

from __future__ import annotations

from segue import __version__
from segue.core.event import Rejected
from segue.log.port import Output, Record
from segue.topics import DEAD_LETTERS

PREFIX = "segue.err."


def dead_letter(record: Record, why: Rejected, stage: str) -> Output:
    """Return the dead letter of `record`. `stage` is the processor that refused it."""
    added = {
        "code": why.reason,
        "field": why.field,
        "message": why.detail,
        "stage": stage,
        "topic": record.topic(),
        "partition": str(record.partition()),
        "offset": str(record.offset()),
        "version": __version__,
    }
    headers = [*(record.headers() or ()), *((PREFIX + name, text.encode()) for name, text in added.items())]
    return Output(DEAD_LETTERS, record.key(), record.value(), -1, headers)
