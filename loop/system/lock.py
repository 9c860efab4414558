"""A run directory has one writer: the lock, and who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from loop.errors import LockedError, LoopError, PermissionDenied
from store.checkpoints import CHECKPOINTS, make_directory
from store.db import DATABASE

LOCK = "lock"


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory as its only writer. LockedError names who has it; the lock dies with its process."""
    try:
        make_directory(run_dir)
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError:
        raise PermissionDenied(f"{run_dir}: permission denied; choose a run_dir that this user can write to") from None
    except OSError as error:
        raise LoopError(f"{error.filename or run_dir}: {error.strerror}; choose another run_dir or make room") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            named = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise LockedError(f"{run_dir}: process {named} holds this run; wait for it or stop it first") from None
        os.pwrite(descriptor, words := f"{os.getpid():<20}\n".encode(), 0)  # in place, which needs no room
        os.ftruncate(descriptor, len(words))
        for path in (run_dir, *(run_dir / name for name in (DATABASE, CHECKPOINTS, "logs"))):
            if path.exists() and not os.access(path, os.W_OK):  # else hours of sampling pass before the error comes
                remedy = "make it writable for this user, or set another run_dir"
                raise PermissionDenied(f"{path}: permission denied; {remedy}")
        yield
    finally:
        os.close(descriptor)


def holder(run_dir: Path) -> int | None:
    """The process that holds the run; None if none does.

    The lock file names a process, perhaps one of yesterday, so that process must have the very file open. Where this user
    may not read the file, /proc/locks tells. PermissionError where the directory may not even be searched.
    """
    path = run_dir / LOCK
    try:
        inode = path.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        pid = int(path.read_text(encoding="ascii"))
        os.kill(pid, 0)
    except PermissionError:
        return _flocked().get(inode)  # another user's file or process
    except (OSError, ValueError, OverflowError):
        return None
    return pid if _has_open(pid, inode) else None


def _has_open(pid: int, inode: int) -> bool:
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(descriptor).endswith("/lock") and descriptor.stat().st_ino == inode:
                    return True
        return False
    except OSError:  # this user may not see what the process has open
        return inode in _flocked()


def _flocked() -> dict[int, int]:
    """The inodes that are locked, each with its process, as far as the kernel tells."""
    locks = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if len(fields) >= 6 and fields[1] == "FLOCK":
                locks[int(fields[5].rpartition(":")[2])] = int(fields[4])
    return locks
