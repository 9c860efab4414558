"""Warm sandboxes: bubblewrap and Python are started once, and fork a process for each solution, one at a time."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from loop.errors import HarnessError
from loop.grading.inside import values
from loop.grading.interpreter import START_TIMEOUT_S, Ended, Interpreter
from loop.grading.sandbox import Sandbox

LOOK_S = 0.25
"""Seconds between two looks at a program's memory and at its waiting time."""
MOST_WAITING = 8
"""A program may wait for a core that others use for this multiple of the time after which it is killed (`grader.KILL_AT` times its limit)."""


class TimedOut(Exception):
    """The program did not end in time and was killed."""


class TooMuchMemory(Exception):
    """The program's processes together held more memory than allowed, and were killed."""


class JudgeEnded(Exception):
    """The tests' process has ended without a verdict, though the sandbox works."""


class Warm(contextlib.AbstractContextManager["Warm"]):
    """A sandbox with its warm interpreter. It runs one job at a time, and a solution leaves nothing for the next one.

    The tests' process stays for further solutions of the same problem. Where the kernel allows no
    namespaces inside namespaces, each solution gets a bubblewrap of its own.
    """

    def __init__(self, sandbox: Sandbox, core: int | None = None) -> None:
        self._sandbox = sandbox
        self.core = min(os.sched_getaffinity(0)) if core is None else core
        self._apart = sandbox.level != "none" and not sandbox.nested  # each solution in a bubblewrap of its own
        self._directory = tempfile.mkdtemp(prefix="loop-grade-") if sandbox.level == "none" else "/tmp"
        self.problem: object = None  # whose tests the tests' process has
        self._tests: socket.socket | None = None
        self._size = 0
        try:
            self._interpreter = sandbox.interpreter(self.core, self._directory)
        except BaseException:
            self._remove(self._directory)
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, problem: object, tests: Callable[[], dict[str, Any]], code: str, timeout_s: float, memory_bytes: int
    ) -> Running:
        """Start a solution. `tests` is called for what `judge.py` needs of the problem, if its process has another problem.

        `timeout_s` counts from when the solution's process is shut in and ready, without the time that it waits for others.
        """
        if self._tests is None or self.problem is not problem:
            self._start_tests(problem, marshal.dumps(tests()), memory_bytes)
        assert self._tests is not None
        directory = tempfile.mkdtemp(dir=self._directory) if self._sandbox.level == "none" else self._directory
        program = code.encode()
        order = self._sandbox.order("solution", self._size + len(program), timeout_s, memory_bytes, directory)
        host = self._sandbox.interpreter(self.core, directory, self._size) if self._apart else self._interpreter
        return Running(self, self._tests, host, order, program, timeout_s, memory_bytes + 8 * self._size)

    def _start_tests(self, problem: object, tests: bytes, memory_bytes: int) -> None:
        self.end_tests()
        self._tests, other_end = socket.socketpair()
        directory = self._directory if self._sandbox.level == "none" else "/"
        order = self._sandbox.order("judge", len(tests), 0.0, memory_bytes, directory)
        del order["limits"]["RLIMIT_CPU"]  # it serves many solutions, and each of them has its time
        with other_end:
            self._interpreter.order(order, other_end)
        self._tests.settimeout(START_TIMEOUT_S)
        try:
            self._tests.sendall(len(tests).to_bytes(8, "little") + tests)
        except OSError:
            raise HarnessError(f"the sandbox did not take the tests ({self._interpreter.last_words()})") from None
        self.problem, self._size = problem, len(tests)

    def end_tests(self) -> None:
        """End the tests' process, if one runs, whatever it is doing."""
        if self._tests is not None:
            self._tests.close()
            self._tests = None
            self._interpreter.end("judge")

    def release(self, host: Interpreter, directory: str) -> None:
        """Clean up after a solution that ran in this interpreter and directory."""
        if host is not self._interpreter:
            host.close()
        self._remove(directory)

    def kill(self) -> None:
        """Kill the sandbox; may be called from another thread."""
        self._interpreter.kill()

    def close(self) -> None:
        """Kill whatever is left and wait until it is gone. Safe to repeat."""
        if self._tests is not None:
            self._tests.close()
            self._tests = None
        self._interpreter.close()
        self._remove(self._directory)

    def _remove(self, directory: str) -> None:
        if self._sandbox.level == "none":
            shutil.rmtree(directory, ignore_errors=True)


class Running(contextlib.AbstractContextManager["Running"]):
    """A solution that runs. At the end of the context the solution's process and all that it started are gone."""

    def __init__(
        self,
        warm: Warm,
        tests: socket.socket,
        host: Interpreter,
        order: dict[str, Any],
        program: bytes,
        timeout_s: float,
        memory_bytes: int,
    ) -> None:
        self._warm, self._tests, self._host = warm, tests, host
        self._memory_bytes, self._directory = memory_bytes, order["directory"]
        self._ended: Ended | None = None
        self._start_clock(START_TIMEOUT_S)
        with contextlib.ExitStack() as after_a_failure:
            after_a_failure.callback(self.close)
            try:
                self._hand_over(order, program)
                ready = self._receive()
                if "ready" not in ready:
                    raise HarnessError("the sandbox could not start a solution")
                self.answers: str | None = ready.get("answers")
            except (EOFError, OSError):
                raise HarnessError(f"the sandbox could not start a solution: {host.last_words()}") from None
            except TimedOut:
                text = f"sandbox and problem were not ready within {START_TIMEOUT_S:g} s"
                raise HarnessError(f"{text}; if it is always this problem, leave it out") from None
            except TooMuchMemory:
                text = f"the problem by itself uses more than {memory_bytes >> 20} MiB of memory"
                raise HarnessError(f"{text}; raise grading.memory_bytes, or leave the problem out") from None
            after_a_failure.pop_all()
        self._start_clock(timeout_s)

    def _hand_over(self, order: dict[str, Any], program: bytes) -> None:
        """Start the solution's process, and give the tests' process its program and a socket to it."""
        tests_end, solution_end = socket.socketpair()
        with tests_end, solution_end:
            self._host.order(order, solution_end)
            socket.send_fds(self._tests, [len(program).to_bytes(8, "little")], [tests_end.fileno()])
        self._tests.sendall(program)

    def __exit__(self, *_: object) -> None:
        self.close()

    def verdict(self) -> dict[str, Any]:
        """The tests' verdict. Raises TimedOut, TooMuchMemory, JudgeEnded, and HarnessError if none can be known."""
        try:
            verdict = self._receive()
        except EOFError:
            self.ended()  # raises HarnessError where the sandbox has ended
            raise JudgeEnded("the tests' process did not survive the program's values") from None
        self._judged_at = time.monotonic()
        return verdict

    def elapsed_s(self) -> float:
        """Seconds from when the solution's process was ready to the verdict, or to now, without its waiting for others."""
        return (self._judged_at or time.monotonic()) - self._started - self._waited_s

    def ended(self, wait: bool = False) -> Ended:
        """End the solution's process, and say how it had ended. With `wait` it is given time to end by itself."""
        if self._ended is None:
            self._ended = self._host.end("solution", wait)
        return self._ended

    def close(self) -> None:
        """End the solution's process, and the tests' too if they gave no verdict. Safe to repeat."""
        with contextlib.suppress(HarnessError):
            self.ended()
            if not self._judged_at:
                self._warm.end_tests()
        self._warm.release(self._host, self._directory)

    def _receive(self) -> dict[str, Any]:
        try:
            message = values.receive(self._read)
        except (values.Closed, values.NotPlain, OSError):
            raise EOFError from None
        if not isinstance(message, dict):
            raise HarnessError("the tests' process speaks nonsense")
        if "broken" in message:
            raise HarnessError(str(message["broken"]))
        return message

    def _start_clock(self, timeout_s: float) -> None:
        """What is waited for from now on times out in `timeout_s`."""
        self._started, self._judged_at, self._timeout_s, self._waited_s = time.monotonic(), 0.0, timeout_s, 0.0
        self._looked: tuple[float, Usage] | None = None

    def _read(self, size: int) -> bytes:
        """The next bytes, however late it is once they have arrived: this process may have been stopped meanwhile."""
        poll = select.poll()
        poll.register(self._tests, select.POLLIN)
        while True:
            left = self._started + self._timeout_s + self._waited_s - time.monotonic()
            if poll.poll(max(0.0, min(left, LOOK_S)) * 1000):
                return self._tests.recv(size)
            if left <= 0:
                raise TimedOut
            if self._look() > self._memory_bytes:
                raise TooMuchMemory

    def _look(self) -> int:
        """The bytes of memory that its processes hold. Also notes how long they waited for a core that others had."""
        now, usage = time.monotonic(), usage_below(self._host.pid)
        if self._looked is not None:
            before, then = self._looked
            more_s = waited_s(now - before, then, usage)
            self._waited_s = min(self._waited_s + more_s, MOST_WAITING * self._timeout_s)
        self._looked = now, usage
        return usage.num_bytes


class Usage(NamedTuple):
    """The memory of some processes, their CPU time, and by id how long each was ready to run but had no core."""

    num_bytes: int
    cpu_s: float
    ready_s: dict[int, float]


def usage_below(pid: int) -> Usage:
    """The usage of all processes below this one. Shared pages are divided among them; processes that end are left out."""
    num_bytes, cpu_s, ready_s = 0, 0.0, {}
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                cpu_s += sum(process.cpu_times()[:4])  # with the time of its children that have ended
            with contextlib.suppress(OSError, IndexError, ValueError):
                ready_s[process.pid] = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
            with contextlib.suppress(OSError, IndexError, ValueError):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                num_bytes += int(text.partition("\nPss:")[2].split(maxsplit=1)[0]) << 10
    return Usage(num_bytes, cpu_s, ready_s)


def waited_s(elapsed_s: float, before: Usage, after: Usage) -> float:
    """How long processes that share a core waited, between two looks, for processes of others rather than for each other."""
    ready_s = sum(after.ready_s[pid] - before.ready_s[pid] for pid in before.ready_s.keys() & after.ready_s.keys())
    return max(0.0, min(ready_s, elapsed_s - (after.cpu_s - before.cpu_s)))
