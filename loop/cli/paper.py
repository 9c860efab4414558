"""A few lines with a label each, in colour where the terminal has it: what rich would draw, in a tenth of its time.

For what must start in a blink; tables are in tables.py. Texts come in safe (loop.words).
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from typing import IO

PIPE_WIDTH = 160
LABEL_WIDTH = 12
CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


class Paper:
    """Where lines go: how wide it is, and whether it takes colours."""

    def __init__(self, file: IO[str]) -> None:
        terminal = file.isatty()
        self.width = _width(file, terminal)
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
        self.styled = bool(os.environ.get("FORCE_COLOR") or terminal) and not plain

    def styled_as(self, text: str, *styles: str) -> str:
        """The text in these styles, where there are any."""
        codes = ";".join(CODES[style] for style in styles if style)
        return f"\x1b[{codes}m{text}\x1b[0m" if self.styled and codes else text

    def labelled(self, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
        """A line per label and text, and the lines below it that a long text takes; nothing where the text is empty."""
        for label, text in rows:
            start = self.styled_as(f"  {label:<{LABEL_WIDTH - 2}}", "dim")
            for line in folded(text, max(20, self.width - LABEL_WIDTH)) if text else ():
                yield start + line
                start = " " * LABEL_WIDTH


def _width(file: IO[str], terminal: bool) -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(file.fileno()).columns or 80 if terminal else PIPE_WIDTH
    except (OSError, ValueError):
        return 80


def folded(text: str, width: int) -> Iterator[str]:
    """The text in lines of at most `width` cells, broken at spaces, or within a word that is longer than a line."""
    while cells(text) > width:
        end = _fitting(text, width)
        space = text.rfind(" ", 1, end + 1)
        line, text = (text[:space], text[space:]) if space > 0 and text[:space].strip() else (text[:end], text[end:])
        yield line.rstrip(" ")
        text = text.lstrip(" ")
    if text:
        yield text


def _fitting(text: str, width: int) -> int:
    """How many characters at the text's beginning fit; at least one."""
    used = 0
    for index, character in enumerate(text):
        used += cells(character)
        if used > width:
            return max(1, index)
    return len(text)


def cells(text: str) -> int:
    """The columns that a terminal gives it."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
