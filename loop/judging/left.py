"""A file that a harness left, told apart by its content, and read without running anything that is in it."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from loop.errors import ConfigError, LoopError
from loop.grading.json_lines import Row, read_bytes, sound
from loop.judging.results import broken
from loop.words import safe
from policies.mistakes import dotted, first_mistake

ZSTANDARD = 93  # in a zip file; Python's zipfile knows it from 3.14 on
MOST_BYTES = 2**31  # of one member of a zip file, unpacked

Model = TypeVar("Model", bound=BaseModel)


class Left:
    """One file; what was read of it is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._head = file.read(4)

    @property
    def is_zip(self) -> bool:
        return self._head == b"PK\x03\x04"

    @property
    def is_parquet(self) -> bool:
        return self._head == b"PAR1"

    @cached_property
    def content(self) -> bytes:
        """The bytes, unpacked where they are compressed; b"" for what cannot be text."""
        if self._head[:1] not in (b"{", b"[", b"\x1f", b"\xef"):
            return b""
        content = self.path.read_bytes()
        try:
            return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        except (OSError, EOFError, zlib.error):
            return b""

    @cached_property
    def value(self) -> Any:
        """The JSON value that the whole file is; None if it is none."""
        if self.first_row and self.content.count(b"\n", 0, len(self.content) - 1):
            return None  # a row, and further ones below it
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def first_row(self) -> Row:
        """The JSON object in the first line; {} if that is none."""
        try:
            row = json.loads(self.content.partition(b"\n")[0])
        except (ValueError, RecursionError):
            return {}
        return row if isinstance(row, dict) else {}

    def rows(self) -> list[Row]:
        """The JSON object of each line. LoopError if a line is none."""
        try:
            return [row for _, row in sound(read_bytes(self.content, safe(self.path)))]
        except ConfigError as error:
            raise LoopError(f"{error}; give the file as the harness wrote it") from None


def checked(model: type[Model], value: Any, file: Path, harness: str, at: str = "") -> Model:
    """The value as a model of what the harness writes. LoopError names the first place where it is not."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        path, problem = first_mistake(error)
        place = ".".join(part for part in (at, dotted(path)) if part)
        raise broken(file, harness, f"{safe(place)}: {safe(problem)}") from None


def members(path: Path, names: tuple[str, ...], harness: str) -> list[Any]:
    """The JSON values of these members of a zip file. LoopError if one is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [json.loads(_member(path, archive.getinfo(name))) for name in names]
    except KeyError as error:
        raise broken(
            path, harness, f"{safe(error.args[0])}: the evaluation has not ended, or the log is damaged"
        ) from None
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        RecursionError,
        struct.error,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise broken(path, harness, f"cannot be unpacked ({safe(error)})") from None


def _member(path: Path, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MOST_BYTES:
        raise ValueError(f"{member.filename} has {member.file_size:,} bytes")
    if member.compress_type != ZSTANDARD:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    import pyarrow

    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)  # past the name and the extra field
        packed = file.read(member.compress_size)
    content: bytes = pyarrow.input_stream(pyarrow.BufferReader(packed), compression="zstd").read(member.file_size + 1)
    if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        raise ValueError(f"{member.filename} does not have the checksum that it should have")
    return content
