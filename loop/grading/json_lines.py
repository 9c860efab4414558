"""Reads files with one JSON object a line: problems, completions, prompts. They may be compressed.

A broken line is handed over as the error that names it, so that a caller may stop there or collect all mistakes.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any, cast

from loop.errors import ConfigError, PermissionDenied
from loop.words import safe, shown

Row = dict[str, Any]


def read_file(path: Path, holds: str, choices: str, lists: bool = False) -> Iterator[tuple[int, Row | ConfigError]]:
    """`read_rows` of a file on disk.

    `holds` names its content and `choices` what could be given instead, for messages. Raises ConfigError and PermissionDenied.
    """
    place = safe(path)
    try:
        with path.open("rb") as file:
            yield from read_rows(file, place, lists)
    except FileNotFoundError:
        raise ConfigError(f"{place}: no such file; {choices}") from None
    except IsADirectoryError:
        raise ConfigError(f"{place}: is a directory; name the file with the {holds}") from None
    except PermissionError:
        raise PermissionDenied(f"{place}: permission denied; make the file readable for this user") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{place}: cannot be read ({reason}); give a readable file") from None


def read_rows(file: BufferedReader, place: str, lists: bool = False) -> Iterator[tuple[int, Row | ConfigError]]:
    """Each line's number, from 1, and its object, or the error that says what is wrong with it. Blank lines are left out.

    `place` is what messages call the file. With `lists` the file may also be one JSON list of objects. Raises ConfigError if
    its compression is damaged.
    """
    compressed = file.peek(1)[:1] == b"\x1f"  # no JSON begins so; a pipe may give no more than this byte
    lines = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if compressed else file
    try:
        for line, value in _values(lines, lists):
            if isinstance(value, dict):
                yield line, value
                continue
            text = f"is {shown(value)}; expected a JSON object"
            if isinstance(value, UnicodeDecodeError):
                text = "is not UTF-8; save the file as UTF-8"
            elif isinstance(value, Exception):
                reason = value.msg if isinstance(value, json.JSONDecodeError) else "nested too deeply or out of range"
                text = f"is not JSON ({reason}); expected one JSON object per line"
            yield line, ConfigError(f"{place}:{line}: {text}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{place}: is not a whole gzip file ({error}); fetch or write it again") from None


def read_bytes(content: bytes, place: str) -> Iterator[tuple[int, Row | ConfigError]]:
    """`read_rows` of what was read already."""
    return read_rows(BufferedReader(BytesIO(content)), place)


def raised(row: Row | ConfigError) -> Row:
    """The row. Raises it if it is an error."""
    if isinstance(row, ConfigError):
        raise row
    return row


def sound(rows: Iterable[tuple[int, Row | ConfigError]]) -> Iterator[tuple[int, Row]]:
    """The same rows. Raises the first that is an error."""
    return ((number, raised(row)) for number, row in rows)


def _values(lines: IO[bytes], lists: bool) -> Iterator[tuple[int, Any]]:
    """Each line's number and its value, or the exception that reading it raises."""
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            if lists and text.startswith("["):
                yield from _elements(raw + lines.read(), number)
                return
            lists = False
            yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            yield number, error


def _elements(content: bytes, line: int) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list that begins on this line, each with its own; what is not JSON ends it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield line + content.count(b"\n", 0, error.start), error
        return
    decoder, separator = json.JSONDecoder(), re.compile(r"[\s,]*")
    position, counted = text.index("[") + 1, 0
    while True:
        position = separator.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]" and not text[position + 1 :].strip():
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield line, error
            return
        yield line, value
