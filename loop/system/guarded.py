"""Programs of the user's, started below a guard that ends all that they leave running."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loop.system import trees as guard

ROOT = Path(__file__).resolve().parents[2]
LOOK_S = 0.1
NOT_STARTED = {126: "it may not be executed", 127: "there is no such command"}  # exit codes as in a shell
# The command's parent. It ends the command and all that descends from it when the command ends, on SIGTERM, and when the
# daemon is gone, by whatever death.
_GUARDED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from loop.system.trees import guard

def work():
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and what is ignored stays so across exec
        signal.signal(signum, signal.SIG_DFL)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)

guard(work)
"""


def run_guarded(command: Sequence[str], is_over: Callable[[], bool], **how: Any) -> int | None:
    """Run a command below a guard (`how`: see `start_guarded`), and leave nothing of it. Its exit code; None if it still ran
    when `is_over` became true.
    """
    process, token = start_guarded(command, **how)
    try:
        while (code := process.poll()) is None and not is_over():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
        return code
    finally:
        end_guarded(process, token)


def start_guarded(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, **how: Any
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a command below a guard, and what `end_guarded` needs to end it. `how`: stdin, stderr and cwd of it."""
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _GUARDED, str(ROOT), *command],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | dict(environment or {}) | {guard.TREE: token, guard.PARENT: str(os.getpid())},
        **how,
    )
    return process, token


def end_guarded(process: subprocess.Popen[bytes], token: str) -> None:
    """Nothing of the command is left afterwards, even if its guard was killed."""
    if process.poll() is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(guard.END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(guard.END_TIMEOUT_S)
    if process.returncode < 0:
        guard.sweep(token, process.pid)
