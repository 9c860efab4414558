"""What runs inside the sandbox: a warm interpreter that forks a process for each solution, and one for the tests.

The first, `serve`, keeps the right to make namespaces and never runs anything but this file. It learns nothing of a job: the
tests' process (`loop.grading.inside.judge`) has a socket of its own to the grader, and hands the program to the solution's process
(`solve`), which is a fork of one that has never held an answer. That is new for each solution: the first process of a PID
namespace, with an empty /tmp and no rights; when it is ended, the kernel ends all that it started. Network, System V memory
and the like, which would otherwise need namespaces too, are refused by `loop.grading.inside.seccomp`.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import random
import resource
import signal
import site
import socket
import sys
import time

from loop.grading.inside import judge, remote, seccomp
from loop.grading.inside.link import Link, described
from loop.grading.inside.values import Closed, NotPlain, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Order = dict[str, Any]

SOCKET = 3

_NEWIPC, _NEWPID, _NEWNET = 0x8000000, 0x20000000, 0x40000000
_DETACH, _NO_DEVICES_OR_SETUID = 2, 6
_REMOUNT_READ_ONLY = 0x1021  # of this mount, not of what is mounted; the other flags have to stay
_SAME_FLAGS, _RELATIME = 0xC0E, (0x1000, 0x200000)  # as statvfs and mount have them
_CLEAR_AMBIENT = (47, 4, 0, 0, 0)
_CAPABILITIES_3 = 0x20080522

# What programs import most: ready in memory, it costs them nothing. Every library that is loaded makes each fork slower.
_WARM = "bisect collections copy functools heapq io itertools math operator re string threading typing"


def serve(control: socket.socket, core: int) -> None:
    """Fork what is ordered, end it when told, until the grader hangs up. Never returns."""
    try:
        os.sched_setaffinity(0, {core})
    except OSError:  # it may not choose: then the kernel does
        pass
    for name in _WARM.split():
        __import__(name)
    site.setquit()  # `exit` and `quit`, which are not there without site-packages
    _rehearse()
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.pidfd_open(os.getpid()) if hasattr(os, "pidfd_open") else -1
    running: dict[str, int] = {}
    tmp = _Tmp(libc)
    # as the first process of a namespace it gets, from those within, no signal but what it has a handler for
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    control.send(b"ready")
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            os._exit(0)
        order = json.loads(message)
        if order["do"] == "end":
            role = order["role"]
            end = _end(running.pop(role), order["wait"]) if role in running else None
            control.send(json.dumps(end).encode())
            continue
        apart = order["nested"] and order["role"] == "solution"
        if apart:
            tmp.empty(order["disk"])
            _must(libc.unshare(_NEWPID), "unshare")  # for the next child
        pid = os.fork()
        if pid == 0:
            _child(control, handles[0], order, libc)
        running[order["role"]] = pid
        os.close(handles[0])
        if apart:
            _must(libc.setns(here, _NEWPID), "setns")  # and no further one


_REHEARSED = """
from typing import Dict, List, Optional, Tuple

class Pair:
    def __init__(self, a, b=None):
        self.a, self.b = a, b

def f(xs: List[int], names: Optional[Dict[str, Tuple[int, float]]] = None) -> List[str]:
    \'\'\'Doc.\'\'\'
    found = []
    for number, x in enumerate(sorted(set(xs), reverse=True)):
        if x % 2 == 0 and number < len(xs):
            found.append(f"{x}-{number:02d}".upper())
        else:
            found += [str(y) for y in range(x)][:2]
    try:
        return found + list(names or {})
    except (KeyError, ValueError) as error:
        raise TypeError(str(error)) from error
    finally:
        Pair(1).b = {x: x * 1.5 for x in xs}
"""


def _rehearse() -> None:
    """Grade a program of our own some times over: what Python sets up when something is done first, every fork then has."""
    link, answers = Link(shut_in=False), io.BytesIO()

    def ask(question: Any) -> int:
        answers.seek(0)
        answers.truncate()
        send(answers.write, link.answer(receive(io.BytesIO(question).read)))
        answers.seek(0)
        return len(question)

    steps = [("test 1", "assert f([1, 2, 3], {'a': (1, 2.5)}) == ['0', '1', '2-01', '0', 'a']")]
    common = {"code": _REHEARSED, "imports": "", "before": "", "called": ["f"]}
    jobs: list[dict[str, Any]] = [
        {**common, "kind": "mbpp", "steps": steps},
        {**common, "kind": "humaneval", "prompt": _REHEARSED, "test": "def check(f):\n " + steps[0][1]},
    ]
    for job in jobs * 20:  # until the interpreter has specialised what is done often
        said = judge.judge(job, remote.Solution(answers.read, ask))
        assert said["verdict"] == "passed", said
    for name in ("solution", "tests"):
        del sys.modules[name]


class _Tmp:
    """The solutions' /tmp. Nobody else writes there, and one that a solution has touched is replaced by a new one."""

    def __init__(self, libc: Any) -> None:
        self._libc = libc
        self._seen: tuple[Any, ...] = ()

    def empty(self, size: int) -> None:
        """Make it empty, with room for so many bytes."""
        if self._seen == (size, *self._state()):
            return
        if not self._seen:
            _keep_devices(self._libc)
        else:
            _must(self._libc.umount2(b"/tmp", _DETACH), "umount")
        options = f"size={size},nr_inodes=20000,mode=1777".encode()
        _must(self._libc.mount(b"tmpfs", b"/tmp", b"tmpfs", _NO_DEVICES_OR_SETUID, options), "mount")
        self._seen = (size, *self._state())

    def _state(self) -> tuple[Any, ...]:
        """A change time cannot be set back, but may stand still for some milliseconds: hence the rest."""
        found = os.stat("/tmp")
        return found.st_ctime_ns, found.st_mode, os.listdir("/tmp"), os.listxattr("/tmp")


def _end(pid: int, wait: bool) -> dict[str, Any]:
    """Kill it and all that it started; how it ended before that, if it had, and its CPU time in seconds.

    With `wait` it has closed its sockets, so it is ending, and is given a moment for it.
    """
    patience = time.monotonic() + (2.0 if wait else 0.0)
    ended, status, used = os.wait4(pid, os.WNOHANG)
    while not ended and time.monotonic() < patience:
        time.sleep(0.001)
        ended, status, used = os.wait4(pid, os.WNOHANG)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has none yet, or has ended
        pass
    if not ended:  # else its number may be another's
        os.kill(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status) if ended else None, "cpu_s": used.ru_utime + used.ru_stime}


def _must(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _child(control: socket.socket, handle: int, order: Order, libc: Any) -> None:
    """One of the two processes of a job, with nothing open but its own socket. Never returns."""
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        control.detach()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.dup2(handle, 64)
        os.dup2(64, SOCKET, inheritable=False)
        os.closerange(SOCKET + 1, 256)
        _enter(order, libc)
        random.seed(0)  # a fork seeds it anew, and programs that draw are to do the same each time
    except BaseException as error:  # before anything foreign was run: no fault of the program
        send(_write, {"broken": f"{type(error).__name__}: {error}"})
        os._exit(1)
    try:
        if order["role"] == "solution":
            solve(order["shut_in"])
        else:
            judge.main(SOCKET)
    finally:
        os._exit(1)


def _enter(order: Order, libc: Any) -> None:
    """Shut this process in, and give up every right."""
    if order["nested"] and not seccomp.KNOWN:
        _must(libc.unshare(_NEWIPC | _NEWNET), "unshare")
    if order["uid"]:  # root's processes are not counted against RLIMIT_NPROC: become nobody in particular
        os.setgroups([])
        os.setgid(order["uid"])
        os.setuid(order["uid"])
    libc.prctl(*_CLEAR_AMBIENT)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    _must(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    for name, value in order["limits"].items():
        which = getattr(resource, name, None)
        if which is None:
            continue
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # at the end of its CPU time a program gets SIGXCPU, which tells this end from others; a second later it is killed
        resource.setrlimit(which, (value, value + 1 if name == "RLIMIT_CPU" and value != hard else value))
    os.chdir(order["directory"])
    if order["role"] == "solution" and order["shut_in"]:
        seccomp.install(libc)


def _keep_devices(libc: Any) -> None:
    """The devices are the host's: they are read and written, but their modes and dates must not change.

    bubblewrap cannot do this: what it mounts read-only holds no devices. Where the kernel refuses, they stay as they are.
    """
    for name in (b"/dev/null", b"/dev/zero", b"/dev/urandom"):
        had = os.statvfs(name).f_flag
        flags = _REMOUNT_READ_ONLY | had & _SAME_FLAGS | (had & _RELATIME[0] and _RELATIME[1])
        libc.mount(None, name, None, flags, None)


def _read(size: int, read: Callable[[int, int], bytes] = os.read) -> bytes:
    return read(SOCKET, size)


def _write(part: Any, write: Callable[[int, Any], int] = os.write) -> int:
    return write(SOCKET, part)


# the solution's process


def solve(shut_in: bool) -> None:
    """Do what the tests' process asks: load the program, call what it defines. Never returns."""
    leave, link = os._exit, Link(shut_in)
    try:
        send(_write, {"ready": True})
        while True:
            try:
                send(_write, link.answer(receive(_read)))
            except NotPlain as error:  # too big
                send(_write, {"raised": described(error), "containers": [], "given": []})
    except (Closed, OSError):
        leave(0)
