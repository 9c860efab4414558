"""What survives a power cut: files that are whole or not there, and names of files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from store.failpoints import reach


def fsync(path: Path) -> None:
    """Make a file's content, or a directory's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written(path: Path, sync_name: bool = True) -> Iterator[IO[bytes]]:
    """A file to write to. When the block ends it is on disk as `path`, whole; if the block raises, `path` is as before.

    Without `sync_name` a power cut may take the file back to what it was, which is right where a directory may be written to but
    not read.
    """
    partial = path.with_name(f".{path.name[:50]}.{os.urandom(4).hex()}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        reach("file.written")
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    reach("file.named")
    if sync_name:
        fsync(path.parent)
