"""Runs programs that a model wrote, shut in by bubblewrap: no network, no host file but a read-only Python, nothing left.

Level "none" is a plain subprocess with resource limits, for machines that one can lose; it is never chosen by itself.
Starting bubblewrap and Python takes longer than most programs, so a sandbox is kept warm: `cell.py` runs inside and forks a
process with namespaces of its own for each solution, and another for its tests (`judge.py`).
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
import marshal
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from loop.errors import ConfigError
from loop.grading.interpreter import ENVIRONMENT, Interpreter

Level = Literal["bubblewrap", "none"]

DISK_BYTES = 64 << 20
STACK_BYTES = 64 << 20
MAX_PROCESSES = 64
MAX_OPEN_FILES = 256

_FIRST_UID, _NUM_UIDS = 61184, 4000
_SIZE_HERE = "\0size"
_INSIDE = ("values", "remote", "compare", "judge", "seccomp", "cell")
_PYTHON_FLAGS = ("-S", "-s", "-P", "-B")
# The first messages on standard input, which is a socket, hold the core to run on and the modules that run inside.
_BOOT = """
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

# Reports the standard library and every shared library that Python and its modules load, as the loader names them.
_PROBE = """
import ctypes, glob, json, os, sys, sysconfig
skip = ("_tkinter", "nis", "readline", "_curses", "_dbm", "_gdbm", "_test", "_xxtest", "xx")
folders = [p for p in sys.path if os.path.isdir(p)]
for folder in folders:
    for file in glob.glob(os.path.join(glob.escape(folder), "*.so")):
        if not os.path.basename(file).startswith(skip):
            try: ctypes.CDLL(file, mode=os.RTLD_LAZY)
            except OSError: pass
class Info(ctypes.Structure):
    _fields_ = [("address", ctypes.c_size_t), ("name", ctypes.c_char_p)]
names = []
def note(info, size, data):
    names.append(os.fsdecode(info.contents.name or b""))
    return 0
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
ctypes.CDLL(None).dl_iterate_phdr(kind(note), None)
json.dump({"folders": folders, "libraries": names, "packages": sysconfig.get_paths()["purelib"]}, sys.stdout)
"""


class _Mode(NamedTuple):
    """One way of calling bubblewrap. `own_uid` gives each process of a job a user of its own, so that what it starts is
    counted; `nested` leaves the warm interpreter, and it alone, the right to make namespaces.
    """

    words: str
    flags: tuple[str, ...]
    own_uid: bool
    nested: bool


_USERS = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_KILL")
_SPACES = ("--cap-add", "CAP_SYS_ADMIN")
_IN_A_NAMESPACE = (
    _Mode("a user namespace", ("--unshare-user", *_SPACES), False, True),
    _Mode("a user namespace and a sandbox for each solution", ("--unshare-user", "--disable-userns"), False, False),
    _Mode("a user namespace and a sandbox for each solution", ("--unshare-user",), False, False),
)
_MODES_AS_ROOT = (
    _Mode("a user of its own per solution", (*_USERS, *_SPACES), True, True),
    *(mode._replace(words=f"{mode.words}; processes are not counted for root") for mode in _IN_A_NAMESPACE),
)
_MODES_AS_USER = _IN_A_NAMESPACE


class Sandbox:
    """A way of running that was seen to work. Thread-safe; each `warm` is a sandbox of its own.

    `python` is the interpreter inside; by default the one that this process runs on, without its virtual environment.
    """

    def __init__(self, level: str, words: str, command: tuple[str, ...], own_uid: bool, nested: bool) -> None:
        self.level = level
        self.words = words
        self.own_uid = own_uid
        self.nested = nested
        self._command = command
        same = command[-1] == _own_python()  # then it need not compile
        texts = {
            name: (importlib.resources.files("loop.grading.inside") / f"{name}.py").read_text("utf-8")
            for name in _INSIDE
        }
        self._programs = marshal.dumps(
            [(name, compile(text, f"<{name}>", "exec") if same else text) for name, text in texts.items()]
        )
        self._next_uid = itertools.count(os.getpid() * 31)

    def interpreter(self, core: int, directory: str, job_bytes: int = 0) -> Interpreter:
        """A process inside that forks others when told."""
        size = ("--size", str(DISK_BYTES + 4 * job_bytes))
        command = [word for part in self._command for word in (size if part == _SIZE_HERE else (part,))]
        return Interpreter([*command, *_PYTHON_FLAGS, "-c", _BOOT], core, self._programs, self.level, directory)

    def order(self, role: str, job_bytes: int, timeout_s: float, memory_bytes: int, directory: str) -> dict[str, Any]:
        """What a process of a job is told about its bounds."""
        limits = {
            "RLIMIT_AS": memory_bytes + 8 * job_bytes,  # the job itself is not the program's memory
            "RLIMIT_CPU": math.ceil(timeout_s) + 1,
            "RLIMIT_FSIZE": DISK_BYTES + job_bytes,
            "RLIMIT_STACK": STACK_BYTES,
            "RLIMIT_NOFILE": MAX_OPEN_FILES,
            "RLIMIT_NPROC": MAX_PROCESSES,
            "RLIMIT_CORE": 1,  # 0 would still hand a core to a program that the host's core_pattern names
        }
        if self.level == "none" or not (self.own_uid or _counts_per_namespace()):
            del limits["RLIMIT_NPROC"]  # would count all the user's processes on the machine
        uid = _FIRST_UID + next(self._next_uid) % _NUM_UIDS if self.own_uid else 0
        disk = DISK_BYTES + 4 * (job_bytes >> 20 << 20)  # the same for most jobs, so that /tmp need not be made anew
        return {
            "do": "start",
            "role": role,
            "nested": self.nested,
            "shut_in": self.level != "none",
            "uid": uid,
            "disk": disk,
            "limits": limits,
            "directory": directory,
        }


def _bwrap_command(bwrap: str, mode: _Mode, view: tuple[str, ...], python: str) -> tuple[str, ...]:
    environment = {**ENVIRONMENT, "HOME": "/tmp", "TMPDIR": "/tmp"}
    command = [
        *("/bin/sh", "-c", '{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null; exec "$0" "$@"'),  # first to go
        *(bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--hostname", "sandbox"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", *mode.flags),
        *(() if mode.nested else ("--as-pid-1",)),  # a program beside the first process cannot end or stop it
        *("--perms", "1777", _SIZE_HERE, "--tmpfs", "/tmp", *view),
        *(
            "--perms",
            "0755",
            "--dir",
            "/dev",
            "--symlink",
            "/tmp/.stdin",
            "/dev/stdin",
            "--symlink",
            "/tmp",
            "/dev/shm",
        ),
        *itertools.chain.from_iterable(
            ("--dev-bind", f"/dev/{name}", f"/dev/{name}") for name in ("null", "zero", "urandom")
        ),
        *itertools.chain.from_iterable(("--setenv", name, value) for name, value in environment.items()),
        *("--remount-ro", "/", "--chdir", "/tmp", python),
    ]
    if not os.access("/bin/sh", os.X_OK):
        command = command[3:]
    return tuple(command)


@functools.lru_cache(maxsize=8)
def _python_view(python: str) -> tuple[str, ...]:
    """bwrap's arguments that show this interpreter, its standard library and the shared libraries of both; nothing else."""
    try:
        probed = subprocess.run(
            [python, "-I", "-S", "-c", _PROBE],
            capture_output=True,
            timeout=60,
            check=True,
            env={},
        )
        found = json.loads(probed.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ConfigError(f"grading.sandbox: {python} cannot be run; repair the Python installation") from None
    folders = [
        folder for folder in found["folders"] if not any(folder.startswith(f"{other}/") for other in found["folders"])
    ]
    libraries = [
        name
        for name in dict.fromkeys(found["libraries"])
        if os.path.isabs(name) and os.path.exists(name) and not any(name.startswith(f"{other}/") for other in folders)
    ]
    shown = {name: os.path.realpath(name) for name in [*folders, *libraries, python]}
    view: list[str] = []
    for parent in dict.fromkeys(str(Path(name).parent) for name in shown):  # bwrap's own would be closed to others
        view += ["--perms", "0755", "--dir", parent]
    for name, source in shown.items():
        view += ["--ro-bind", source, name]
    packages = found["packages"]
    if os.path.isdir(packages) and any(packages.startswith(f"{folder}/") for folder in folders):
        view += ["--size", "4096", "--tmpfs", packages, "--remount-ro", packages]
    places = dict.fromkeys(str(Path(name).parent) for name in libraries)
    return (*view, "--setenv", "LD_LIBRARY_PATH", ":".join(places))


def _own_python() -> str:
    """The interpreter behind a virtual environment's link."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _counts_per_namespace() -> bool:
    """Since Linux 5.14 RLIMIT_NPROC counts within the user namespace."""
    release = os.uname().release.split(".")
    try:
        return (int(release[0]), int(release[1])) >= (5, 14)
    except (ValueError, IndexError):
        return False
