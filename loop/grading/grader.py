"""Grades solutions, each in a sandboxed process of its own and several at a time, with verdicts in the order of the jobs.

A solution never shares a process with its tests or their answers: it is asked for plain values (`values.py`), and a process
of ours runs the tests on them (`judge.py`). Sandboxes stay warm while `grade` runs; of equal programs only the first is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import marshal
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from loop.errors import HarnessError
from loop.grading.extract import why_none
from loop.grading.formats import asks_for_text, is_of_repository, judge_job, verdict_on_text
from loop.grading.problem import Problem
from loop.grading.repositories import RepositoryWarm
from loop.grading.sandbox import Sandbox
from loop.grading.warm import JudgeEnded, Running, TimedOut, TooMuchMemory, Warm
from loop.grading.working_sandbox import open_sandbox
from loop.words import one_line

Word = Literal["passed", "failed", "timeout", "error", "no_code", "harness_error"]

MAX_DETAIL = 300
NUM_ATTEMPTS = 3
REPEAT_FROM = 0.75
"""A run that took more than this share of its limit is repeated before a verdict stands."""
KILL_AT = 1.25
"""A run is killed at this multiple of its limit."""
REFERENCE_TIMEOUT_S = 60.0
NUM_REMEMBERED = 1024
"""How many of the latest programs are compared with a new one."""
NUM_AHEAD = 256
"""By default so many jobs per worker wait for their verdicts, so that a program that takes long holds up no other."""
NUM_TAKEN = 4
"""So many jobs per worker are taken from others who grade, too."""
MAX_ANSWERS_BYTES = 256 << 20
"""Of the answers of canonical solutions that are kept for other workers and for later gradings."""
STOLEN_FROM = 4
"""Where so many programs of one problem of a repository wait, a second worker prepares for it, too, which takes seconds."""
LOOK_S = 0.25
"""Seconds between two looks whether there are more jobs to take, while programs run."""


class Job(NamedTuple):
    """A program to grade. `code` is None where the answer held none, for the reason `why`; `key` comes back with the verdict."""

    key: Hashable
    problem: Problem
    code: str | None
    why: str = why_none("")


class Outcome(NamedTuple):
    """The result of one run, with its wall time and its CPU time in seconds."""

    word: Word
    detail: str
    duration_s: float
    cpu_s: float


class Verdict(BaseModel):
    """The verdict on a solution. `detail` is one printable line without addresses or times, the same on every run."""

    model_config = ConfigDict(frozen=True)

    verdict: Word
    detail: str
    duration_s: float
    sandbox: str


class Graded(Verdict):
    """The verdict on the program of this number, as it comes from another process."""

    id: int


class Grades(Protocol):
    """Whoever grades: a `Grader`, or this machine's and those of other machines together (`loop.workers.graders`)."""

    def grade(self, jobs: Iterable[Job], ahead: int | None = None) -> Iterator[tuple[Hashable, Verdict]]:
        """Yield a verdict per job, in the jobs' order. See `Grader.grade`."""


class Grader:
    """Grades at one sandbox level. Raises ConfigError if that sandbox does not work on this machine.

    `timeout_s` limits one solution with all its tests. The time counts from when its process is ready, without what it waits
    for a core that others use. Where `timeout_factor` times the time of the problem's reference solution is more, that is
    the limit. `memory_bytes` limits the address space of each of its processes and the memory of all of them together.
    `num_workers` solutions run at a time, by default one per core.
    """

    def __init__(
        self,
        level: str = "bubblewrap",
        timeout_s: float = 10.0,
        memory_bytes: int = 1 << 30,
        num_workers: int | None = None,
        timeout_factor: float = 20.0,
    ) -> None:
        self.level, self.memory_bytes = level, memory_bytes
        self.timeout_s, self.timeout_factor = timeout_s, timeout_factor
        self.num_workers = num_workers or len(os.sched_getaffinity(0))
        self._sandbox = open_sandbox(level)
        self._limits: dict[tuple[str, str | None], float] = {}  # by id and reference: two suites may use the same id

    def grade(self, jobs: Iterable[Job], ahead: int | None = None) -> Iterator[tuple[Hashable, Verdict]]:
        """Yield a verdict per job, in the jobs' order, as soon as it is known.

        Jobs are taken a few at a time, so memory does not grow with their number: at most `ahead`, by default 256 per worker,
        wait for their verdicts. Programs keep running while this waits for the next job. A harness error that remains after
        repeats is a verdict, too: the caller's stage has failed, and nothing is known about the solution. A caller that stops
        early (an exception, a closed generator) leaves no program running.
        """
        with self._opened() as submit:
            yield from in_order(jobs, ahead or NUM_AHEAD * self.num_workers, submit)

    def grade_taken(
        self, take: Callable[[int, bool], Sequence[Job]]
    ) -> Generator[list[tuple[Hashable, Verdict]], None, None]:
        """Yield verdicts as soon as they are known, in any order: a list several times a second, which may be empty.

        `take` is asked for at most so many jobs as there is room for them. While programs run it need not have any; otherwise
        it is told True and waits, and none means that there will be no more. Stopping early is as with `grade`.
        """
        most = NUM_TAKEN * self.num_workers
        running: dict[Future[Verdict], Hashable] = {}
        with self._opened() as submit:
            while True:
                room = most - len(running)
                for job in take(room if 2 * room >= most else 0, not running):  # each question brings several
                    running[submit(job)] = job.key
                if not running:
                    return
                done, _ = wait(running, LOOK_S, FIRST_COMPLETED)
                yield [(running.pop(future), future.result()) for future in done]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Callable[[Job], Future[Verdict]]]:
        """What has a program graded. At the end of the context none runs any more."""
        pool = _Pool(self._sandbox, self.num_workers)
        threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="grade")
        waiting = _Waiting()

        def work() -> None:
            for problem, code, future in waiting.of_this_thread():
                try:
                    future.set_result(self._graded(problem, code, pool))
                except BaseException as error:
                    future.set_exception(error)

        def submit(job: Job) -> Future[Verdict]:
            future = waiting.add(job)
            threads.submit(work)
            return future

        try:
            yield submit
        finally:
            waiting.clear()
            pool.stop()
            threads.shutdown(wait=True, cancel_futures=True)
            pool.close()

    @property
    def words(self) -> str:
        """The sandbox, as people are told of it."""
        return self._sandbox.words

    def grade_one(self, problem: Problem, code: str | None) -> Verdict:
        """The verdict on one solution. Never raises, whatever the solution does."""
        ((_, verdict),) = self.grade([Job(None, problem, code)])
        return verdict

    def _graded(self, problem: Problem, code: str | None, pool: _Pool) -> Verdict:
        word, detail, duration_s, _ = Outcome("no_code", why_none(""), 0.0, 0.0)
        if asks_for_text(problem):
            word, detail = verdict_on_text(problem, code or "")
        elif code is not None and code.strip():
            try:
                word, detail, duration_s, _ = self._decided(problem, code, pool)
            except (HarnessError, OSError) as error:
                word, detail = "harness_error", str(error)
        return Verdict(verdict=word, detail=_printable(detail), duration_s=round(duration_s, 6), sandbox=self.level)

    def _decided(self, problem: Problem, code: str, pool: _Pool) -> Outcome:
        """Run a solution; if it comes near the limit, run it again, so that the load of the machine does not decide."""
        limit_s = self._limits.get((problem.task_id, problem.reference), self.timeout_s)
        outcome = self._tried(problem, code, pool, limit_s)
        if outcome.duration_s <= REPEAT_FROM * limit_s:
            return outcome
        if (longer_s := self._limit_for(problem, pool)) > limit_s:
            limit_s, outcome = longer_s, self._tried(problem, code, pool, longer_s)
        if outcome.word == "timeout" and outcome.cpu_s < limit_s / 2:  # it slept, or the machine had no time for it
            outcome = self._tried(problem, code, pool, limit_s)
        elif outcome.word != "timeout" and outcome.duration_s > REPEAT_FROM * limit_s:
            again = [outcome, *(self._tried(problem, code, pool, limit_s) for _ in range(2))]
            outcome = sorted(again, key=lambda run: run.duration_s)[1]
        if outcome.word != "timeout" and outcome.duration_s > limit_s:
            return outcome._replace(word="timeout", detail=_too_late(limit_s))
        return outcome

    def _limit_for(self, problem: Problem, pool: _Pool) -> float:
        """`timeout_s`, or `timeout_factor` times what the reference solution takes on this machine. Measured once."""
        which = problem.task_id, problem.reference
        if which not in self._limits:
            limit_s = self.timeout_s
            if problem.reference is not None:
                reference = self._tried(problem, problem.reference, pool, REFERENCE_TIMEOUT_S)
                if reference.word == "passed":
                    limit_s = max(limit_s, self.timeout_factor * reference.duration_s)
            self._limits[which] = limit_s
        return self._limits[which]

    def _tried(self, problem: Problem, code: str, pool: _Pool, limit_s: float) -> Outcome:
        """One run, repeated if the harness failed. Raises HarnessError if it fails each time."""
        failure: Exception | None = None
        for _ in range(NUM_ATTEMPTS):
            try:
                return self._run(problem, code, pool, limit_s)
            except (JudgeEnded, HarnessError, OSError) as error:
                failure = error
        if isinstance(failure, JudgeEnded):  # the sandbox works, so the program's values end the tests' process
            return Outcome("error", str(failure), 0.0, 0.0)
        raise HarnessError(str(failure))

    def _run(self, problem: Problem, code: str, pool: _Pool, limit_s: float) -> Outcome:
        # a lone surrogate cannot be part of a program, but must not end the harness either
        code = code.encode("utf-8", "replace").decode()
        at_most_s = KILL_AT * limit_s  # to tell a program that is a little late from one that never ends
        with (
            pool.warm_for(problem) as warm,
            warm.run(problem, lambda: _judge_job(problem), code, at_most_s, self.memory_bytes) as running,
        ):
            if running.answers is not None:
                _ANSWERS.keep(problem, bytes.fromhex(running.answers))
            word, detail = self._judged(running, limit_s)
            return Outcome(word, detail, running.elapsed_s(), running.ended().cpu_s)

    def _judged(self, running: Running, limit_s: float) -> tuple[Word, str]:
        try:
            verdict = running.verdict()
        except TimedOut:
            return "timeout", _too_late(limit_s)
        except TooMuchMemory:
            return "error", f"used more than {self.memory_bytes >> 20} MiB of memory"
        if not verdict["ended"]:
            return verdict["verdict"], verdict["detail"]
        end = running.ended(wait=True)
        if end.status == -24 or (end.status == -9 and end.cpu_s >= limit_s):
            return "timeout", "used up its CPU time"
        if end.status is not None and end.status < 0:
            return "error", f"killed by signal {-end.status} before the last test was done"
        return "error", verdict["detail"]


def in_order(
    jobs: Iterable[Job], ahead: int, submit: Callable[[Job], Future[Verdict]]
) -> Iterator[tuple[Hashable, Verdict]]:
    """The verdicts on jobs, in their order, of which at most `ahead` wait. Of equal programs only the first is submitted."""
    waiting: deque[tuple[Job, Future[Verdict]]] = deque()
    # Equal programs are samples of one problem, which follow each other closely.
    recent: dict[bytes, tuple[Problem, Future[Verdict]]] = {}
    for job in jobs:
        identity = _identity(job)
        if identity not in recent:  # the problem is kept, so that no other can get its id()
            recent[identity] = job.problem, submit(job)
        waiting.append((job._replace(code=None), recent[identity][1]))
        if len(recent) > NUM_REMEMBERED:
            del recent[next(iter(recent))]
        while waiting and (waiting[0][1].done() or len(waiting) >= ahead):
            yield _result(*waiting.popleft())
    while waiting:
        yield _result(*waiting.popleft())


def _too_late(limit_s: float) -> str:
    return f"not finished after {limit_s:.3g} s"


class _Answers:
    """What canonical solutions answered, by a hash of their problem's content; the oldest go first where there are too many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, bytes] = {}
        self._size = 0

    def of(self, problem: Problem) -> bytes | None:
        with self._lock:
            return self._kept.get(_content(problem))

    def keep(self, problem: Problem, answers: bytes) -> None:
        with self._lock:
            if self._kept.setdefault(_content(problem), answers) is answers:
                self._size += len(answers)
            while self._size > MAX_ANSWERS_BYTES:
                self._size -= len(self._kept.pop(next(iter(self._kept))))


_ANSWERS = _Answers()


def _content(problem: Problem) -> str:
    return hashlib.sha256(json.dumps([problem.kind, problem.payload]).encode()).hexdigest()


def _judge_job(problem: Problem) -> dict[str, Any]:
    """What the tests' process is told, with the canonical solution's answers if they are known."""
    job = judge_job(problem)
    answers = _ANSWERS.of(problem)
    return job if answers is None else {**job, "answers": marshal.loads(answers)}


class _Waiting:
    """Jobs that wait for a worker, by problem. To begin with another problem costs a worker time, so each stays with its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[int, deque[tuple[Problem, str | None, Future[Verdict]]]] = {}  # by id() of the problem
        self._workers: Counter[int] = Counter()  # at each problem

    def add(self, job: Job) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        with self._lock:
            self._jobs.setdefault(id(job.problem), deque()).append((job.problem, job.code, future))
        return future

    def of_this_thread(self) -> Iterator[tuple[Problem, str | None, Future[Verdict]]]:
        """Jobs for this worker, as long as there are some that no other worker is to do."""
        mine = None
        while True:
            with self._lock:
                if mine is not None:
                    self._workers[mine] -= 1
                mine = self._chosen(mine)
                if mine is None:
                    return
                self._workers[mine] += 1
                job = self._jobs[mine].popleft()
                if not self._jobs[mine]:
                    del self._jobs[mine]
            yield job

    def _chosen(self, mine: int | None) -> int | None:
        if mine in self._jobs:
            return mine
        free = next((which for which in self._jobs if not self._workers[which]), None)
        if free is not None:
            return free
        most = max(self._jobs, key=lambda which: len(self._jobs[which]), default=None)
        if most is None or (is_of_repository(self._jobs[most][0][0]) and len(self._jobs[most]) < STOLEN_FROM):
            return None
        return most

    def clear(self) -> None:
        with self._lock:
            self._jobs.clear()


class _Pool:
    """The warm sandboxes of one call of `grade`, one for each of its threads, which can all be ended at once."""

    def __init__(self, sandbox: Sandbox, num_workers: int) -> None:
        self._sandbox = sandbox
        self._lock = threading.Lock()
        cores = sorted(os.sched_getaffinity(0))
        first = os.getpid()  # so that two runs on one machine begin with different cores
        self._cores = [cores[number % len(cores)] for number in range(first, first + num_workers)]
        self._own: dict[
            int, tuple[int, Warm | None]
        ] = {}  # by thread: a core, and the sandbox on it once it has been started
        self._busy: set[Warm] = set()
        self._stopped = False

    @contextlib.contextmanager
    def warm_for(self, problem: Problem) -> Iterator[Warm]:
        """This thread's sandbox, or a new one. It is closed if its use fails."""
        with self._lock:
            if self._stopped:
                raise HarnessError("grading was stopped")
            me = threading.get_ident()
            core, warm = self._own.setdefault(me, (self._cores[len(self._own) % len(self._cores)], None))
        failed = True
        try:
            warm = self._fit(warm, problem, core)
            with self._lock:
                self._busy.add(warm)
                if self._stopped:  # in the meantime
                    warm.kill()
            yield warm
            failed = False
        finally:
            with self._lock:
                self._busy -= {warm}
                self._own[me] = core, None if failed else warm
            if failed and warm:
                warm.close()

    def _fit(self, warm: Warm | None, problem: Problem, core: int) -> Warm:
        """The sandbox if the problem can use it, else another."""
        if is_of_repository(problem):
            same = isinstance(warm, RepositoryWarm) and warm.problem is problem and warm.usable
            return warm if warm is not None and same else RepositoryWarm(problem, core, warm)
        if isinstance(warm, RepositoryWarm):
            warm.close()
            warm = None
        return warm or Warm(self._sandbox, core)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for warm in self._busy:
                warm.kill()

    def close(self) -> None:
        for _, warm in self._own.values():
            if warm:
                warm.close()


def _result(job: Job, future: Future[Verdict]) -> tuple[Hashable, Verdict]:
    verdict = future.result()
    return job.key, verdict.model_copy(update={"detail": job.why}) if verdict.detail == why_none("") else verdict


def _identity(job: Job) -> bytes:
    """Jobs of equal identity get the same verdict."""
    text = f"{id(job.problem)} {job.problem.task_id!r} {job.code or ''}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _printable(text: str) -> str:
    """One line that is safe in a terminal and the same on every run: without control characters and addresses."""
    return one_line(re.sub(r"\b0x[0-9a-fA-F]{6,}\b", "0x...", text[: 4 * MAX_DETAIL]), MAX_DETAIL)
