"""Dead letters in words, for `segue dlq`: a list without what they hold, or one of them whole."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from segue.deadletters import Letter
    from segue.letterbox import Case

SHOWN_BYTES = 4096


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def listed(cases: list[Case]) -> Table:
    """One row per letter."""
    table = Table(box=None, pad_edge=False)
    for name in ("id", "when", "reason", "field", "state"):
        table.add_column(name, overflow="fold")
    for case in cases:
        letter = case.letter
        table.add_row(escape(letter.id), _when(letter.at_ms), escape(letter.reason), escape(letter.field), _state(case))
    return table


def _state(case: Case) -> str:
    if case.state == "replayed":
        back = f", came back as {escape(case.came_back_as)}" if case.came_back_as else ""
        return f"replayed ({case.attempts}){back}"
    return case.state


def summed(cases: list[Case]) -> Table:
    """How many of each reason are in which state."""
    counts = Counter[tuple[str, str]]((case.letter.reason, case.state) for case in cases)
    states = [s for s in ("open", "parked", "replayed", "discarded") if any(s == state for _, state in counts)]
    table = Table("reason", title="By reason", title_justify="left")
    for state in states:
        table.add_column(state, justify="right")
    for reason in sorted({reason for reason, _ in counts}):
        table.add_row(escape(reason), *(f"{counts[reason, state]:,}" for state in states))
    return table


def described(case: Case) -> dict[str, Any]:
    """Everything about a letter but what it holds."""
    letter = case.letter
    return {
        "id": letter.id,
        "at": _when(letter.at_ms),
        "reason": letter.reason,
        "field": letter.field,
        "detail": letter.detail,
        "stage": letter.stage,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "state": case.state,
        "attempts": case.attempts,
        "replay_of": letter.replay_of,
        "came_back_as": case.came_back_as,
        "actions": [
            {"at": _when(at), "action": a.action, "topic": a.topic, "mended": a.mended, "reason": a.reason}
            for at, a in case.actions
        ],
    }


def shown(case: Case) -> list[str]:
    """A letter whole, in lines for a terminal."""
    letter = case.letter
    lines = [
        f"id        {letter.id}",
        f"when      {_when(letter.at_ms)}",
        f"refused   {letter.reason} at {letter.field}, by {letter.stage} of Segue {letter.version}",
        f"to mend   {letter.detail}",
        f"state     {case.state}, {case.attempts} replays",
    ]
    if letter.replay_of:
        lines.append(f"replay of {letter.replay_of}")
    for at, action in case.actions:
        what = [
            action.action,
            _when(at),
            *(f"with {path} mended" for path in action.mended),
            action.topic,
            action.reason,
        ]
        lines.append(f"done      {' '.join(each for each in what if each)}")
    if case.came_back_as:
        lines.append(f"back as   {case.came_back_as}")
    lines += [f"header    {name}: {_text(value or b'')}" for name, value in letter.headers]
    lines.append(f"key       {'(none)' if letter.key is None else _text(letter.key)}")
    return [_printable(line) for line in lines] + ["", *_value(letter)]


def _value(letter: Letter) -> list[str]:
    if letter.value is None:
        return ["(no value: a tombstone)"]
    cut = letter.value[:SHOWN_BYTES]
    try:
        lines = [_printable(line) for line in cut.decode().split("\n")]
    except UnicodeDecodeError as error:
        if error.start > len(cut) - 4 and len(letter.value) > len(cut):  # the cut went through a character
            lines = [_printable(line) for line in cut[: error.start].decode().split("\n")]
        else:
            lines = [f"{at:08x}  {cut[at : at + 16].hex(' ')}" for at in range(0, len(cut), 16)]
    more = len(letter.value) - len(cut)
    return [*lines, *([f"... {more:,} bytes more: --raw writes all"] if more else [])]


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _printable(text: str) -> str:
    """What a sender wrote must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)
