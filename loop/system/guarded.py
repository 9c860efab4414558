"""Programs of the user's, started below a guard that ends all that they leave running."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from loop.system import trees
from loop.system.ourselves import ROOT

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


def start_guarded(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, **how: Any
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a command below a guard, and what `end_guarded` needs to end it. `how`: stdin, stderr and cwd of it."""
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _GUARDED, str(ROOT), *command],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | dict(environment or {}) | {trees.TREE: token, trees.PARENT: str(os.getpid())},
        **how,
    )
    return process, token


def end_guarded(process: subprocess.Popen[bytes], token: str) -> None:
    """Nothing of the command is left afterwards, even if its guard was killed."""
    trees.end_guard(process)
    if process.returncode is None or process.returncode < 0:
        trees.sweep(token, process.pid)
