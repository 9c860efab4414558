"""What runs inside the sandboxes of a repository: its tests, under the repository's own interpreter.

`serve` reads the job from a file. Where it names a function, this is the host of candidates: it imports the package, with a stub
for the function, and forks a process for each candidate, which answers the tests' questions with plain values (level "apart").
Otherwise it imports pytest and forks a tests' process for each problem. There pytest collects, and then, in place of pytest's own
loop, a fork for each candidate runs the tests. At the level "inside" the candidate's code is put into that fork. Each fork sees a
copy-on-write tree of its own.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import random
import secrets
import signal
import socket
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

from loop.grading.inside import cell, placing, screen, survey
from loop.grading.inside.link import Link, described
from loop.grading.inside.remote import Gone, NotReady, Solution, exception_text, last_line
from loop.grading.inside.values import Closed, NotPlain, exactly, receive, send
from loop.grading.inside.view import JOB, LOWER, PYTEST, SCRATCH, TREE, keep_from_candidates, mount

_NEWNS, _NEWPID = 0x20000, 0x20000000
_DIE_WITH_PARENT = 1
ASKED = "__loop_candidate__"
"""The builtin that a stub calls at the level "apart"."""
_MAX_DETAIL = 300


def serve(control: socket.socket, core: int) -> None:
    """Be the process that the job asks for. Never returns."""
    cell.stay_on(core)
    job = json.loads(Path(JOB, "job.json").read_text("utf-8"))
    sys.path[:] = job["path"]
    os.environ.update(job["environment"])
    if "survey" in job:
        control.send(b"ready")
        survey.run(job["survey"])
    if "function" in job:
        os.chdir(TREE)
        functions = _imported(job)
        place = placing.Place(job["text"], job["function"])
        gc.collect()
        gc.freeze()
        cell.follow_orders(control, {"solution": lambda _: cell.solve(PackageLink(job, place, functions))})
    _serve_tests(control)


def _serve_tests(control: socket.socket) -> None:
    """Fork a tests' process for each problem, which ends the one before. Never returns."""
    import pytest  # noqa: F401

    for each in importlib.metadata.entry_points(group="pytest11"):  # pytest is to import them anyway, for each problem
        with contextlib.suppress(Exception):
            each.load()
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            os._exit(0)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(-1, signal.SIGKILL)  # everything in this namespace but its first process and this one
            while True:
                os.waitpid(-1, 0)
        if not handles:
            control.send(json.dumps({"status": None, "cpu_s": 0.0}).encode())
        elif os.fork():
            os.close(handles[0])
        else:
            os.dup2(os.open(os.devnull, os.O_RDWR), control.detach())
            _judge_one(socket.socket(fileno=handles[0]))


def _judge_one(grader: socket.socket) -> None:
    """Be the tests' process of the problem that the grader sends. Never returns."""
    try:
        TestsProcess(receive(grader.recv), grader).run()
    except Closed:  # the grader has hung up
        pass
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _imported(job: dict[str, Any]) -> list[FunctionType]:
    """Import the function's module. Raises RuntimeError where the function is not to be had."""
    __import__(job["module"])
    functions = _functions(job)
    if not functions:
        raise RuntimeError(f"{job['function']} is no plain function once {job['file']} is imported")
    return functions


def _functions(job: dict[str, Any]) -> list[FunctionType]:
    return placing.functions_of(job["text"], f"{TREE}/{job['file']}", job["function"])


class PackageLink(Link):
    """Answers questions about a candidate that stands in its package."""

    def __init__(self, job: dict[str, Any], place: placing.Place, functions: list[FunctionType]) -> None:
        super().__init__(True)
        self._job, self._place, self._functions = job, place, functions

    def _load(self, question: dict[str, Any], _: Any) -> None:
        placing.put(self._functions, self._place.code_of(placing.parsed(question["code"])))
        self._space = {"candidate": _reached(self._job)}


def _reached(job: dict[str, Any]) -> Any:
    """The function as the tests reach it: with its decorators, through its class."""
    thing: Any = sys.modules[job["module"]]
    for name in job["function"].split("."):
        thing = getattr(thing, name)
    return thing


class TestsProcess:
    """Collects the tests once, and then judges candidates until the grader hangs up."""

    def __init__(self, job: dict[str, Any], grader: socket.socket) -> None:
        self.job, self._grader = job, grader
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._here = os.pidfd_open(os.getpid())
        self._failure = ""
        self._problem = ""  # why the tests cannot run
        self._passed: set[tuple[str, str]] = set()

    def run(self) -> None:
        """Run pytest, whose loop is `pytest_runtestloop` below."""
        cell.must(self._libc.unshare(_NEWNS), "unshare")
        mount(self._libc, (LOWER,), SCRATCH[0])
        Path(TREE, self.job["file"]).write_bytes(bytes.fromhex(self.job["stub"]))
        os.chdir(TREE)
        import pytest

        arguments = [*PYTEST, *self.job["options"], *self.job["files"]]
        with open(os.devnull, "w") as nothing:
            sys.stdout = nothing
            status = pytest.main(arguments, plugins=[self])
        send(self._grader.send, {"broken": self._problem or f"pytest collected nothing: exit status {int(status)}"})

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._problem = self._problem or f"the tests cannot be collected: {survey.reason_of(report)}"

    def pytest_runtestloop(self, session: Any) -> bool:
        by_id = {item.nodeid: item for item in session.items}
        missing = [name for name in self.job["tests"] if name not in by_id]
        if missing:
            self._problem = self._problem or f"pytest does not collect {missing[0]}"
            return True
        items = [by_id[name] for name in self.job["tests"]]
        functions = [] if self.job["apart"] else _functions(self.job)
        if not self.job["apart"] and not functions:
            with contextlib.suppress(ImportError):
                functions = _imported(self.job)
        if not self.job["apart"] and not functions:
            self._problem = f"{self.job['function']} is no plain function once the tests are collected"
            return True
        if not self.job["apart"]:
            self._place = placing.Place(self.job["text"], self.job["function"])
            tests = {Path(item.fspath).stem for item in items} | {"conftest"}
            self._screen = screen.Screen(self.job["text"], tests)
        gc.collect()
        gc.freeze()
        send(self._grader.send, {"collected": True})
        while True:
            header, handles, _, _ = socket.recv_fds(self._grader, 8, 1)
            if not header:
                os._exit(0)
            program = exactly(self._grader.recv, int.from_bytes(header, "little")).decode()
            order = receive(self._grader.recv)
            self._judge(program, order, handles[0], items, functions)
            os.close(handles[0])

    def _judge(self, program: str, order: Any, handle: int, items: list[Any], functions: list[FunctionType]) -> None:
        """Fork a process that runs the tests, and hand on its verdict if it knows the secret of this candidate."""
        secret = secrets.token_hex(16)
        ours, its_end = socket.socketpair()
        cell.must(self._libc.unshare(_NEWPID), "unshare")
        pid = os.fork()
        if pid == 0:
            self._libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
            ours.close()
            self._grader.close()
            self._fork(program, order, handle, items, functions, its_end, secret)
        cell.must(self._libc.setns(self._here, _NEWPID), "setns")
        its_end.close()
        verdict: Any = None
        with ours, contextlib.suppress(Closed, NotPlain, OSError):
            while True:
                message = receive(ours.recv)
                if not isinstance(message, dict) or message.pop("secret", None) != secret:
                    verdict = {"verdict": "failed", "detail": "the program spoke in the harness's name", "ended": False}
                    break
                if "verdict" in message:
                    verdict = message
                    break
                send(self._grader.send, message)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
        if verdict is None:
            verdict = {"verdict": "error", "detail": _end_in_words(os.waitstatus_to_exitcode(status)), "ended": False}
        send(self._grader.send, {**verdict, "cpu_s": used.ru_utime + used.ru_stime})

    def _fork(
        self,
        program: str,
        order: Any,
        handle: int,
        items: list[Any],
        functions: list[FunctionType],
        channel: socket.socket,
        secret: str,
    ) -> None:
        """Be the process that runs the tests. Never returns."""

        def say(message: dict[str, Any]) -> None:
            send(channel.send, {**message, "secret": secret})

        try:
            cell.must(self._libc.unshare(_NEWNS), "unshare")
            mount(self._libc, (f"{SCRATCH[0]}/changed", LOWER), SCRATCH[1])
            os.chdir("/")
            os.chdir(TREE)
            keep_from_candidates(self._libc)
            cell.enter({**order, "directory": TREE}, self._libc)
            random.seed(0)
            solution = None
            if self.job["apart"]:
                link = socket.socket(fileno=handle)
                solution = Solution(link.recv, link.send)
                solution.begin()
            else:
                os.close(handle)
            say({"ready": True})
        except NotReady as error:
            say({"broken": str(error)})
            os._exit(1)
        except BaseException as error:
            say({"broken": f"{type(error).__name__}: {error}"})
            os._exit(1)
        try:
            if solution is not None:
                verdict = self._apart(program, solution, items)
            else:
                verdict = self._inside(program, items, functions)
            say({**verdict, "detail": verdict["detail"][:_MAX_DETAIL]})
        finally:
            os._exit(0)

    def _apart(self, program: str, solution: Solution, items: list[Any]) -> dict[str, Any]:
        try:
            solution.ask({"do": "load", "kind": "repository", "code": program})
            setattr(builtins, ASKED, solution.global_named("candidate"))
        except Gone:
            return {"verdict": "error", "detail": "", "ended": solution.ended}
        except Exception as error:
            return {"verdict": "error", "detail": solution.words_for(error), "ended": False}
        word, detail = self._run(items)
        if solution.trouble:
            word, detail = "error", solution.trouble
        elif solution.misused and word == "passed":
            word, detail = "failed", solution.misused
        return {"verdict": word, "detail": detail, "ended": solution.ended}

    def _inside(self, program: str, items: list[Any], functions: list[FunctionType]) -> dict[str, Any]:
        try:
            candidate = placing.parsed(program)
            if why := self._screen.refusal(candidate):
                return {"verdict": "failed", "detail": why, "ended": False}
            placing.put(functions, self._place.code_of(candidate))
        except placing.Misplaced as error:
            return {"verdict": "error", "detail": str(error), "ended": False}
        except BaseException as error:
            return {"verdict": "error", "detail": exception_text(described(error)), "ended": False}
        screen.watch(lambda path: os.path.abspath(path).startswith(TREE) and screen.is_source(path))
        word, detail = self._run(items)
        return {"verdict": word, "detail": detail, "ended": False}

    def _run(self, items: list[Any]) -> tuple[str, str]:
        """The tests, until the first that fails."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if (
                not self._failure
                and not {(item.nodeid, when) for when in ("setup", "call", "teardown")} <= self._passed
            ):
                self._failure = f"{_short(item.nodeid)} was not run to its end"
            if self._failure:
                return "failed", self._failure
        return "passed", ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome == "passed" and not hasattr(report, "wasxfail"):
            self._passed.add((report.nodeid, report.when))
        elif not self._failure:
            self._failure = f"{_short(report.nodeid)}: {survey.reason_of(report) or report.outcome}"

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        """Say of the first failure what the candidate's own line is, if it came from there."""
        if not self._failure and (line := last_line(call.excinfo.value, placing.CANDIDATE)):
            error = call.excinfo.value
            self._failure = f"{_short(report.nodeid)}: " + exception_text({**described(error), "line": line})


def _short(nodeid: str) -> str:
    return nodeid.rpartition("/")[2][:120]


def _end_in_words(status: int) -> str:
    if status == screen.ENDED_BY_SCREEN:
        return "it reached for its tests while they ran"
    if status < 0:
        return f"killed by signal {-status} before the last test was done"
    return "ended before the last test was done"
