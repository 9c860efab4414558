"""Whether a run is alive and how far it is: what its process leaves beside the store, and how others read that.

Reading takes no lock, so it can never be in the way of a process that starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEARTBEAT = "heartbeat.json"
LOCK = "lock"
MIN_WAIT_S = 1.0  # between two writes while nothing changes
SIZE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last sign of life. Times are Unix seconds; `part` is what the stage is doing just now."""

    pid: int
    at: float
    started_at: float
    state: str = "running"  # or paused, or idle
    reason: str | None = None
    next_due_at: float | None = None
    round: int = 0
    stage: str = ""
    part: str = ""
    part_started_at: float = 0.0
    done: int | None = None
    total: int | None = None


class Beating:
    """Writes the heartbeat of this process: at once when something changes, then at most once a second.

    The file has a fixed size and is written in place, so that it can be on a full disk too.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / HEARTBEAT
        self.started_at = time.time()
        self._last_write = float("-inf")
        self._part: dict[str, Any] = {}
        self._state: dict[str, Any] = {}

    def begin(self, round: int, stage: str, part: str) -> None:
        """A stage, or a part of one, begins."""
        self._part = {"round": round, "stage": stage, "part": part, "part_started_at": time.time()}
        self._write()

    def progress(self, done: int, total: int) -> None:
        """The part goes on."""
        self._part |= {"done": done, "total": total}
        self.beat()

    def say(self, state: str, reason: str | None = None, next_due_at: float | None = None) -> None:
        """What the run is doing as a whole."""
        self._state = {"state": state, "reason": reason, "next_due_at": next_due_at}
        if state != "running":
            self._part = {}
        self._write()

    def beat(self) -> None:
        """Alive. Call it as often as you like."""
        if time.monotonic() - self._last_write >= MIN_WAIT_S:
            self._write()

    @property
    def now(self) -> Heartbeat:
        """What would be written now."""
        return Heartbeat(os.getpid(), time.time(), self.started_at, **self._state, **self._part)

    def _write(self) -> None:
        self._last_write = time.monotonic()
        beat = asdict(self.now)
        text = json.dumps(beat).encode()
        if len(text) >= SIZE_BYTES:
            text = json.dumps(beat | {"reason": (beat["reason"] or "")[:500], "part": beat["part"][:200]}).encode()
        with contextlib.suppress(OSError):  # a full disk fails where it matters, not here
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(descriptor, text.ljust(SIZE_BYTES - 1)[: SIZE_BYTES - 1] + b"\n", 0)
            finally:
                os.close(descriptor)


def read_heartbeat(run_dir: Path) -> Heartbeat | None:
    """The last heartbeat, whoever's; None if there is none that can be read."""
    for _ in range(3):  # one that is being written may be torn
        try:
            return Heartbeat(**json.loads((run_dir / HEARTBEAT).read_bytes()))
        except OSError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.005)
    return None


def holder(run_dir: Path) -> int | None:
    """The process that holds the run; None if none does.

    The lock file names it. A name may be of yesterday, so the process must have that very file open.
    """
    path = run_dir / LOCK
    try:
        pid = int(path.read_text(encoding="ascii"))
        inode = path.stat().st_ino
        os.kill(pid, 0)
    except PermissionError:
        pass  # another user's process: alive
    except (OSError, ValueError, OverflowError):
        return None
    opened = _opened(pid, inode)
    if opened is None:
        opened = inode in _flocked()
    return pid if opened else None


def _opened(pid: int, inode: int) -> bool | None:
    """Whether the process has the file open; None if that cannot be seen."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor.path).endswith("/lock") and os.stat(descriptor.path).st_ino == inode:
                        return True
        return False
    except OSError:
        return None


def _flocked() -> Iterator[int]:
    """The inodes that are locked, as far as the kernel tells."""
    try:
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if len(fields) >= 6 and fields[1] == "FLOCK":
                yield int(fields[5].rpartition(":")[2])
    except (OSError, ValueError):
        return
