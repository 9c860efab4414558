"""Foreign text in Markdown: names, prompts, reasons and settings as text alone, so that none of it can become markup."""

from __future__ import annotations

import re

from loop.words import safe


def words(text: object) -> str:
    """Foreign text inside a line: none of its characters is markup, makes a link or moves a cursor."""
    line = " ".join(safe(text).split())
    line = re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", line)
    marks = r"[<&]|^>|:(?=//)|(?<=mailto):|@(?=[a-z])|(?<=www)\."
    line = re.sub(marks, lambda match: _entities(match[0]), line, flags=re.IGNORECASE)
    return re.sub(r"^(?:[-+=]|\d+(?=[.)]))", lambda match: _entities(match[0]), line)  # would begin a list or a heading


def _entities(text: str) -> str:
    return "".join(f"&#{ord(letter)};" for letter in text)


def block(text: str, language: str = "") -> str:
    """Foreign text in lines of its own, between fences that are longer than any in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{safe(text, lines=True)}\n{fence}"
