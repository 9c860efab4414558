"""Whether a worker that reports no progress is still at work.

Three workers look alike from outside: one that does nothing (stopped, or waiting for what never comes), one that computes
for ever without a result, and one that a busy machine rarely lets run. The kernel tells them apart: it counts for each
thread how long it ran and how long it waited for a core. Seconds in which a worker did neither count towards `limit_s`;
seconds in which it ran, towards BUSY_FACTOR times that. So a starved worker gets as much more time as it is starved, and a
busy one still ends. `Worker` asks and ends it, and `loop.workers.up` doubles the limit for the next attempt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

BUSY_FACTOR = 4.0  # a worker that computes may go this many times as long without a report as one that does nothing
MAX_WINDOW_S = 10.0  # between two looks at what it uses
NUM_LOOKS = 4  # at least, within a limit
SIGN_OF_WORK = 0.01  # of one core, where the kernel does not count the waiting: such a worker may be starved


class Used(NamedTuple):
    """What a process tree has used so far, in seconds and bytes."""

    ran_s: float  # of CPU time, all threads together
    waited_s: float | None = 0.0  # for a core, all threads together; None where the kernel does not say
    disk_bytes: int = 0  # read from a disk or written to it
    is_runnable: bool = False  # whether a thread runs or waits for a core right now


class StallWatch:
    """Counts a worker's seconds without progress and without a sign of life.

    `clock`: seconds. `used`: what the worker has used by now. `gpu_busy`: whether its GPUs compute now; asked only where
    nothing else shows work.
    """

    def __init__(
        self,
        limit_s: float,
        silence_s: float,
        clock: Callable[[], float],
        used: Callable[[], Used],
        gpu_busy: Callable[[], bool],
    ) -> None:
        self.limit_s, self.silence_s = limit_s, silence_s
        self.window_s = min(MAX_WINDOW_S, limit_s / NUM_LOOKS, silence_s / NUM_LOOKS)
        self.clock, self.used, self.gpu_busy = clock, used, gpu_busy
        self.idle_s = self.busy_s = self.silent_s = 0.0
        self._looked_at_s = clock()
        self._seen: Used | None = used()

    def heard(self) -> None:
        """A sign of life: whatever was received."""
        self.silent_s = 0.0

    def advanced(self) -> None:
        """More is done than before: all counting begins again."""
        self.idle_s = self.busy_s = self.silent_s = 0.0
        self._looked_at_s, self._seen = self.clock(), None  # what was used before counts for nothing

    def look(self) -> None:
        """Count what has passed since the last look, if that is long enough to tell."""
        now = self.clock()
        passed_s = now - self._looked_at_s
        if passed_s < self.window_s:
            return
        before, self._seen, self._looked_at_s = self._seen, self.used(), now
        if before is None:
            return
        ran_s = min(passed_s, max(0.0, self._seen.ran_s - before.ran_s))
        if self._seen.disk_bytes > before.disk_bytes:
            ran_s = wanted_s = passed_s
        elif self._seen.is_runnable and before.is_runnable:
            wanted_s = passed_s  # the kernel counts a wait only once it is over
        elif self._seen.waited_s is None or before.waited_s is None:
            wanted_s = passed_s if ran_s >= SIGN_OF_WORK * passed_s else 0.0
        else:
            wanted_s = min(passed_s, ran_s + max(0.0, self._seen.waited_s - before.waited_s))
        if wanted_s < passed_s / 2 and self.gpu_busy():
            ran_s = wanted_s = passed_s
        self.busy_s += ran_s
        self.idle_s += passed_s - wanted_s
        self.silent_s += passed_s - wanted_s

    @property
    def is_silent(self) -> bool:
        """Nothing was heard for too long from a worker that does nothing."""
        return self.silent_s >= self.silence_s

    @property
    def exhausted(self) -> str | None:
        """How long it made no progress, and what it did meanwhile, if that is too long."""
        if self.idle_s >= self.limit_s:
            return f"it made no progress for {self.limit_s:g} s (it did nothing)"
        if self.busy_s >= BUSY_FACTOR * self.limit_s:
            return f"it made no progress in {BUSY_FACTOR * self.limit_s:g} s of computing"
        return None


def used_by(pid: int) -> Used:
    """What a process and all below it have used; those of them that have ended, too."""
    ran_s, disk_bytes, is_runnable = 0.0, 0, False
    waited_s: float | None = None
    processes: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    for process in processes:
        # The process may be gone meanwhile, or not tell.
        with contextlib.suppress(psutil.Error, AttributeError, OSError, ValueError):
            times = process.cpu_times()
            ran_s += times.user + times.system + times.children_user + times.children_system
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                with contextlib.suppress(OSError, IndexError, ValueError):  # a thread that has ended
                    is_runnable |= (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
                    waited_s = (waited_s or 0.0) + int((thread / "schedstat").read_text().split()[1]) / 1e9
            counted = process.io_counters()
            disk_bytes += counted.read_bytes + counted.write_bytes
    return Used(ran_s, waited_s, disk_bytes, is_runnable)
