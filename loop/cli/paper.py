"""A few lines with a label each, in colour where the terminal has it: what rich would draw, in a tenth of its time.

For what must start in a blink; tables are in tables.py. Texts come in safe (loop.words).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import IO, Any

import click

PIPE_WIDTH = 160
LABEL_WIDTH = 12


class Paper:
    """Where lines go: how wide it is, and whether it takes colours."""

    def __init__(self, file: IO[str]) -> None:
        terminal = file.isatty()
        self.width = _width(file, terminal)
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
        self.styled = bool(os.environ.get("FORCE_COLOR") or terminal) and not plain

    def styled_as(self, text: str, style: str) -> str:
        """The text in bold, dim or a colour, where lines have styles at all. An empty style changes nothing."""
        options: dict[str, Any] = {style: True} if style in ("bold", "dim") else {"fg": style}
        return click.style(text, **options) if self.styled and style else text

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
    from rich.cells import cell_len, chop_cells

    while cell_len(text) > width:
        end = len(chop_cells(text[: 4 * width], width)[0]) or 1  # of a long text only the beginning matters
        space = text.rfind(" ", 1, end + 1)
        line, text = (text[:space], text[space:]) if space > 0 and text[:space].strip() else (text[:end], text[end:])
        yield line.rstrip(" ")
        text = text.lstrip(" ")
    if text:
        yield text
