"""Grades solutions: each in a sandboxed process of its own, several at a time, verdicts in the order of the jobs.

A solution never shares a process with its tests or their answers: it is asked for plain values (`values.py`), and a process
of ours runs the tests on them (`judge.py`). Sandboxes stay warm while `grade` runs; a program that is there twice is run once.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import re
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from loop.errors import HarnessError
from loop.grading import judge
from loop.grading.problems import Problem, livecodebench_tests
from loop.grading.sandbox import JudgeEnded, Running, Sandbox, TimedOut, TooMuchMemory, Warm

Word = Literal["passed", "failed", "timeout", "error", "no_code", "harness_error"]

MAX_DETAIL = 300
NUM_ATTEMPTS = 3


class Job(NamedTuple):
    """One solution to grade: the whole program, or None where the answer held none. `key` comes back with the verdict."""

    key: Hashable
    problem: Problem
    code: str | None


class Verdict(BaseModel):
    """What grading says. `detail` is one printable line without addresses or times, the same on every run."""

    model_config = ConfigDict(frozen=True)

    verdict: Word
    detail: str
    duration_s: float
    sandbox: str


class Grader:
    """Grades at one sandbox level; making one finds out that the sandbox works (ConfigError where it does not).

    `timeout_s` is the wall time of one solution with all its tests, counted from when its process is ready;
    `memory_bytes` is the address space of each of its processes and the memory of all of them together. Without
    `num_workers` one solution per core runs at a time.
    """

    def __init__(
        self,
        level: str = "bubblewrap",
        timeout_s: float = 10.0,
        memory_bytes: int = 1 << 30,
        num_workers: int | None = None,
    ) -> None:
        self.level = level
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self.num_workers = num_workers or len(os.sched_getaffinity(0))
        self._sandbox = Sandbox.open(level)

    def grade(self, jobs: Iterable[Job]) -> Iterator[tuple[Hashable, Verdict]]:
        """Yield a verdict per job, in the jobs' order, as soon as it is known.

        Jobs are taken a few at a time, so memory does not grow with their number, but for a hash of each program. A harness
        error that stays after repeats is given as such: the caller's stage has failed, and nothing is known about the
        solution. Whoever stops early (an exception, a closed generator) leaves no program running.
        """
        waiting: deque[tuple[Hashable, Future[Verdict]]] = deque()
        same: dict[bytes, Future[Verdict]] = {}
        problems: dict[int, Problem] = {}  # held, so that no other gets the id() of one that is gone
        pools = _Pool(self._sandbox)
        threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="grade")
        try:
            for job in jobs:
                problems[id(job.problem)] = job.problem
                twin = _identity(job)
                if twin not in same:
                    same[twin] = threads.submit(self._graded, job.problem, job.code, pools)
                waiting.append((job.key, same[twin]))
                while waiting and (waiting[0][1].done() or len(waiting) >= 4 * self.num_workers):
                    key, future = waiting.popleft()
                    yield key, future.result()
            while waiting:
                key, future = waiting.popleft()
                yield key, future.result()
        finally:
            pools.stop()
            threads.shutdown(wait=True, cancel_futures=True)
            pools.close()

    def grade_one(self, problem: Problem, code: str | None) -> Verdict:
        """The verdict on one solution. Never raises, whatever the solution does."""
        ((_, verdict),) = self.grade([Job(None, problem, code)])
        return verdict

    def _graded(self, problem: Problem, code: str | None, pool: _Pool) -> Verdict:
        word: Word = "harness_error"
        detail, duration_s = "grading was stopped", 0.0
        if code is None or not code.strip():
            word, detail = "no_code", "the answer holds no code"
        else:
            for _ in range(NUM_ATTEMPTS):
                try:
                    word, detail, duration_s = self._run(problem, code, pool)
                    break
                except (
                    JudgeEnded
                ) as error:  # again and again beside a sandbox that is well: values that no test can bear
                    word, detail = "error", str(error)
                except (HarnessError, OSError) as error:
                    word, detail = "harness_error", str(error)
        return Verdict(verdict=word, detail=_printable(detail), duration_s=round(duration_s, 6), sandbox=self.level)

    def _run(self, problem: Problem, code: str, pool: _Pool) -> tuple[Word, str, float]:
        job = _job(problem, code)
        warm = pool.take()
        try:
            with warm.run(job, self.timeout_s, self.memory_bytes) as running:
                word, detail = self._judged(running)
                duration_s = running.elapsed_s()
                running.ended()
        except BaseException:
            pool.drop(warm)
            raise
        pool.give(warm)
        return word, detail, duration_s

    def _judged(self, running: Running) -> tuple[Word, str]:
        try:
            said = running.verdict()
        except TimedOut:
            return "timeout", f"not finished after {self.timeout_s:g} s"
        except TooMuchMemory:
            return "error", f"used more than {self.memory_bytes >> 20} MiB of memory"
        if not said["ended"]:
            return said["verdict"], said["detail"]
        end = running.ended(wait=True).get("solution")
        if end is not None and (end.status == -24 or (end.status == -9 and end.cpu_s >= self.timeout_s)):
            return "timeout", "used up its CPU time"
        if end is not None and end.status is not None and end.status < 0:
            return "error", f"killed by signal {-end.status} before the last test was done"
        return "error", said["detail"]


class _Pool:
    """The warm sandboxes of one call of `grade`, which can all be ended at once."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._lock = threading.Lock()
        self._free: list[Warm] = []
        self._busy: set[Warm] = set()
        self._stopped = False

    def take(self) -> Warm:
        with self._lock:
            if self._stopped:
                raise HarnessError("grading was stopped")
            if self._free:
                warm = self._free.pop()
                self._busy.add(warm)
                return warm
        warm = self._sandbox.warm()
        with self._lock:
            if not self._stopped:
                self._busy.add(warm)
                return warm
        warm.close()
        raise HarnessError("grading was stopped")

    def give(self, warm: Warm) -> None:
        with self._lock:
            self._busy.discard(warm)
            self._free.append(warm)

    def drop(self, warm: Warm) -> None:
        with self._lock:
            self._busy.discard(warm)
        warm.close()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for warm in self._busy:
                warm.kill()

    def close(self) -> None:
        for warm in self._free:
            warm.close()


def _identity(job: Job) -> bytes:
    """Jobs with the same one get the same verdict."""
    code = "" if job.code is None else job.code
    return hashlib.sha256(f"{id(job.problem)} {job.problem.task_id!r} {code}".encode("utf-8", "surrogatepass")).digest()


def _job(problem: Problem, code: str) -> dict[str, Any]:
    """What the tests' process is told, as plain data. Raises HarnessError for a problem that has no tests."""
    payload = problem.payload
    # a lone surrogate cannot be part of a program, but must not end the harness either
    job: dict[str, Any] = {"code": code.encode("utf-8", "replace").decode(), "imports": ""}
    if problem.kind == "humaneval":
        return {
            **job,
            "kind": "humaneval",
            "prompt": problem.prompt_code,
            "entry_point": problem.entry_point,
            "test": payload["test"],
        }
    if problem.kind == "mbpp":
        if not payload["tests"]:
            raise HarnessError(f"problem {problem.task_id} has no tests")
        steps = [(f"test {number}", test) for number, test in enumerate(payload["tests"], start=1)]
        if payload["setup"]:  # builds what the tests use, and may need what the solution defines
            steps.insert(0, ("setup", payload["setup"]))
        imports = "\n".join(payload["imports"])
        return {**job, "kind": "mbpp", "imports": imports, "steps": steps, "shadowing": _shadowing(problem)}
    try:
        tests = livecodebench_tests(problem)
    except ValueError as error:
        raise HarnessError(f"problem {problem.task_id}: {error}") from None
    if not tests:
        raise HarnessError(f"problem {problem.task_id} has no tests")
    job |= {"imports": judge.PREAMBLE, "tests": [(test["input"], test["output"]) for test in tests]}
    if tests[0]["testtype"] == "functional":
        return {**job, "kind": "functional", "func_name": problem.entry_point}
    return {**job, "kind": "stdin"}


def _shadowing(problem: Problem) -> list[str]:
    """The builtins that the tested function may hide: its own name, or, where that is not known, what the tests call."""
    if problem.entry_point:
        return [problem.entry_point]
    called = set(re.findall(r"(?<![.\w])([A-Za-z_]\w*)\s*\(", problem.payload["tests"][0]))
    return sorted(called) if all(hasattr(builtins, name) for name in called) else []


def _printable(text: str) -> str:
    """One line for a terminal: nothing that moves the cursor, nothing that differs between runs."""
    text = re.sub(r"\b0x[0-9a-fA-F]{6,}\b", "0x...", text[: 4 * MAX_DETAIL])
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 3] + "..."
