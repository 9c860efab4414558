"""A short text that one process writes and others read, in a file of a fixed size.

It is written in place, so that a full disk is in nobody's way, and only when it changes, so that a process that waits leaves
no trace of work on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

SIZE_BYTES = 4096
LONGEST = 600  # characters of a text, which JSON may write with six bytes each


def error_of(scratch: Path, rank: int | str) -> Slate:
    """Where a process of a group says why it failed."""
    return Slate(scratch / f"error-{rank}")


def left_by(scratch: Path, rank: int | str) -> Slate:
    """Where it says that it left its training on request."""
    return Slate(scratch / f"left-{rank}")


class Slate:
    """The slate in `file`. One process makes it with `clear` before another writes."""

    def __init__(self, file: Path) -> None:
        self.file, self._number = file, 0

    def clear(self) -> None:
        """Make it, empty."""
        self.file.write_bytes(b" " * SIZE_BYTES)

    def write(self, text: str) -> None:
        """The text from now on. It is lost where the disk takes nothing."""
        self._number += 1
        both = json.dumps([self._number, text[:LONGEST], self._number], ensure_ascii=False)
        content = both.encode(errors="replace").ljust(SIZE_BYTES)
        with contextlib.suppress(OSError), self.file.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), content, 0)

    def read(self) -> tuple[int, str]:
        """How often it was written, and the text: (0, "") at first, and where a write is under way."""
        try:
            number, text, again = json.loads(self.file.read_bytes())
        except (OSError, ValueError):
            return 0, ""
        return (int(number), str(text)) if number == again else (0, "")
