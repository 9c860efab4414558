"""The user's command that makes a server serve a checkpoint: run without a shell, in bounded time; it fails in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence

from loop.errors import EngineError

LOOK_S = 0.5
OUTPUT_BYTES = 4096  # of the end of the output, in which the last line is looked for


def run_command(words: Sequence[str], time_left: Callable[[], bool], shown: Callable[[str], str]) -> None:
    """Run a command until it ends. EngineError with its exit code and last line where it fails or has no time left.

    `time_left` is asked about twice a second; `shown` makes a stranger's text fit for a message. Processes that the command
    leaves running end with this worker.
    """
    with tempfile.TemporaryFile() as output:  # no pipe: a process that it leaves running would hold that open
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise EngineError(f"engine.server_command: cannot be run: {shown(str(error))}") from None
        how = ""
        while not how:
            try:
                how = f"ended with exit code {process.wait(LOOK_S)}"
            except subprocess.TimeoutExpired:
                if not time_left():
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    how = "took longer than engine.stall_timeout_s and was ended"
        if process.returncode:
            output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_BYTES))
            lines = output.read().decode(errors="replace").strip().splitlines()
            last = shown(lines[-1]) if lines else "none"
            raise EngineError(f"engine.server_command: {shown(words[0])} {how}; its last line: {last}")
