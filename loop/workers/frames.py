"""The messages between the daemon and a worker: a four-byte big-endian length and that much JSON, all of it ASCII.

The daemon bounds what it reads twice, in bytes and in values, so that a message never costs it more than about 30 MB: a
value of two characters can take a hundred bytes of memory.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_FRAME_BYTES = 4 << 20  # one completion of 65,536 tokens over a long prompt takes 1 to 2 MB
MAX_FRAME_VALUES = 300_000  # its token ids are values; so are the losses of a fine-tune
MAX_FRAMES_PER_S = 5000  # of up to 1,000 bytes, beside results; a worker sends eleven, a full pipe holds a thousand
PIECE_BYTES = 1 << 19  # a list of completions is sent in pieces of about this size
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # the closing quote is optional: linear in hostile input, too
MARKS = (b",", b":", b"[", b"{")


class BadFrame(ValueError):
    """A frame that is too large or is no message. The text completes "it sent a message that ..."."""


class FrameRate:
    """How many frames come within a second; a large one counts as several."""

    def __init__(self) -> None:
        self.num, self.second = 0, 0

    def is_too_high(self, num_bytes: int) -> bool:
        """One more has come, of so many bytes. Whether there were more than MAX_FRAMES_PER_S in this second."""
        if (second := int(time.monotonic())) != self.second:
            self.num, self.second = 0, second
        self.num += 1 + num_bytes // 1000
        return self.num > MAX_FRAMES_PER_S


def encode_frame(message: dict[str, Any]) -> bytes:
    """One frame, as it goes over the pipe. `loop.engines.base` values may stand anywhere in the message."""
    body = json.dumps(message, separators=(",", ":"), default=_as_json).encode("ascii")
    return struct.pack(">I", len(body)) + body


def _as_json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value.model_dump(mode="json")


def decode_body(body: bytes) -> dict[str, Any]:
    """The message in a frame's bytes after the length. BadFrame if it is too large or no JSON object."""
    check_size(body)
    try:
        message = json.loads(str(body, "ascii"))
    except (ValueError, RecursionError):
        raise BadFrame("is not JSON") from None
    if not isinstance(message, dict):
        raise BadFrame("is not an object")
    return message


def check_size(body: bytes) -> None:
    """BadFrame where reading this JSON could take too much memory."""
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrame(f"has {len(body)} bytes; the limit is {MAX_FRAME_BYTES}")
    if (num_values := count_values(body)) > MAX_FRAME_VALUES:
        raise BadFrame(f"has {num_values} values; the limit is {MAX_FRAME_VALUES}")


def count_values(body: bytes) -> int:
    """An upper bound for the values in this JSON: its commas, colons and opening brackets outside of strings."""
    num_values = sum(body.count(mark) for mark in MARKS)
    if num_values > MAX_FRAME_VALUES:  # the text of a completion may be full of commas
        for string in STRING.finditer(body):
            num_values -= sum(body.count(mark, *string.span()) for mark in MARKS)
    return num_values


def receive_frame(pipe: BinaryIO) -> dict[str, Any] | None:
    """Read a trusted frame of any size; None at the end of the stream."""
    header = pipe.read(4)
    if len(header) < 4:
        return None
    message: dict[str, Any] = json.loads(pipe.read(struct.unpack(">I", header)[0]))
    return message


def pieces(values: Iterable[dict[str, Any]], max_bytes: int = PIECE_BYTES) -> Iterator[list[dict[str, Any]]]:
    """The values in lists that take about `max_bytes` at most, or hold a single value."""
    piece: list[dict[str, Any]] = []
    num_bytes = 0
    for value in values:
        size = len(json.dumps(value))
        if piece and num_bytes + size > max_bytes:
            yield piece
            piece, num_bytes = [], 0
        piece.append(value)
        num_bytes += size
    if piece:
        yield piece
