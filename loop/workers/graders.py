"""Grading on the nodes of a cluster beside this machine: the same `Grader` in a worker on each, at the same level of sandbox.

All take programs from one queue, each as many as it has room for. This machine is always among them, so that the loss of a
node costs time only, and has the last word: what a node cannot grade it grades itself.
"""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loop.config.machine import Grading
from loop.errors import ConfigError, EngineError, HarnessError
from loop.grading.grader import NUM_TAKEN, Graded, Grader, Job, Verdict, in_order
from loop.grading.problem import Problem
from loop.workers.cluster import Hub, Node
from loop.workers.frames import PIECE_BYTES
from loop.workers.nodes import HEARTBEAT_TIMEOUT_S
from loop.workers.worker import Worker

# Starts the worker of a node; called in the worker's own thread, with a number that no other node has, and the pulse.
Start = Callable[[Node, int, Callable[[], None]], Worker]


class _GivenUp(Exception):
    """Raised inside a call to a worker when its verdicts are not wanted any more."""


@dataclass(eq=False)
class _Program:
    job: Job
    verdict: Future[Verdict] = field(default_factory=Future)


class _Work:
    """The programs of one call, as graders take them. Near the end they take few at a time, so that all end together."""

    def __init__(self, num_graders: int) -> None:
        self.num_graders = num_graders
        self.waiting: deque[_Program] = deque()
        self.for_here: deque[_Program] = deque()  # that no node is to have any more
        self.unknown: set[_Program] = set()  # without a verdict
        self.is_whole = self.is_over = self.is_given_up = False  # no more programs come; nothing is to be done any more
        self.failure: BaseException | None = None
        self.changed = threading.Condition()

    def all_of(self, jobs: Iterable[Job]) -> Iterator[Job]:
        yield from jobs
        self.is_whole = True

    def submit(self, job: Job) -> Future[Verdict]:
        program = _Program(job)
        with self.changed:
            if self.failure:
                raise self.failure
            self.unknown.add(program)
            self.waiting.append(program)
            self.changed.notify_all()
        return program.verdict

    def take(self, num: int) -> list[_Program]:
        """At most so many for a node."""
        with self.changed:
            return self._taken(self.waiting, num)

    def take_here(self, num: int, wait: bool) -> list[Job]:
        """The same for this machine, as `Grader.grade_taken` wants it. The key of a job is its program."""
        with self.changed:
            if wait:
                self.changed.wait_for(lambda: self.is_over or self.for_here or self.waiting)
            taken = self._taken(self.for_here or self.waiting, num)
        return [program.job._replace(key=program) for program in taken]

    def _taken(self, programs: deque[_Program], num: int) -> list[_Program]:
        share = -(-len(programs) // self.num_graders)
        return [programs.popleft() for _ in range(min(num, share))]

    @property
    def is_handed_out(self) -> bool:
        """Whether a node that has nothing is not needed any more."""
        return self.is_whole and not self.waiting

    def finish(self, program: _Program, verdict: Verdict) -> None:
        with self.changed:
            self.unknown.discard(program)
            if not program.verdict.done():  # the whole work may have failed
                program.verdict.set_result(verdict)

    def give_back(self, programs: Collection[_Program]) -> None:
        """Others are to grade these."""
        with self.changed:
            if not self.is_over:
                self.waiting.extendleft(reversed([*programs]))
                self.changed.notify_all()

    def give_to_this_machine(self, program: _Program) -> None:
        with self.changed:
            self.for_here.append(program)
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Nobody can go on: whoever waits for a verdict gets the error."""
        with self.changed:
            self.failure = error
            for program in self.unknown:
                if not program.verdict.done():
                    program.verdict.set_exception(error)

    def end(self) -> None:
        """No verdict is wanted any more. What has none yet is given up."""
        with self.changed:
            self.is_over, self.is_given_up = True, bool(self.unknown)
            self.waiting.clear()
            self.for_here.clear()
            self.changed.notify_all()


class _Member:
    """A node that grades, and the thread in which its worker lives. `worker` is None while none runs; only the thread sets it."""

    def __init__(self, number: int, node: Node, level: str, start: Start, say: Callable[[str], None]) -> None:
        self.number, self.node, self.level, self.start, self.say = number, node, level, start, say
        self.worker: Worker | None = None
        self.is_left_out = self.is_closed = False
        self.work: _Work | None = None
        self.thread = ThreadPoolExecutor(1, f"grader-{number}")

    @property
    def num_workers(self) -> int:
        return int(self.node.num_cpus)

    def grade(self, work: _Work) -> None:
        """Take part in a call until all its programs are taken."""
        self.work, held = work, dict[int, _Program]()
        try:
            if self.worker is None or self.worker.ended or self.worker.process.poll() is not None:
                self._end()
                self.worker = self.start(self.node, self.number, self._check)
            if not work.is_over:
                self._grade(self.worker, work, held)
        except _GivenUp:
            pass
        except ConfigError as error:
            self.is_left_out = True
            self.say(f"{self.node.name} does not grade: {error}; it is left out until the run is started again")
        except (EngineError, HarnessError) as error:
            self.say(f"{self.node.name}: {error}; the others grade what it had not finished")
            self._end()
        except BaseException as error:
            work.fail(error)
        finally:
            work.give_back(held.values())

    def _grade(self, worker: Worker, work: _Work, held: dict[int, _Program]) -> None:
        """`held`: what it has and gave no verdict on yet, by number."""
        known: dict[
            int, Problem
        ] = {}  # what it was told of, by id(), which no other gets as long as the problem is here
        numbers = itertools.count()

        def more(num: int) -> list[dict[str, Any]] | None:
            told, num_bytes, taken = [], 0, deque(work.take(num))
            while taken and num_bytes < PIECE_BYTES:
                program, number, content = taken.popleft(), next(numbers), None
                held[number], problem, code = program, program.job.problem, program.job.code
                if id(problem) not in known:
                    known[id(problem)], content = problem, json.dumps(problem.model_dump())
                num_bytes += len(content or "") + len(code or "")
                told.append({"id": number, "problem": id(problem), "content": content, "code": code})
            work.give_back(taken)
            if told or work.is_handed_out:
                return told
            if not held:
                worker.patience.advanced()  # it waits for us
            return None

        # It watches over the time of its programs, and reports that it does.
        for event, value in worker.stream({"op": "grade"}, sys.maxsize, more):
            try:
                verdicts = [Graded.model_validate(item) for item in value] if event == "items" else []
            except ValueError:
                raise worker.broken("it sent a malformed verdict") from None
            for graded in verdicts:
                if graded.id not in held:
                    raise worker.broken("it sent a verdict that was not asked for, or twice")
                if graded.sandbox != self.level:
                    raise worker.broken(f"it graded in sandbox {graded.sandbox!r} in place of {self.level!r}")
                program = held.pop(graded.id)
                if graded.verdict == "harness_error":
                    work.give_to_this_machine(program)
                    raise HarnessError(f"grading {program.job.problem.task_id} failed there: {graded.detail}")
                work.finish(program, Verdict(**graded.model_dump(exclude={"id"})))
        if held:
            raise worker.broken("it left out some of its programs")

    def _check(self) -> None:
        """The pulse of the worker."""
        if self.is_closed or (self.work is not None and self.work.is_given_up):
            raise _GivenUp

    def _end(self) -> None:
        worker, self.worker = self.worker, None
        if worker:
            worker.end()

    def close(self) -> None:
        """End its worker, whatever it does."""
        self.is_closed = True
        ended = self.thread.submit(self._end)
        self.thread.shutdown()
        ended.result()


class Graders:
    """Grades as `local` does, which is one of the graders, with the same verdicts in the same order.

    `nodes` says which nodes may grade now; `start` starts a worker on one, which `start_grader` does. Use from one thread, one
    call at a time; it alone calls `nodes` and `note`.
    """

    def __init__(
        self, local: Grader, nodes: Callable[[], Sequence[Node]], start: Start, note: Callable[[str], None]
    ) -> None:
        self.local, self.nodes, self.start, self.note = local, nodes, start, note
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._members: dict[str, _Member] = {}  # by the node's id
        self._numbers = itertools.count(1)
        self._thread = ThreadPoolExecutor(1, "grader")

    def grade(self, jobs: Iterable[Job], ahead: int | None = None) -> Iterator[tuple[Hashable, Verdict]]:
        """See `Grader.grade`. As many jobs wait as keep all graders busy, or `ahead` if that is more.

        It begins here at once, and goes on there as soon as workers are up.
        """
        members = self._those_who_may()
        work = _Work(1 + len(members))
        num_workers = self.local.num_workers + sum(member.num_workers for member in members)
        here = self._thread.submit(self._grade_here, work)
        there = [member.thread.submit(member.grade, work) for member in members]
        try:
            for result in in_order(work.all_of(jobs), max(ahead or 0, 2 * NUM_TAKEN * num_workers), work.submit):
                self._tell()
                yield result
        finally:
            work.end()
            wait([here, *there] if work.is_given_up else [here])
            self._tell()

    def _those_who_may(self) -> list[_Member]:
        nodes = {node.id: node for node in self.nodes()}
        for lost in self._members.keys() - nodes.keys():
            self._members.pop(lost).close()
        for key, node in nodes.items():
            if key not in self._members:
                number = next(self._numbers)
                self._members[key] = _Member(number, node, self.local.level, self.start, self._notes.put)
        return [member for member in self._members.values() if not member.is_left_out]

    def _grade_here(self, work: _Work) -> None:
        try:
            with closing(self.local.grade_taken(work.take_here)) as graded:
                for verdicts in graded:
                    for program, verdict in verdicts:
                        work.finish(program, verdict)  # type: ignore[arg-type]  # its key
                    if work.is_over:
                        return
        except BaseException as error:
            work.fail(error)

    def _tell(self) -> None:
        while not self._notes.empty():
            self.note(self._notes.get())

    def close(self) -> None:
        """End the workers. Safe to repeat."""
        members, self._members = self._members, {}
        for member in members.values():
            member.is_closed = True
        for member in members.values():
            member.close()
        self._thread.shutdown()
        self._tell()


def start_grader(
    hub: Hub, node: Node, table: Grading, log: Path, stall_timeout_s: float, pulse: Callable[[], None] = lambda: None
) -> Worker:
    """A worker that grades on a node, with its cores; `info["sandbox"]` says how. ConfigError where the sandbox does not work."""
    settings = {"level": table.sandbox, "num_workers": int(node.num_cpus)}
    settings |= table.model_dump(include={"timeout_s", "timeout_factor", "memory_bytes"})
    return Worker(
        {"op": "load_grader", "settings": settings},
        log_file=log,
        stall_timeout_s=stall_timeout_s,
        progress=lambda done, total: None,
        pulse=pulse,
        tag=log.stem,
        heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
        has_gpu=False,
        start=hub.starter(node, 0),
    )
