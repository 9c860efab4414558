"""This program's own modules as child processes: how they are called, and the ones in the background, started and stopped.

A module in the background holds the lock of a directory for as long as it lives (`loop.system.lock`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from loop.errors import LoopError

ROOT = Path(__file__).resolve().parents[2]
LOOK_S = 0.05
QUIET_S = 10.0  # between two reports that a process still has not stopped


def command(module: str, *arguments: str | Path) -> list[str]:
    """The command line of one of our modules. What lies in the working directory is never imported in a module's place."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, in which our packages are found from any working directory."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def start_in_background(
    words: list[str], log: Path, what: str, is_up: Callable[[int], bool], patience_s: float
) -> tuple[int, Literal["up", "done", "preparing"]]:
    """Start a command that outlives this process and appends to `log`, and wait for it: its pid, and how far it is.

    "up": `is_up(pid)` holds; "done": it ended with exit code 0; "preparing": neither, for `patience_s`. LoopError with the
    last line that it wrote and its exit code where it failed; `what` is how the message begins.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        begins = output.tell()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/",
            env=environment(),
        )  # fmt: skip
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            if code == 0:
                return process.pid, "done"
            lines = log.read_bytes()[begins:].decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else f"it ended at once with exit code {code}"
            error = LoopError(f"{what} did not start: {last}; see {log}")
            error.exit_code = code if code > 0 else 1
            raise error
        if is_up(process.pid):
            return process.pid, "up"
        time.sleep(LOOK_S)
    return process.pid, "preparing"


def terminate(pid: int) -> None:
    """SIGTERM, if the process is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def stop_holder(
    directory: Path, ask: Callable[[int], None] = terminate, say: Callable[[], None] = lambda: None
) -> int | None:
    """Ask the process that holds the directory to stop and wait until it has, however long. Its pid; None without one.

    `say` is called every QUIET_S meanwhile.
    """
    from loop.system.lock import holder

    pid = holder(directory)
    if pid is None:
        return None
    ask(pid)
    said_at = time.monotonic()
    while holder(directory) == pid:
        time.sleep(LOOK_S)
        if time.monotonic() - said_at > QUIET_S:
            said_at = time.monotonic()
            say()
    return pid
