"""Grades solutions: each in a sandboxed interpreter of its own, several at a time, verdicts in the order of the jobs.

HumanEval and MBPP tests are code and run beside the solution, so `passed` needs a random word that the runner says after
the last test; a value that claims to equal everything, or a program that walks frames to the word, can still forge it.
LiveCodeBench answers are compared here, out of reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from loop.errors import HarnessError
from loop.grading.problems import Problem, livecodebench_tests
from loop.grading.sandbox import Running, Sandbox, TimedOut, TooMuchSaid

Word = Literal["passed", "failed", "timeout", "error", "no_code", "harness_error"]

MAX_DETAIL = 300
NUM_ATTEMPTS = 3

_SAID = {"passed", "failed", "timeout", "error", "done"}
# LiveCodeBench runs every solution after these lines.
_STARS = ["string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"]
_STARS += ["itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"]
_PREAMBLE = "\n".join(
    [f"from {name} import *" for name in _STARS]
    + [f"import {name}" for name in _STARS[:-2]]
    + ["sys.setrecursionlimit(50000)", ""]
)


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

    `timeout_s` is the wall time of one solution with all its tests, counted from when its interpreter is ready;
    `memory_bytes` is its address space. Without `num_workers` one solution per core runs at a time.
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

        Jobs are taken a few at a time, so memory does not grow with their number. A harness error that stays after
        repeats is given as such: the caller's stage has failed, and nothing is known about the solution. Whoever stops
        early (an exception, a closed generator) leaves no program running.
        """
        waiting: deque[tuple[Hashable, Future[Verdict]]] = deque()
        live = _Live()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="grade")
        try:
            for job in jobs:
                waiting.append((job.key, pool.submit(self.grade_one, job.problem, job.code, live)))
                while waiting and (waiting[0][1].done() or len(waiting) >= 4 * self.num_workers):
                    key, future = waiting.popleft()
                    yield key, future.result()
            while waiting:
                key, future = waiting.popleft()
                yield key, future.result()
        finally:
            live.stop()
            pool.shutdown(wait=True, cancel_futures=True)

    def grade_one(self, problem: Problem, code: str | None, live: _Live | None = None) -> Verdict:
        """The verdict on one solution. Never raises, whatever the solution does."""
        word: Word = "harness_error"
        detail, duration_s = "grading was stopped", 0.0
        if code is None or not code.strip():
            word, detail = "no_code", "the answer holds no code"
        else:
            for _ in range(NUM_ATTEMPTS):
                try:
                    word, detail, duration_s = self._run(problem, code, live or _Live())
                    break
                except (HarnessError, OSError) as error:
                    detail = str(error)
        return Verdict(verdict=word, detail=_printable(detail), duration_s=round(duration_s, 6), sandbox=self.level)

    def _run(self, problem: Problem, code: str, live: _Live) -> tuple[Word, str, float]:
        nonce = secrets.token_hex(16)
        job, expected = _job(problem, code, nonce)
        max_bytes = 100_000 + sum(100_000 + 50 * len(answer) for answer in expected)  # as JSON, and wrong ones as well
        with self._sandbox.start(job, self.timeout_s, self.memory_bytes) as running, live.holding(running):
            try:
                word, detail = _judge(running, expected, job["kind"], nonce, max_bytes)
            except TimedOut:
                word, detail = "timeout", f"not finished after {self.timeout_s:g} s"
            except TooMuchSaid:
                word, detail = "error", "the program said too much"
            return word, detail, running.elapsed_s()


class _Live:
    """What one call of `grade` has running, so that it can be ended at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Running] = set()
        self._stopped = False

    @contextlib.contextmanager
    def holding(self, running: Running) -> Iterator[None]:
        with self._lock:
            if self._stopped:
                raise HarnessError("grading was stopped")
            self._running.add(running)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(running)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for running in self._running:
                running.kill()


def _job(problem: Problem, code: str, nonce: str) -> tuple[dict[str, Any], list[str]]:
    """What the runner is told, and the answers that it is not told (LiveCodeBench)."""
    # a lone surrogate cannot be part of a program, but must not end the harness either
    job: dict[str, Any] = {"code": code.encode("utf-8", "replace").decode(), "imports": "", "nonce": nonce}
    payload = problem.payload
    if problem.kind == "humaneval":
        check = f"{payload['test']}\n\ncheck({problem.entry_point})\n"
        return {**job, "kind": "tests", "tests": [("check", check)]}, []
    if problem.kind == "mbpp":
        if not payload["tests"]:
            raise HarnessError(f"problem {problem.task_id} has no tests")
        steps = [(f"test {number}", test) for number, test in enumerate(payload["tests"], start=1)]
        if payload["setup"]:  # builds what the tests use, and may need what the solution defines
            steps.insert(0, ("setup", payload["setup"]))
        return {**job, "kind": "tests", "imports": "\n".join(payload["imports"]), "tests": steps}, []
    try:
        tests = livecodebench_tests(problem)
    except ValueError as error:
        raise HarnessError(f"problem {problem.task_id}: {error}") from None
    if not tests:
        raise HarnessError(f"problem {problem.task_id} has no tests")
    expected = [test["output"] for test in tests]
    job |= {"imports": _PREAMBLE, "inputs": [test["input"] for test in tests]}
    if tests[0]["testtype"] == "functional":
        return {**job, "kind": "functional", "func_name": problem.entry_point}, expected
    # rounded up, so that a program learns little about its answers from where it is cut off
    max_outputs = [1 << max(13, (2 * len(answer)).bit_length()) for answer in expected]
    return {**job, "kind": "stdin", "max_outputs": max_outputs}, expected


def _judge(running: Running, expected: list[str], kind: str, nonce: str, max_bytes: int) -> tuple[Word, str]:
    """Read what the runner says until it decides."""
    num_right = 0
    for line in running.lines(max_bytes):
        verb, _, rest = line.partition(" ")
        word, _, text = rest.partition(" ")
        if verb == "verdict" and word in _SAID:
            if word == "passed":
                right = not expected and secrets.compare_digest(text.encode(), nonce.encode())
                return ("passed", "") if right else ("error", "the program spoke in the harness's name")
            if word == "done":
                break
            return word, text  # type: ignore[return-value]
        if verb == "result" and word == str(num_right) and num_right < len(expected):
            reason = _difference(text, expected[num_right], kind)
            if reason:
                return "failed", f"test {num_right + 1}: {reason}"
            num_right += 1
            continue
        return "error", "the program spoke in the harness's name"
    if expected and num_right == len(expected):
        return "passed", ""
    if running.status == -24:
        return "timeout", "used up its CPU time"
    if running.status is not None and running.status < 0:
        return "error", f"killed by signal {-running.status} before the last test was done"
    return "error", "ended before the last test was done"


def _difference(said: str, expected: str, kind: str) -> str:
    """Why a LiveCodeBench answer is wrong, or "" when it is right."""
    try:
        value = json.loads(said)
        if kind == "stdin":
            return "" if same_output(str(value), expected) else "wrong answer"
        answer = json.loads(expected)
        value = _restored(value)
        value = list(value) if isinstance(value, tuple) else value  # as LiveCodeBench does, at the top only
        return "" if type(value) is not _Other and bool(value == answer) else "wrong answer"
    except (ValueError, TypeError, RecursionError):
        return "wrong answer"


class _Other:
    """A value of a type that no answer in JSON has; equal to nothing."""


def _restored(value: Any) -> Any:
    """The value that the runner described: tuples apart from lists, other types equal to nothing."""
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("tuple"), list):
        return tuple(_restored(item) for item in value["tuple"])
    if isinstance(value.get("dict"), list):
        return {_restored(key): _restored(item) for key, item in value["dict"]}
    return _Other()


def same_output(output: str, expected: str) -> bool:
    """LiveCodeBench's comparison: line by line, blanks at the ends ignored, decimals equal when both lines are numbers."""
    lines, wanted = _stripped(output), _stripped(expected)
    return len(lines) == len(wanted) and all(
        line == other or _same_decimals(line, other) for line, other in zip(lines, wanted, strict=True)
    )


def _stripped(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_decimals(line: str, other: str) -> bool:
    words, wanted = line.split(), other.split()
    if len(words) != len(wanted) or max(map(len, words + wanted), default=0) > 4000:
        return False
    try:
        return all(Decimal(word) == Decimal(target) for word, target in zip(words, wanted, strict=True))
    except InvalidOperation:
        return False


def _printable(text: str) -> str:
    """One line for a terminal: nothing that moves the cursor, nothing that differs between runs."""
    text = re.sub(r"\b0x[0-9a-fA-F]{6,}\b", "0x...", text[: 4 * MAX_DETAIL])
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 3] + "..."
