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
    r'"""(?:\\.|[^\\])*?""""{0,2}' r"|'''.*?''''{0,2}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]*")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Every table, key and list entry by its path, such as ("suites", 0, "stop", 1); lines count from 1.

    A table that only a dotted key or a longer header implies has the line of the first one that does.
    """
    return _Scanner(text).scan()


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

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self.skip_blank()
        while self.position < len(self.text):
            if self.text[self.position] == "[":
                table = self.header()
            else:
                self.pair(table)
            self.skip_blank()
        return self.lines

    def header(self) -> KeyPath:
        """[a.b] or [[a.b]]: the path of the table that it opens."""
        line, is_array = self.line_here(), self.text.startswith("[[", self.position)
        self.position += 2 if is_array else 1
        keys = self.key()
        path: KeyPath = ()
        for key in keys[:-1]:
            path = self.newest((*path, key))
            self.lines.setdefault(path, line)
        path = (*path, keys[-1])
        if is_array:
            self.lines.setdefault(path, line)
            self.num_tables[path] = self.num_tables.get(path, 0) + 1
            path = self.newest(path)
        self.lines[path] = line
        self.position += 2 if is_array else 1
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
        self.skip_blank()
        self.value(path)

    def key(self) -> list[str]:
        """A dotted key, up to the "=" or "]" after it."""
        keys = []
        while True:
            self.skip_blank()
            if quoted := _STRING.match(self.text, self.position):
                keys.append(tomllib.loads(f"key = {quoted[0]}")["key"])
                self.position = quoted.end()
            elif bare := _BARE_KEY.match(self.text, self.position):
                keys.append(bare[0])
                self.position = bare.end()
            self.skip_blank()
            if self.text[self.position] != ".":
                return keys
            self.position += 1

    def value(self, path: KeyPath) -> None:
        opening = self.text[self.position]
        if opening == "[":
            self.entries(path, "]")
        elif opening == "{":
            self.entries(path, "}")
        else:
            pattern = _STRING if opening in "\"'" else _BARE_VALUE
            match = pattern.match(self.text, self.position)
            assert match is not None, f"no value at {self.position}: the text is not TOML"
            self.position = match.end()

    def entries(self, path: KeyPath, closing: str) -> None:
        """Read the inside of an array or of an inline table."""
        self.position += 1
        index = 0
        while True:
            self.skip_blank()
            if self.text[self.position] == closing:
                self.position += 1
                return
            if self.text[self.position] == ",":
                self.position += 1
            elif closing == "}":
                self.pair(path)
            else:
                self.lines[(*path, index)] = self.line_here()
                self.value((*path, index))
                index += 1

    def skip_blank(self) -> None:
        blank = _BLANK.match(self.text, self.position)
        self.position = blank.end() if blank else self.position

    def line_here(self) -> int:
        self.line += self.text.count("\n", self.counted, self.position)
        self.counted = self.position
        return self.line
