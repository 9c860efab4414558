"""Frames: lists in pieces, and bounds in bytes and values."""

from __future__ import annotations

import json

import pytest

from loop.workers import frames


def test_a_large_batch_comes_in_pieces_and_a_small_one_whole() -> None:
    values = [{"text": "x" * 1000} for _ in range(10)]
    assert list(frames.pieces(values)) == [values]
    assert [len(piece) for piece in frames.pieces(values, max_bytes=3100)] == [3, 3, 3, 1]
    assert [len(piece) for piece in frames.pieces(values, max_bytes=10)] == [1] * 10
    assert list(frames.pieces([])) == []


def test_values_are_counted_outside_of_strings_only() -> None:
    text = json.dumps({"text": ',:[{\\"' * 200_000}).encode()
    assert frames.count_values(text) == 2
    assert frames.decode_body(text)["text"].startswith(",:[{")
    with pytest.raises(frames.BadFrame, match=r"has 300\d+ values"):
        frames.decode_body(b'{"a":["' + b'\\"' * 1000 + b'",' + b"1," * 300_000 + b"1]}")
    with pytest.raises(frames.BadFrame, match="has 5000000 bytes"):
        frames.decode_body(b" " * 5_000_000)
