"""Lines of a width for text in which Chinese and English stand side by side.

Chinese has no spaces and breaks between any two characters, except that closing punctuation never begins
a line. rich breaks at spaces alone, and so moves or cuts a whole Chinese sentence as if it were one word.
"""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.text import Text

_PIECES = re.compile(r"[\u2e80-\uffef][，。！？、；：）》」”’…]*|[^\s\u2e80-\uffef]+|\s+")


def wrapped(text: Text, width: int) -> Text:
    """The same text with line breaks, so that no line is wider than `width` cells."""
    breaks, at = [], 0
    for piece in _PIECES.finditer(text.plain):
        size = cell_len(piece[0])
        if at and at + size > width and not piece[0].isspace():
            breaks.append(piece.start())
            at = 0
        at += size
    lines = text.divide(breaks)
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)
