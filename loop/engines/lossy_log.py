"""The log of a worker's processes on a disk that may be full: no training ends because a line of it cannot be written."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO


class LossyLog:
    """A stream that drops what its file does not take."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def make_log_lossy() -> None:
    """For what this process prints from now on."""
    sys.stdout, sys.stderr = LossyLog(sys.stdout), LossyLog(sys.stderr)
