"""Draws lines with a label each, in colour where the terminal has it, as rich would, but in a tenth of its time.

Commands that must start in a blink use it; tables.py draws tables. Texts come in safe (loop.words).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import IO, Any
from unicodedata import combining, east_asian_width

import click

PIPE_WIDTH = 160
LABEL_WIDTH = 12


class Paper:
    """Knows how wide the place is where lines go, and whether it takes colours."""

    def __init__(self, file: IO[str]) -> None:
        terminal = file.isatty()
        self.width = _width(file, terminal)
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
        self.styled = bool(os.environ.get("FORCE_COLOR") or terminal) and not plain

    def styled_as(self, text: str, style: str) -> str:
        """Return the text in bold, dim or a colour, where lines have styles at all. An empty style changes nothing."""
        options: dict[str, Any] = {style: True} if style in ("bold", "dim") else {"fg": style}
        return click.style(text, **options) if self.styled and style else text

    def labelled(self, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Yield a line per label and text, and the lines below it that a long text takes; nothing where the text is empty."""
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
    """Yield the text in lines of at most `width` cells, broken at spaces, or within a word that is longer than a line."""
    while text:
        used = list(accumulate(map(cells, text[: 4 * width])))  # a line has no more characters, but for combining ones
        end = bisect_right(used, width) or 1
        if end == len(text):
            yield text
            return
        space = text.rfind(" ", 1, end + 1)
        line, text = (text[:space], text[space:]) if space > 0 and text[:space].strip() else (text[:end], text[end:])
        yield line.rstrip(" ")
        text = text.lstrip(" ")


def cells(text: str) -> int:
    """Count the columns that a terminal gives to a text. rich could, but its import takes longer than printing a status."""
    wide = {"W": 2, "F": 2}
    return sum(0 if combining(letter) else wide.get(east_asian_width(letter), 1) for letter in text)
