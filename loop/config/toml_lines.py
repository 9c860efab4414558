"""On which line of a TOML text each key stands. tomllib reads values but keeps no places.

It takes a text that tomllib has already accepted and therefore checks nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?""""{0,2}' r"|'''.*?''''{0,2}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'", re.DOTALL
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]*")
_BRACKETS = re.compile(r"\[\[?|\]\]?")
_DOT = re.compile(r"\.")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Every table, key and list entry by its path, such as ("suites", 0, "stop", 1); lines count from 1.

    A table that only a dotted key or a longer header implies has the line of the first one that does.
    """
    scanner = _Scanner(text)
    table: KeyPath = ()
    scanner.take(_BLANK)
    while scanner.position < len(text):
        if scanner.next == "[":
            table = scanner.header()
        else:
            scanner.pair(table)
        scanner.take(_BLANK)
    return scanner.lines


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of the path, or of the nearest part of it that is in the file; 1 if none is."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.lines: dict[KeyPath, int] = {}
        self.num_tables: dict[KeyPath, int] = {}  # how many each array of tables has so far
        self.counted, self.line = 0, 1

    @property
    def next(self) -> str:
        return self.text[self.position]

    def take(self, pattern: re.Pattern[str]) -> str:
        """What fits the pattern here, which is then behind; "" where nothing does."""
        match = pattern.match(self.text, self.position)
        self.position = match.end() if match else self.position
        return match[0] if match else ""

    def header(self) -> KeyPath:
        """[a.b] or [[a.b]]: the path of the table that it opens."""
        line, brackets = self.line_here(), self.take(_BRACKETS)
        *above, name = self.key()
        path: KeyPath = ()
        for key in above:
            path = self.newest((*path, key))
            self.lines.setdefault(path, line)
        path = (*path, name)
        if brackets == "[[":
            self.lines.setdefault(path, line)
            self.num_tables[path] = self.num_tables.get(path, 0) + 1
            path = self.newest(path)
        self.lines[path] = line
        self.take(_BRACKETS)
        return path

    def newest(self, path: KeyPath) -> KeyPath:
        """Into the last table of an array of tables; any other path as it is."""
        return (*path, self.num_tables[path] - 1) if path in self.num_tables else path

    def pair(self, table: KeyPath) -> None:
        line, path = self.line_here(), table
        for key in self.key():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.position += 1  # the equals sign
        self.take(_BLANK)
        self.value(path)

    def key(self) -> list[str]:
        """A dotted key, up to the "=" or "]" after it."""
        keys = []
        while True:
            self.take(_BLANK)
            quoted = self.take(_STRING)
            keys.append(tomllib.loads(f"key = {quoted}")["key"] if quoted else self.take(_BARE_KEY))
            self.take(_BLANK)
            if not self.take(_DOT):
                return keys

    def value(self, path: KeyPath) -> None:
        if self.next in "[{":
            self.entries(path, "]" if self.next == "[" else "}")
        else:
            value = self.take(_STRING) or self.take(_BARE_VALUE)
            assert value, f"no value at {self.position}: the text is not TOML"

    def entries(self, path: KeyPath, closing: str) -> None:
        """Read the inside of an array or of an inline table."""
        self.position += 1
        index = 0
        self.take(_BLANK)
        while self.next != closing:
            if self.next == ",":
                self.position += 1
            elif closing == "}":
                self.pair(path)
            else:
                self.lines[(*path, index)] = self.line_here()
                self.value((*path, index))
                index += 1
            self.take(_BLANK)
        self.position += 1

    def line_here(self) -> int:
        self.line += self.text.count("\n", self.counted, self.position)
        self.counted = self.position
        return self.line
