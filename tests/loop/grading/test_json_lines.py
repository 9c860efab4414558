"""One reader for problems, completions and prompts: what is a row, what is a mistake, and what files it takes."""

from __future__ import annotations

import gzip
import os
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import pytest

from loop.errors import ConfigError
from loop.grading.json_lines import read_bytes, read_file, read_rows, sound


def rows(content: bytes, lists: bool = False) -> list[tuple[int, Any]]:
    read = read_rows(BufferedReader(BytesIO(content)), "x", lists)
    return [(line, row if isinstance(row, dict) else str(row)) for line, row in read]


def test_lines_are_counted_from_one_and_blank_ones_are_left_out() -> None:
    content = b'\xef\xbb\xbf{"a": 1}\n\n \t\r\n{"b": 2}'
    assert rows(content) == rows(gzip.compress(content, mtime=0)) == [(1, {"a": 1}), (4, {"b": 2})]
    assert rows(b"") == rows(b"\n") == rows(gzip.compress(b"", mtime=0)) == []


def test_the_elements_of_a_list_have_their_own_lines() -> None:
    content = b' \n[{"a": 1}, {"b":\n 2},\n{"c": 3}\n]\n'
    assert rows(content, lists=True) == [(2, {"a": 1}), (2, {"b": 2}), (4, {"c": 3})]
    assert rows(b"[]", lists=True) == [] and rows(b"[]") == [(1, "x:1: is []; expected a JSON object")]
    assert rows(b'{"a": 1}\n[]', lists=True)[1] == (2, "x:2: is []; expected a JSON object")


def test_each_mistake_is_one_line_and_the_rest_is_read() -> None:
    content = b'{\n[1]\n\xff\n{"a": 1}\n7\n' + b"[" * 100_000
    assert rows(content) == [
        (1, "x:1: is not JSON (Expecting property name enclosed in double quotes); expected one JSON object per line"),
        (2, "x:2: is [1]; expected a JSON object"),
        (3, "x:3: is not UTF-8; save the file as UTF-8"),
        (4, {"a": 1}),
        (5, "x:5: is 7; expected a JSON object"),
        (6, "x:6: is not JSON (nested too deeply or out of range); expected one JSON object per line"),
    ]
    assert rows(b'[{"a": 1},\n{]', lists=True)[1][1].startswith("x:2: is not JSON (")
    assert rows(b'[{"a": 1},\n\n"\xff"]', lists=True) == [(3, "x:3: is not UTF-8; save the file as UTF-8")]


def test_the_first_mistake_can_be_raised() -> None:
    some = sound(read_bytes(b'{"a": 1}\n[2]\n{', "x"))
    assert next(some) == (1, {"a": 1})
    with pytest.raises(ConfigError, match=r"x:2: is \[2\]"):
        next(some)


@pytest.mark.parametrize("content", [b'{"a": 1}\n', gzip.compress(b'{"a": 1}\n', mtime=0)])
def test_a_pipe_is_a_file_too(content: bytes) -> None:
    readable, writable = os.pipe()
    os.write(writable, content)
    os.close(writable)
    try:
        assert list(read_file(Path(f"/dev/fd/{readable}"), "rows", "")) == [(1, {"a": 1})]
    finally:
        os.close(readable)


def test_a_compressed_file_that_is_cut_short() -> None:
    with pytest.raises(ConfigError, match="x: is not a whole gzip file .*; fetch or write it again"):
        rows(gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-9])
