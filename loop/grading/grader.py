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
from loop.grading.extract import given_before, why_none
from loop.grading.formats.livecodebench import livecodebench_tests
from loop.grading.formats.mbpp import _imports_of, called_names
from loop.grading.formats.plus import inputs_of, oracle_of
from loop.grading.inside import judge
from loop.grading.problem import Problem
from loop.grading.sandbox import Sandbox
from loop.grading.trying import open_sandbox
from loop.grading.warm import JudgeEnded, Running, TimedOut, TooMuchMemory, Warm

Word = Literal["passed", "failed", "timeout", "error", "no_code", "harness_error"]

MAX_DETAIL = 300
NUM_ATTEMPTS = 3
NEAR, STRETCH = 0.75, 1.25
"""From this share of its time limit on, a program is run again before a verdict stands; so long it may run at all."""
REFERENCE_TIMEOUT_S = 60.0
NUM_REMEMBERED = 1024


class Job(NamedTuple):
    """One solution to grade: the whole program, or None where the answer held none, and `why`. `key` comes back with the
    verdict.
    """

    key: Hashable
    problem: Problem
    code: str | None
    why: str = why_none("")


class Outcome(NamedTuple):
    """What one run came to; times are seconds, wall and CPU."""

    word: Word
    detail: str
    duration_s: float
    cpu_s: float


class Verdict(BaseModel):
    """What grading says. `detail` is one printable line without addresses or times, the same on every run."""

    model_config = ConfigDict(frozen=True)

    verdict: Word
    detail: str
    duration_s: float
    sandbox: str


class Grader:
    """Grades at one sandbox level; making one finds out that the sandbox works (ConfigError where it does not).

    `timeout_s` is the time of one solution with all its tests, counted from when its process is ready and without what it
    waits for a core that others use; where the problem's reference solution takes so long that `timeout_factor` times its
    time is more, that counts. `memory_bytes` is the address space of each of its processes and the memory of all of them
    together. Without `num_workers` one solution per core runs at a time.
    """

    def __init__(
        self,
        level: str = "bubblewrap",
        timeout_s: float = 10.0,
        memory_bytes: int = 1 << 30,
        num_workers: int | None = None,
        timeout_factor: float = 20.0,
    ) -> None:
        self.level = level
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self.num_workers = num_workers or len(os.sched_getaffinity(0))
        self.timeout_factor = timeout_factor
        self._sandbox = open_sandbox(level)
        self._limits: dict[tuple[str, str | None], float] = {}  # by id and reference: suites may use an id alike

    def grade(self, jobs: Iterable[Job], ahead: int | None = None) -> Iterator[tuple[Hashable, Verdict]]:
        """Yield a verdict per job, in the jobs' order, as soon as it is known.

        Jobs are taken a few at a time, so memory does not grow with their number: `ahead` before the oldest has its verdict,
        four per worker if it is not said. While `jobs` is waited for, programs go on. A harness error that stays after repeats
        is given as such: the caller's stage has failed, and nothing is known about the solution. Whoever stops early (an
        exception, a closed generator) leaves no program running.
        """
        ahead = ahead or 4 * self.num_workers
        waiting: deque[tuple[Job, Future[Verdict]]] = deque()
        same: dict[bytes, tuple[Problem, Future[Verdict]]] = {}  # of late: samples of a problem follow each other
        pools = _Pool(self._sandbox)
        threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="grade")
        try:
            for job in jobs:
                twin = _identity(job)
                if twin not in same:  # with the problem, so that no other gets the id() of one that is gone
                    same[twin] = job.problem, threads.submit(self._graded, job.problem, job.code, pools)
                waiting.append((job._replace(code=None), same[twin][1]))
                if len(same) > NUM_REMEMBERED:
                    del same[next(iter(same))]
                while waiting and (waiting[0][1].done() or len(waiting) >= ahead):
                    yield _said(*waiting.popleft())
            while waiting:
                yield _said(*waiting.popleft())
        finally:
            pools.stop()
            threads.shutdown(wait=True, cancel_futures=True)
            pools.close()

    def grade_one(self, problem: Problem, code: str | None) -> Verdict:
        """The verdict on one solution. Never raises, whatever the solution does."""
        ((_, verdict),) = self.grade([Job(None, problem, code)])
        return verdict

    def _graded(self, problem: Problem, code: str | None, pool: _Pool) -> Verdict:
        outcome = Outcome("no_code", why_none(""), 0.0, 0.0)
        if code is not None and code.strip():
            try:
                outcome = self._decided(problem, code, pool)
            except (HarnessError, OSError) as error:
                outcome = Outcome("harness_error", str(error), 0.0, 0.0)
        return Verdict(
            verdict=outcome.word,
            detail=_printable(outcome.detail),
            duration_s=round(outcome.duration_s, 6),
            sandbox=self.level,
        )

    def _decided(self, problem: Problem, code: str, pool: _Pool) -> Outcome:
        """An outcome that another day would give too: what comes near the limit is run again before it stands."""
        limit_s = self._limits.get((problem.task_id, problem.reference), self.timeout_s)
        outcome = self._tried(problem, code, pool, limit_s)
        if outcome.duration_s <= NEAR * limit_s:
            return outcome
        if (longer_s := self._limit_for(problem, pool)) > limit_s:
            limit_s, outcome = longer_s, self._tried(problem, code, pool, longer_s)
        if outcome.word == "timeout" and outcome.cpu_s < limit_s / 2:  # it waited, or the machine had no time for it
            outcome = self._tried(problem, code, pool, limit_s)
        elif outcome.word != "timeout" and outcome.duration_s > NEAR * limit_s:
            again = [outcome, *(self._tried(problem, code, pool, limit_s) for _ in range(2))]
            outcome = sorted(again, key=lambda one: one.duration_s)[1]
        if outcome.word != "timeout" and outcome.duration_s <= limit_s:
            return outcome
        return outcome._replace(
            word="timeout", detail=outcome.detail if outcome.word == "timeout" else _too_late(limit_s)
        )

    def _limit_for(self, problem: Problem, pool: _Pool) -> float:
        """`timeout_s`, or `timeout_factor` times what the reference solution takes here and now. Measured once."""
        which = problem.task_id, problem.reference
        if which in self._limits:
            return self._limits[which]
        limit_s = self.timeout_s
        if problem.reference is not None:
            reference = self._tried(problem, problem.reference, pool, REFERENCE_TIMEOUT_S)
            if reference.word == "passed":
                limit_s = max(limit_s, self.timeout_factor * reference.duration_s)
        self._limits[which] = limit_s
        return limit_s

    def _tried(self, problem: Problem, code: str, pool: _Pool, limit_s: float) -> Outcome:
        """One run, again if the harness failed. Raises HarnessError when it fails each time."""
        failure: Exception | None = None
        for _ in range(NUM_ATTEMPTS):
            try:
                return self._run(problem, code, pool, limit_s)
            except (JudgeEnded, HarnessError, OSError) as error:
                failure = error
        if isinstance(failure, JudgeEnded):  # each time, beside a sandbox that is well: values that no test can bear
            return Outcome("error", str(failure), 0.0, 0.0)
        raise HarnessError(str(failure))

    def _run(self, problem: Problem, code: str, pool: _Pool, limit_s: float) -> Outcome:
        warm = pool.take(problem)
        # a lone surrogate cannot be part of a program, but must not end the harness either
        code = code.encode("utf-8", "replace").decode()
        at_most_s = STRETCH * limit_s  # to tell a program that is a little late from one that never ends
        try:
            with warm.run(problem, lambda: _tests(problem), code, at_most_s, self.memory_bytes) as running:
                word, detail = self._judged(running, limit_s)
                outcome = Outcome(word, detail, running.elapsed_s(), running.ended().cpu_s)
        except BaseException:
            pool.drop(warm)
            raise
        pool.give(warm)
        return outcome

    def _judged(self, running: Running, limit_s: float) -> tuple[Word, str]:
        try:
            said = running.verdict()
        except TimedOut:
            return "timeout", _too_late(limit_s)
        except TooMuchMemory:
            return "error", f"used more than {self.memory_bytes >> 20} MiB of memory"
        if not said["ended"]:
            return said["verdict"], said["detail"]
        end = running.ended(wait=True)
        if end.status == -24 or (end.status == -9 and end.cpu_s >= limit_s):
            return "timeout", "used up its CPU time"
        if end.status is not None and end.status < 0:
            return "error", f"killed by signal {-end.status} before the last test was done"
        return "error", said["detail"]


def _too_late(limit_s: float) -> str:
    return f"not finished after {limit_s:.3g} s"


class _Pool:
    """The warm sandboxes of one call of `grade`, which can all be ended at once."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._lock = threading.Lock()
        self._free: list[Warm] = []
        self._busy: set[Warm] = set()
        cores = sorted(os.sched_getaffinity(0))
        first = os.getpid() % len(cores)  # two runs on one machine need not begin with the same one
        self._num_on = dict.fromkeys(cores[first:] + cores[:first], 0)  # sandboxes by core
        self._stopped = False

    def take(self, problem: Problem) -> Warm:
        """One that is free, if there is one; rather one that knows the problem."""
        with self._lock:
            if self._stopped:
                raise HarnessError("grading was stopped")
            if self._free:
                warm = next((warm for warm in self._free if warm.problem is problem), self._free[0])
                self._free.remove(warm)
                self._busy.add(warm)
                return warm
            core = min(self._num_on, key=self._num_on.__getitem__)
            self._num_on[core] += 1
        try:
            warm = Warm(self._sandbox, core)
        except BaseException:
            self._left(core)
            raise
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
        self._left(warm.core)
        warm.close()

    def _left(self, core: int) -> None:
        with self._lock:
            self._num_on[core] -= 1

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for warm in self._busy:
                warm.kill()

    def close(self) -> None:
        for warm in self._free:
            warm.close()


def _said(job: Job, future: Future[Verdict]) -> tuple[Hashable, Verdict]:
    verdict = future.result()
    return job.key, verdict.model_copy(update={"detail": job.why}) if verdict.verdict == "no_code" else verdict


def _identity(job: Job) -> bytes:
    """Jobs with the same one get the same verdict."""
    code = "" if job.code is None else job.code
    return hashlib.sha256(f"{id(job.problem)} {job.problem.task_id!r} {code}".encode("utf-8", "surrogatepass")).digest()


def _tests(problem: Problem) -> dict[str, Any]:
    """What the tests' process is told, as plain data. Raises HarnessError for a problem that has no tests.

    `called` names what a solution has to define; `imports` run before it, and `before` is the beginning that it may have from
    the prompt: neither counts as its own.
    """
    payload = problem.payload
    names = {"imports": "", "before": _offering(problem), "called": [problem.entry_point]}
    if problem.kind == "humaneval":
        return {**names, "kind": "humaneval", "prompt": problem.prompt_code, "test": payload["test"]}
    if problem.kind == "mbpp":
        if not payload["tests"]:
            raise HarnessError(f"problem {problem.task_id} has no tests")
        steps = [(f"test {number}", test) for number, test in enumerate(payload["tests"], start=1)]
        if payload["setup"]:  # builds what the tests use, and may need what the solution defines
            steps.insert(0, ("setup", payload["setup"]))
        imports = "\n".join([*payload["imports"], *_imports_of(payload["setup"])])
        return {**names, "kind": "mbpp", "imports": imports, "steps": steps, "called": _called(problem)}
    if problem.kind == "plus":
        inputs = inputs_of(problem.task_id, payload)
        if not any(inputs.values()):
            raise HarnessError(f"problem {problem.task_id} has no tests")
        oracle = oracle_of(problem.task_id, problem.entry_point)
        calls = {"program": payload["program"], "inputs": inputs, "atol": payload["atol"], "oracle": oracle}
        return {**names, "kind": "plus", **calls}
    try:
        tests = livecodebench_tests(problem)
    except ValueError as error:
        raise HarnessError(f"problem {problem.task_id}: {error}") from None
    if not tests:
        raise HarnessError(f"problem {problem.task_id} has no tests")
    pairs = [(test["input"], test["output"]) for test in tests]
    return {**names, "kind": tests[0]["testtype"], "imports": judge.PREAMBLE, "tests": pairs}


def _offering(problem: Problem) -> str:
    """What HumanEval's prompt has before its function, where that might bind the function's name, too."""
    before = given_before(problem)
    return before if re.search(rf"\b{problem.entry_point}\b|import\s*\*", before) else ""


def _called(problem: Problem) -> list[str]:
    """MBPP: the tested function, which may be named like a builtin; where its name is not known, the builtins that are called."""
    if problem.entry_point:
        return [problem.entry_point]
    called = set(called_names(problem.payload["tests"][0]))
    return sorted(called) if all(hasattr(builtins, name) for name in called) else []


def _printable(text: str) -> str:
    """One line for a terminal: nothing that moves the cursor, nothing that differs between runs."""
    text = re.sub(r"\b0x[0-9a-fA-F]{6,}\b", "0x...", text[: 4 * MAX_DETAIL])
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 3] + "..."
