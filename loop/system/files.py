"""Files that a command writes, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from loop.errors import LoopError, PermissionDenied
from store.durable import written


def check_place(path: Path) -> None:
    """LoopError or PermissionDenied if no file can be made at this path."""
    if path.is_dir():
        raise LoopError(f"{path}: is a directory; name a file")
    if not path.parent.is_dir():
        raise LoopError(f"{path.parent}: no such directory; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionDenied(f"{path.parent}: permission denied; name a place that this user can write to")


@contextlib.contextmanager
def opened(file: str | Path) -> Iterator[IO[bytes]]:
    """The file to write, which appears whole or not at all; an older file stays until then. "-" is standard output; a
    device or a pipe is written into.
    """
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as out:
            yield out
        return
    check_place(path)
    with written(path, sync_name=False) as out:
        yield out
