"""What runs inside the sandbox: a warm interpreter that forks a process for each solution, and one for the tests.

The warm interpreter (`serve`) keeps the right to make namespaces and never runs anything but our own code. It learns nothing
of a job: the tests' process (`loop.grading.inside.judge`) has a socket of its own to the grader, and hands the program to the
solution's process (`solve`), which is a fork of an interpreter that has never held an answer. Each solution has a new one: the
first process of a PID namespace, with an empty /tmp and no rights. When that is killed, the kernel ends all that it started.
Network, System V memory and the like would need namespaces, too; `loop.grading.inside.seccomp` refuses them.
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
from collections.abc import Callable
from typing import Any

from loop.grading.inside import judge, remote, seccomp
from loop.grading.inside.link import Link, described
from loop.grading.inside.values import Closed, NotPlain, receive, send

SOCKET = 3

_NEWIPC, _NEWPID, _NEWNET = 0x8000000, 0x20000000, 0x40000000
_DETACH, _NO_DEVICES_OR_SETUID = 2, 6
_REMOUNT_READ_ONLY = 0x1021  # of this mount, not of what is mounted; the other flags have to stay
_SAME_FLAGS, _RELATIME = 0xC0E, (0x1000, 0x200000)  # as statvfs and mount have them
_CLEAR_AMBIENT = (47, 4, 0, 0, 0)
_CAPABILITIES_3 = 0x20080522

# What programs import most. It is loaded beforehand, and no more than this, because every library makes each fork slower.
_WARM = "bisect collections copy functools heapq io itertools math operator re string threading typing"


def serve(control: socket.socket, core: int) -> None:
    """Fork processes and end them, as the grader orders, until it hangs up. Never returns."""
    stay_on(core)
    for name in _WARM.split():
        __import__(name)
    site.setquit()  # `exit` and `quit`, which Python lacks without site-packages
    _rehearse()
    follow_orders(
        control, {"solution": lambda order: solve(Link(order["shut_in"])), "judge": lambda _: judge.main(SOCKET)}
    )


def stay_on(core: int) -> None:
    """Run on this core only, where the kernel permits it."""
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        pass


def follow_orders(control: socket.socket, roles: dict[str, Callable[[dict[str, Any]], None]]) -> None:
    """Fork processes that play these roles, and end them, until the grader hangs up. Never returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.pidfd_open(os.getpid()) if hasattr(os, "pidfd_open") else -1
    running: dict[str, int] = {}
    tmp = _Tmp(libc)
    # processes of its namespace can send the first one only signals that it has a handler for
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
            ended = _end(running.pop(role), order["wait"]) if role in running else None
            control.send(json.dumps(ended).encode())
            continue
        in_namespace = order["nested"] and order["role"] == "solution"
        if in_namespace:
            tmp.empty(order["disk"])
            must(libc.unshare(_NEWPID), "unshare")  # the next child begins a new namespace
        pid = os.fork()
        if pid == 0:
            _child(control, handles[0], order, libc, roles[order["role"]])
        running[order["role"]] = pid
        os.close(handles[0])
        if in_namespace:
            must(libc.setns(here, _NEWPID), "setns")  # later children are here again


_REHEARSED = """
from typing import Dict, List, Optional, Tuple

class Pair:
    def __init__(self, a, b=None):
        self.a, self.b = a, b

def f(xs: List[int], names: Optional[Dict[str, Tuple[int, float]]] = None) -> List[str]:
    \'\'\'Doc.\'\'\'
    parts = []
    for number, x in enumerate(sorted(set(xs), reverse=True)):
        if x % 2 == 0 and number < len(xs):
            parts.append(f"{x}-{number:02d}".upper())
        else:
            parts += [str(y) for y in range(x)][:2]
    try:
        return parts + list(names or {})
    except (KeyError, ValueError) as error:
        raise TypeError(str(error)) from error
    finally:
        Pair(1).b = {x: x * 1.5 for x in xs}
"""


def _rehearse() -> None:
    """Grade a program of our own some times over, so that every fork has what Python sets up when it does a thing first."""
    link, answers = Link(shut_in=False), io.BytesIO()

    def ask(question: Any) -> int:
        answers.seek(0)
        answers.truncate()
        for answer in link.answers(receive(io.BytesIO(question).read)):
            send(answers.write, answer)
        answers.seek(0)
        return len(question)

    steps = [("test 1", "assert f([1, 2, 3], {'a': (1, 2.5)}) == ['0', '1', '2-01', '0', 'a']")]
    common = {"code": _REHEARSED, "imports": "", "before": "", "called": ["f"]}
    jobs: list[dict[str, Any]] = [
        {**common, "kind": "mbpp", "steps": steps},
        {**common, "kind": "humaneval", "prompt": _REHEARSED, "test": "def check(f):\n " + steps[0][1]},
    ]
    for job in jobs * 20:  # until the interpreter has specialised the code that runs often
        verdict = judge.judge(job, remote.Solution(answers.read, ask))
        assert verdict["verdict"] == "passed", verdict
    for name in ("solution", "tests"):
        del sys.modules[name]


class _Tmp:
    """The solutions' /tmp. Nobody else writes there. If a solution has touched it, the next one gets a new one."""

    def __init__(self, libc: Any) -> None:
        self._libc = libc
        self._seen: tuple[Any, ...] = ()

    def empty(self, size: int) -> None:
        """Make it empty, with room for `size` bytes."""
        if self._seen == (size, *self._state()):
            return
        if not self._seen:
            _keep_devices(self._libc)
        else:
            must(self._libc.umount2(b"/tmp", _DETACH), "umount")
        options = f"size={size},nr_inodes=20000,mode=1777".encode()
        must(self._libc.mount(b"tmpfs", b"/tmp", b"tmpfs", _NO_DEVICES_OR_SETUID, options), "mount")
        self._seen = (size, *self._state())

    def _state(self) -> tuple[Any, ...]:
        """What differs once something was changed. The change time alone can miss what happens within milliseconds."""
        status = os.stat("/tmp")
        return status.st_ctime_ns, status.st_mode, os.listdir("/tmp"), os.listxattr("/tmp")


def _end(pid: int, wait: bool) -> dict[str, Any]:
    """Kill a process and all that it started. Gives its exit status, or None if it still ran, and its CPU time in seconds.

    With `wait` it has closed its sockets and is about to end, and has two seconds for that.
    """
    deadline = time.monotonic() + (2.0 if wait else 0.0)
    ended, status, used = os.wait4(pid, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.001)
        ended, status, used = os.wait4(pid, os.WNOHANG)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group yet, or has ended
        pass
    if not ended:  # if it has ended, another process may have its number
        os.kill(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status) if ended else None, "cpu_s": used.ru_utime + used.ru_stime}


def must(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _child(control: socket.socket, handle: int, order: dict[str, Any], libc: Any, play: Callable[..., None]) -> None:
    """Be one of the two processes of a job, with nothing open but its own socket. Never returns."""
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
        enter(order, libc)
        random.seed(0)  # a fork seeds it anew, but programs that draw should draw the same each time
    except BaseException as error:  # nothing foreign has run yet, so it is no fault of the program
        send(_write, {"broken": f"{type(error).__name__}: {error}"})
        os._exit(1)
    try:
        play(order)
    finally:
        os._exit(1)


def enter(order: dict[str, Any], libc: Any) -> None:
    """Shut this process in, and give up every right."""
    if order["nested"] and not seccomp.KNOWN:
        must(libc.unshare(_NEWIPC | _NEWNET), "unshare")
    if order["uid"]:  # RLIMIT_NPROC does not count root's processes, so become a user that nobody else is
        os.setgroups([])
        os.setgid(order["uid"])
        os.setuid(order["uid"])
    libc.prctl(*_CLEAR_AMBIENT)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    must(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    for name, value in order["limits"].items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # SIGXCPU at the end of its CPU time tells this end from others; a second later the kernel kills the program
        resource.setrlimit(which, (value, value + 1 if name == "RLIMIT_CPU" and value != hard else value))
    os.chdir(order["directory"])
    if order["role"] == "solution" and order["shut_in"]:
        seccomp.install(libc)


def _keep_devices(libc: Any) -> None:
    """Protect the modes and dates of the devices, which are the host's. Programs can still read and write them.

    Bubblewrap cannot do this: its read-only mounts hold no devices. Where the kernel refuses, the devices stay as they are.
    """
    for name in (b"/dev/null", b"/dev/zero", b"/dev/urandom"):
        old = os.statvfs(name).f_flag
        flags = _REMOUNT_READ_ONLY | old & _SAME_FLAGS | (old & _RELATIME[0] and _RELATIME[1])
        libc.mount(None, name, None, flags, None)


def _read(size: int, read: Callable[[int, int], bytes] = os.read) -> bytes:
    return read(SOCKET, size)


def _write(part: Any, write: Callable[[int, Any], int] = os.write) -> int:
    return write(SOCKET, part)


def solve(link: Link) -> None:
    """Answer the tests' process: load the program, call what it defines. Never returns."""
    leave = os._exit
    try:
        send(_write, {"ready": True})
        while True:
            for answer in link.answers(receive(_read)):
                try:
                    send(_write, answer)
                except NotPlain as error:  # the answer is too big
                    send(_write, {"raised": described(error), "containers": [], "given": []})
    except (Closed, OSError):
        leave(0)
