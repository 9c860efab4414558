"""The user's own programs, started below a guard that ends every process that they leave running."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loop.system import trees
from loop.system.ourselves import ROOT

LOOK_S = 0.1
NOT_STARTED = {126: "it may not be executed", 127: "there is no such command"}  # exit codes as in a shell
# The command's parent. It ends the command and all that descends from it when the command ends, on SIGTERM, and when the
# daemon has died, however it died.
_GUARDED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from loop.system.trees import guard

def work():
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and an ignored signal stays ignored after exec
        signal.signal(signum, signal.SIG_DFL)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)

guard(work)
"""


def run_guarded(
    command: Sequence[str], is_over: Callable[[], bool], *, environment: Mapping[str, str] | None = None, **how: Any
) -> int | None:
    """Run a command below a guard. Its exit code; None if it still ran when `is_over` became true.

    No process of it is left afterwards, even if its guard was killed. `how`: its stdin, stderr and cwd.
    """
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _GUARDED, str(ROOT), *command],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | dict(environment or {}) | {trees.TREE: token, trees.PARENT: str(os.getpid())},
        **how,
    )
    try:
        while (code := process.poll()) is None and not is_over():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
        return code
    finally:
        trees.end_guard(process)
        if process.returncode is None or process.returncode < 0:
            trees.sweep(token, process.pid)
