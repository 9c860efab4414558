"""A TOML file: its tables, and in one line what is wrong at a key of it: `FILE:LINE: key: what is wrong; what would be right`."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loop.config.toml_lines import KeyPath, key_lines, line_of
from loop.errors import ConfigError, PermissionDenied
from loop.words import safe
from policies.mistakes import dotted

Placed = tuple[str, int, KeyPath, str]  # a mistake: file, line, key, and what is wrong with it
_REMEDIES = {  # by what tomllib says
    "Invalid value": 'text stands in "quotes", true and false are lower case',
    "overwrite|twice|mutate": "a key or table is given a second time; keep one of them",
    "'='|Invalid statement": "a line is key = value, [table] or # comment",
    "": "correct this line or the one before",
}


@dataclass(frozen=True, slots=True)
class TomlFile:
    """A file that was read. `json`: the tables as JSON; `place`: what messages call the file."""

    place: str
    tables: dict[str, Any] = field(repr=False)
    json: str = field(repr=False)
    lines: Mapping[KeyPath, int] = field(repr=False)

    def at(self, key: KeyPath, problem: str) -> Placed:
        """A mistake at this key, in the line of the nearest part of it that is in the file."""
        return self.place, line_of(self.lines, key), key, problem

    def refuse(self, mistakes: Iterable[tuple[KeyPath, str]]) -> None:
        """ConfigError with a line for each of these mistakes; nothing without any."""
        if placed := [self.at(key, problem) for key, problem in mistakes]:
            raise ConfigError(in_lines(placed))


def in_lines(mistakes: Iterable[Placed]) -> str:
    """A line for each mistake, in the order of the files."""
    ordered = sorted(mistakes, key=lambda placed: (*placed[:2], dotted(placed[2])))
    return "\n".join(f"{place}:{line}: {dotted(key)}: {problem}" for place, line, key, problem in ordered)


def read_toml(path: Path) -> TomlFile:
    """ConfigError in one line if the file is missing or not TOML; PermissionDenied if it cannot be read."""
    place = safe(path)
    text = _text(path, place)
    try:
        tables = tomllib.loads(text)
        return TomlFile(place, tables, json.dumps(tables, default=str), key_lines(text))
    except tomllib.TOMLDecodeError as error:
        reason, line = str(error), max(1, len(text.splitlines()))
        if at := re.search(r" \((?:at line (\d+), column \d+|at end of document)\)$", reason):
            line = int(at[1] or line)
            reason = reason[: at.start()]
        remedy = next(remedy for cause, remedy in _REMEDIES.items() if re.search(cause, reason))
        raise ConfigError(f"{place}:{line}: is not TOML: {safe(reason)}; {remedy}") from None
    except (RecursionError, ValueError):  # ValueError: a whole number of thousands of digits
        raise ConfigError(f"{place}: is nested too deeply, or holds a number out of all range; simplify it") from None


def _text(path: Path, place: str) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{place}: no such file; run `loopctl init` or give --config FILE") from None
    except IsADirectoryError:
        raise ConfigError(f"{place}: is a directory; name the file, {safe(path / 'loop.toml')}") from None
    except PermissionError:
        raise PermissionDenied(f"{place}: permission denied; make the file readable for this user") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{place}: cannot be read ({reason}); give a readable file") from None
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{place}:{line}: is not UTF-8; save the file as UTF-8") from None


def leaves(value: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is not a table or a list, and every empty one, with its key."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not entries or not value:
        yield key, value
    for name, entry in entries:
        yield from leaves(entry, (*key, name))
