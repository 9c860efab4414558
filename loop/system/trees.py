"""Ending a worker's whole process tree.

A worker is two processes. The *guard* is small and only waits; the engine is its child. Every process that the engine starts
stays below the guard, even in a session of its own, because the guard is a subreaper. The guard ends them all when the
engine is done, when it is told to, and when the daemon is gone.

Where the guard itself was killed, `sweep` finds the rest by their session and by a token in their environment. Two things
are not promised. A process that has neither is not found once its guard was killed. And when the daemon is killed while
the guard is stopped (SIGSTOP), the guard ends the tree only when it is continued; the engine ends by itself meanwhile,
because nobody reads its heartbeat.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

END_TIMEOUT_S = 10.0  # for the guard to end everything below it, and for the kernel to let go of it
TREE, PARENT = "LOOP_WORKER_TREE", "LOOP_WORKER_PARENT"  # in the environment: the tree that a process belongs to
TIDY_S = 5.0  # for Python's resource trackers, once all others are gone
OOM_SCORE_ADJ = 500  # of an engine: the kernel's out-of-memory killer takes it before the daemon
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    """Linux prctl(2); a no-op elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def end_guard(process: subprocess.Popen[bytes]) -> None:
    """End a guard, which ends its tree first: by SIGTERM, also where it is stopped; by SIGKILL where it takes too long."""
    if process.poll() is not None:
        return
    process.terminate()
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)


def sweep(token: str, session: int) -> list[int]:
    """Kill the processes that are left where the guard was killed. The pids that even SIGKILL does not end; usually none.

    A process belongs to the worker by the token in its environment or, since an ending process has no environment any more,
    by its session.
    """
    doomed: set[psutil.Process] = set()
    deadline = time.monotonic() + END_TIMEOUT_S
    while True:
        doomed |= {process for process in psutil.process_iter() if _belongs(process, token, session)}
        doomed = {process for process in doomed if _lives(process)}
        if not doomed or time.monotonic() > deadline:
            return sorted(process.pid for process in doomed)
        for process in doomed:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.01)


def _belongs(process: psutil.Process, token: str, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session or process.environ().get(TREE) == token
    except (psutil.Error, OSError):
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def guard(work: Callable[[], None], *, own_tmp: bool = False) -> None:
    """Run `work` in a child process, and end all that descends from it when it ends or the parent wants or is gone.

    `own_tmp`: the child's temporary files lie in a directory that goes with it, since a killed process cannot clear up.
    """
    watched = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != os.environ.get(PARENT):
        return  # the parent was gone before it could be watched
    myself = os.getpid()
    scratch = _own_tmp() if own_tmp else None
    engine = os.fork()
    if engine == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        offer_to_the_oom_killer()
        if os.getppid() == myself:
            work()
        return
    os.close(0)
    os.close(1)
    status = _wait_for(engine, watched)
    _end_descendants()
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0 if status is None else 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _tidies_up(process: psutil.Process) -> bool:
    """Whether it removes the shared memory of processes that were killed, which nobody else does, and then ends by itself."""
    return any("multiprocessing.resource_tracker" in word for word in process.cmdline())


def _own_tmp() -> str | None:
    """A new directory, which TMPDIR now names; None where none can be made. What torch compiles stays outside, for reuse."""
    try:
        scratch = tempfile.mkdtemp(prefix="ssd-loop-")
    except OSError:
        return None
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(scratch).with_name(f"torchinductor_{os.getuid()}")))
    os.environ["TMPDIR"] = scratch
    tempfile.tempdir = None  # it is looked up again
    return scratch


def offer_to_the_oom_killer() -> None:
    """Raise this process's oom_score_adj; what it starts inherits that. Without effect where it is not allowed."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        path.write_text(str(max(OOM_SCORE_ADJ, int(path.read_text()))))


def _wait_for(engine: int, watched: set[signal.Signals]) -> int | None:
    """The engine's status when it ends; None when SIGTERM comes first. Orphans are reaped meanwhile."""
    while signal.sigwait(watched) == signal.SIGCHLD:
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == engine:
                return status
            if ended == 0:
                break
    return None


def _end_descendants() -> None:
    tidy_until = time.monotonic() + TIDY_S
    while True:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if time.monotonic() > tidy_until or not _tidies_up(process):
                    process.kill()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return  # an orphan becomes a child of the guard: without children there are no descendants
        time.sleep(0.01)
