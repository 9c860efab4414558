"""SHA-256 of files: several at once, in threads, while the caller's thread goes on giving signs of life.

A hasher does not read a file again that it has read whole, until somebody touches that file: device, inode, size, and the times of
the last write and of the last change of the inode tell, and no program can set the last of them. What a hasher knows may outlast its
process, in a small file. It counts only until the machine starts again: after a power cut a disk may give other bytes under the
same times.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from store.durable import fsync
from store.records import Json

HASHED = "hashed.json"  # in a run directory
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux: another one after each start of the machine
BLOCK_BYTES = 4 << 20
MOST_THREADS = 8  # more of them would make a disk seek
PULSE_S = 0.5  # the longest wait between two signs of life
CLOCK_S = 0.1  # two writes within it may leave equal times: a file system's clock ticks every few milliseconds
MOST_KNOWN = 2000  # files; the oldest are forgotten first


class _Ended(Exception):
    """Nobody waits for the hash any more."""


@dataclass(slots=True)
class Hasher:
    """Hashes files and remembers their hashes. For one thread.

    `pulse` is called about twice a second while files are read; what it raises ends the reading. `memory` is the file in which
    the hasher finds what one before it has read, and leaves what it has read itself; if it is damaged or cannot be written, files
    are read once more.
    """

    pulse: Callable[[], None] = lambda: None
    memory: Path | None = None
    known: dict[tuple[int, ...], str] = field(default_factory=dict)  # the SHA-256 by `_identity`

    def __post_init__(self) -> None:
        if self.memory is not None and not self.known:
            self.known.update(_recalled(self.memory))

    def measure(self, paths: Sequence[Path], *, sync: bool = False) -> list[Json]:
        """`size_bytes` and `sha256` of each file, in the order of `paths`. `sync`: they are fsynced meanwhile, too.

        OSError, with the file's name, if one cannot be read, or is written to while it is read.
        """
        stats = [os.stat(path) for path in paths]
        hashes = [self.known.get(_identity(stat)) for stat in stats]
        missing = [index for index, sha256 in enumerate(hashes) if sha256 is None]
        ended = Event()
        works = [partial(_read, paths[index], ended) for index in missing]
        syncing = [partial(_sync, paths, ended)] if sync else []
        read = _in_threads([*works, *syncing], ended, self.pulse)
        for index, (stat, sha256, at) in zip(missing, read, strict=False):
            stats[index], hashes[index] = stat, sha256
            if at - stat.st_ctime > CLOCK_S:  # else a write from now on might leave the same times
                self.known[_identity(stat)] = sha256
        if missing and self.memory is not None:
            _remember(self.memory, self.known)
        return [{"size_bytes": stat.st_size, "sha256": sha256} for stat, sha256 in zip(stats, hashes, strict=True)]


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read(path: Path, ended: Event) -> tuple[os.stat_result, str, float]:
    """What a file's descriptor says of it, its SHA-256, and the time at which its end was read."""
    block = memoryview(bytearray(BLOCK_BYTES))
    try:
        with open(path, "rb", buffering=0) as file:
            before, digest = os.fstat(file.fileno()), hashlib.sha256()
            while num_bytes := file.readinto(block):
                if ended.is_set():
                    raise _Ended
                digest.update(block[:num_bytes])  # lets other threads run
            after, at = os.fstat(file.fileno()), time.time()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a read that fails does not name its file
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):  # a new hard link does not matter
        raise OSError(
            errno.EBUSY, "somebody writes to this file while it is hashed; try again when it is written", str(path)
        )
    return after, digest.hexdigest(), at


def _sync(paths: Sequence[Path], ended: Event) -> None:
    for path in paths:
        if ended.is_set():
            raise _Ended
        fsync(path)


def _in_threads(works: Sequence[Callable[[], Any]], ended: Event, pulse: Callable[[], None]) -> list[Any]:
    """What all of them return. The first error, or what `pulse` raises, sets `ended`, and is raised when they have ended."""
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait  # `loopctl status` does not wait for this

    if not works:
        return []
    num_threads = min(len(works), MOST_THREADS, len(os.sched_getaffinity(0)) + 1)  # one of them waits for the disk
    with ThreadPoolExecutor(num_threads, "hashing") as threads:
        futures = [threads.submit(work) for work in works]
        try:
            while wait(futures, PULSE_S, FIRST_EXCEPTION).not_done:
                for future in futures:
                    if future.done():
                        future.result()
                pulse()
            return [future.result() for future in futures]
        finally:
            ended.set()
            threads.shutdown(cancel_futures=True)


def _boot_id() -> str | None:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return None


def _recalled(memory: Path) -> dict[tuple[int, ...], str]:
    try:
        noted = json.loads(memory.read_bytes())
        if noted["boot_id"] == _boot_id():
            return {tuple(identity): sha256 for *identity, sha256 in noted["files"]}
    except (OSError, ValueError, TypeError, LookupError):
        pass
    return {}


def _remember(memory: Path, known: dict[tuple[int, ...], str]) -> None:
    """Replace the file. It is not fsynced, as nobody believes it after a power cut."""
    if (boot_id := _boot_id()) is None:
        return
    files = [[*identity, sha256] for identity, sha256 in known.items()][-MOST_KNOWN:]
    partial_file = memory.with_name(f".{memory.name}.partial")
    with contextlib.suppress(OSError):
        partial_file.write_text(json.dumps({"boot_id": boot_id, "files": files}))
        os.replace(partial_file, memory)
