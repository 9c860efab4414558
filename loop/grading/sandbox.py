"""Runs programs that a model wrote. Bubblewrap shuts them in: no network, no host file but a read-only Python, nothing left.

The walls around all programs are in bubblewrap.py, those around each one in inside/cell.py (namespaces, user, /tmp) and
inside/seccomp.py (system calls). Limits are here, and warm.py watches over memory and time. working_sandbox.py finds out which of
the ways works on this machine.

Level "none" is a plain subprocess with resource limits, for machines that one can lose; it is never chosen automatically.
Starting bubblewrap and Python takes longer than most programs, so a sandbox is kept warm: `cell.py` runs inside and forks a
process with namespaces of its own for each solution, and another for its tests (`judge.py`).
"""

from __future__ import annotations

import importlib.resources
import itertools
import marshal
import math
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from loop.grading.interpreter import Interpreter

DISK_BYTES = 64 << 20
STACK_BYTES = 64 << 20
MAX_PROCESSES = 64
MAX_OPEN_FILES = 256

_FIRST_UID, _NUM_UIDS = 61184, 4000
SIZE_HERE = "\0size"  # stands in a command where the size of /tmp is to be given
_INSIDE = ("values", "remote", "compare", "judge", "seccomp", "link", "cell")
_INSIDE_REPOSITORY = (*_INSIDE, "placing", "screen", "view", "survey", "repository")
_PYTHON_FLAGS = ("-S", "-s", "-P", "-B")
# The first messages on standard input, which is a socket, hold the core to run on and the modules that run inside.
BOOT = """
import marshal, socket, sys
control = socket.socket(fileno=0)
for name in ("loop", "loop.grading", "loop.grading.inside"):
    sys.modules[name] = type(sys)(name)
core = control.recv(8)
for name, code in marshal.loads(control.recv(1 << 20)):
    module = sys.modules["loop.grading.inside." + name] = type(sys)("loop.grading.inside." + name)
    setattr(sys.modules["loop.grading.inside"], name, module)
    exec(code, module.__dict__)
module.serve(control, int.from_bytes(core, "little"))
"""


@dataclass(eq=False)
class Sandbox:
    """One way of running programs on this machine, of which any number of interpreters can be started. Thread-safe.

    `words` describe it to people; `command` starts Python in it. `own_uid` and `nested` are those of `bubblewrap.Mode`.
    """

    level: str
    words: str
    command: tuple[str, ...]
    own_uid: bool
    nested: bool

    def __post_init__(self) -> None:
        self._programs = programs_inside(self.command[-1])
        self._next_uid = itertools.count(os.getpid() * 31)

    def interpreter(self, core: int, directory: str, job_bytes: int = 0) -> Interpreter:
        """Start a process inside that forks others on order. `job_bytes` is added to the size of /tmp."""
        size = ("--size", str(DISK_BYTES + 4 * job_bytes))
        command = [word for part in self.command for word in (size if part == SIZE_HERE else (part,))]
        return Interpreter([*command, *_PYTHON_FLAGS, "-c", BOOT], core, self._programs, self.level, directory)

    def order(self, role: str, job_bytes: int, timeout_s: float, memory_bytes: int, directory: str) -> dict[str, Any]:
        """The order to start a process of a job, with its limits."""
        limits = {
            "RLIMIT_AS": memory_bytes + 8 * job_bytes,  # the job itself is not the program's memory
            "RLIMIT_CPU": math.ceil(timeout_s) + 1,
            "RLIMIT_FSIZE": DISK_BYTES + job_bytes,
            "RLIMIT_STACK": STACK_BYTES,
            "RLIMIT_NOFILE": MAX_OPEN_FILES,
            "RLIMIT_NPROC": MAX_PROCESSES,
            "RLIMIT_CORE": 1,  # with 0 a program named in the host's core_pattern would still be given a core dump
        }
        if self.level == "none" or not (self.own_uid or _counts_per_namespace()):
            del limits["RLIMIT_NPROC"]  # would count all the user's processes on the machine
        return {
            "do": "start",
            "role": role,
            "nested": self.nested,
            "shut_in": self.level != "none",
            "uid": _FIRST_UID + next(self._next_uid) % _NUM_UIDS if self.own_uid else 0,
            "disk": DISK_BYTES + 4 * (job_bytes >> 20 << 20),  # equal for most jobs, so that /tmp can stay
            "limits": limits,
            "directory": directory,
        }


def programs_inside(python: str, repository: bool = False) -> bytes:
    """The modules that run inside, for this interpreter; the last has `serve`."""
    same = python == own_python()  # it can run what this process has compiled
    inside = importlib.resources.files("loop.grading.inside")
    names = _INSIDE_REPOSITORY if repository else _INSIDE
    texts = ((name, (inside / f"{name}.py").read_text("utf-8")) for name in names)
    return marshal.dumps([(name, compile(text, f"<{name}>", "exec") if same else text) for name, text in texts])


def own_python() -> str:
    """The path of the interpreter that this process runs on, behind a virtual environment's link."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _counts_per_namespace() -> bool:
    """Since Linux 5.14 RLIMIT_NPROC counts within the user namespace."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return release is not None and (int(release[1]), int(release[2])) >= (5, 14)
