"""Grading by several at once: the verdicts of one, in the same order, whoever is lost; and nothing left over."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.cli.doctor import _graders
from loop.config.machine import Cluster, Grading
from loop.errors import ConfigError, EngineError, HarnessError
from loop.grading.grader import Grader, Job, Verdict
from loop.grading.problem import Problem
from loop.workers import up
from loop.workers.cluster import Node
from loop.workers.graders import Graders
from loop.workers.process import LocalProcess
from loop.workers.worker import Worker
from tests.loop.workers.test_nodes import node
from tests.support.problems import PLUS_ONE, SUM, assert_problem
from tests.support.waiting import wait_until
from tests.support.workers import Begin, Start, nothing_left, tree

RIGHT = "def f(x): return x + 1"
ENDLESS = "import time\nwhile True: time.sleep(1)"
LEVEL = "bubblewrap"


def said(results: Sequence[tuple[Any, Verdict]]) -> list[tuple[Any, ...]]:
    """All of each verdict but how long it took."""
    return [(key, verdict.verdict, verdict.detail, verdict.sandbox) for key, verdict in results]


def jobs(num: int) -> list[Job]:
    """Programs of all sorts for two problems."""
    codes = [RIGHT, "def f(x): return x", "def f(x): raise ValueError", "print(\ud800)", None, "n = input()\nprint(3)"]
    made = ((codes[i % len(codes)], (PLUS_ONE, SUM)[i % 4 == 3]) for i in range(num))
    return [Job(i, problem, code and f"{code}  # {i}", f"no code in {i}") for i, (code, problem) in enumerate(made)]


# ---- with workers --------------------------------------------------------------------------------------------------


class Around:
    """Graders with a worker of this machine for each node, and what they told."""

    def __init__(self, start: Start, directory: Path, local: Grader, num_nodes: int, **more: Any) -> None:
        self.notes: list[str] = []
        self.workers: list[Worker] = []
        self.nodes = [node(f"n{number}", num_cpus=1.0) for number in range(1, num_nodes + 1)]

        def start_one(node: Node, number: int, pulse: Callable[[], None]) -> Worker:
            settings = {"level": LEVEL, "num_workers": 1, "timeout_s": local.timeout_s}
            init, log = {"op": "load_grader", "settings": settings}, directory / f"grader-{number}.log"
            made = start(init=init, log_file=log, pulse=pulse, tag=log.stem, has_gpu=False, **more)
            self.workers.append(made)
            return made

        self.graders = Graders(local, lambda: self.nodes, start_one, self.notes.append)

    def all_up(self) -> None:
        """Grade until every node takes part."""
        list(self.graders.grade(jobs(1)))
        wait_until(lambda: len(self.workers) == len(self.nodes))


@pytest.fixture
def around(start: Start, tmp_path: Path) -> Iterator[Callable[..., Around]]:
    made: list[Around] = []

    def begin(local: Grader, num_nodes: int = 2, **more: Any) -> Around:
        made.append(Around(start, tmp_path, local, num_nodes, **more))
        return made[-1]

    yield begin
    for each in made:
        each.graders.close()
        assert all(worker.ended for worker in each.workers)
    assert nothing_left()


def test_verdicts_and_their_order_are_those_of_one_machine(around: Callable[..., Around]) -> None:
    local = Grader(timeout_s=10.0, num_workers=1)
    expected = said(list(local.grade(jobs(120))))
    assert {verdict for _, verdict, *_ in expected} == {"passed", "failed", "error", "no_code"}
    three = around(local)
    three.all_up()
    assert said(list(three.graders.grade(jobs(120)))) == expected
    assert said(list(three.graders.grade(iter(jobs(1))))) == expected[:1]
    assert three.notes == []
    imported = {name.split("/")[-1] for name in _mapped(three.workers[0])}
    assert imported and not [name for name in imported if "torch" in name]


def _mapped(worker: Worker) -> list[str]:
    return [each.path for pid in tree(worker) for each in psutil.Process(pid).memory_maps()]


def test_what_a_killed_worker_had_not_finished_is_graded_by_others(around: Callable[..., Around]) -> None:
    local = Grader(timeout_s=10.0, num_workers=1)
    expected = said(list(local.grade(jobs(200))))
    three = around(local)
    three.all_up()
    results = []
    for result in three.graders.grade(jobs(200)):
        results.append(result)
        if len(results) == 40:
            os.kill(psutil.Process(three.workers[0].process.pid).children()[0].pid, signal.SIGKILL)
    assert said(results) == expected
    wait_until(lambda: three.graders._tell() or three.notes)
    (note,) = three.notes
    number = three.workers[0].tag[-1]
    said_of_it = rf"n{number}: grader-{number}: it was killed .*ray start --num-cpus.*; the others grade what it had not finished"
    assert re.fullmatch(said_of_it, note), note
    assert said(list(three.graders.grade(jobs(40)))) == expected[:40]
    wait_until(lambda: len(three.workers) == 3, lambda: "it was not started again")


def test_stopping_early_leaves_no_program_running(around: Callable[..., Around]) -> None:
    """They would run for a day. Nothing is waited for either."""
    three = around(Grader(timeout_s=86400.0, num_workers=1))
    three.all_up()
    before = {worker: set(tree(worker)) for worker in three.workers}
    endless = (Job(i, PLUS_ONE, f"{ENDLESS}  # {i}") for i in range(30))
    graded = three.graders.grade([Job("first", PLUS_ONE, None), *endless])
    assert next(graded)[0] == "first"
    for worker in three.workers:
        wait_until(lambda worker=worker: set(tree(worker)) - before[worker], lambda: "no program runs there")  # type: ignore[misc]
    closing = threading.Thread(target=graded.close, daemon=True)  # type: ignore[attr-defined]
    closing.start()
    wait_until(lambda: not closing.is_alive(), lambda: "it waits")
    assert nothing_left()
    assert three.notes == []


def test_a_node_whose_sandbox_does_not_work_is_left_out_and_never_grades_weaker(
    around: Callable[..., Around], tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    environment = {"PATH": f"{broken.parent}:{os.environ['PATH']}"}
    local = Grader(timeout_s=10.0, num_workers=1)
    with_one = around(local, 1, environment=environment)
    for _ in range(3):
        assert said(list(with_one.graders.grade(jobs(20)))) == said(list(local.grade(jobs(20))))
        wait_until(lambda: with_one.graders._members["id-n1"].is_left_out)
    with_one.graders._tell()
    (note,) = with_one.notes
    assert note.startswith("n1 does not grade: grading.sandbox: ") and "allow user namespaces" in note
    assert note.endswith("; it is left out until the run is started again")


# ---- with scripts in the place of workers --------------------------------------------------------------------------


class Scripted(Grader):
    """A grader that runs nothing: a verdict says which program it is about."""

    def __init__(self, num_workers: int = 2) -> None:
        self.level, self.num_workers, self._sandbox = LEVEL, num_workers, None  # type: ignore[assignment]
        self.graded: list[str] = []

    def _graded(self, problem: Problem, code: str | None, pool: Any) -> Verdict:
        self.graded.append(str(code))
        if code == "harness":
            return verdict("harness_error", "it is the suite's")
        return verdict("passed" if len(str(code)) % 2 else "failed", f"{problem.task_id} {code}")


def verdict(word: Any, detail: str, level: str = LEVEL) -> Verdict:
    return Verdict(verdict=word, detail=detail, duration_s=0.0, sandbox=level)


class ScriptedWorker:
    """Grades as `Scripted` does, so many programs in its life. Then it ends as `how` says; None: it goes on."""

    def __init__(self, num_before: int, how: str | None, pulse: Callable[[], None]) -> None:
        self.num_left, self.how, self.pulse = num_before, how, pulse
        self.ended = False
        self.process = SimpleNamespace(poll=lambda: None)
        self.patience = SimpleNamespace(advanced=lambda: self.waited.append(1))
        self.waited: list[int] = []
        self.told: list[dict[str, Any]] = []
        self.sizes: list[int] = []  # of the problems in each message
        self.has_all = threading.Event()

    def num_wanted(self, number: int) -> int:
        return 1 + number % 5

    def end(self) -> None:
        self.ended = True

    def broken(self, why: str) -> EngineError:
        self.ended = True
        return EngineError(f"{why} and was ended")

    def stream(self, message: dict[str, Any], idle: int, more: Any) -> Iterator[tuple[str, Any]]:
        assert message == {"op": "grade"}
        titles: dict[int, str] = {}
        for number in itertools.count():
            self.pulse()
            told = more(self.num_wanted(number))
            if told is None:
                time.sleep(0.001)
                continue
            self.told += told
            self.sizes.append(sum(len(each["content"] or "") for each in told))
            for each in told:
                if each["content"]:
                    assert each["problem"] not in titles, "a problem travels once"
                    titles[each["problem"]] = Problem.model_validate_json(each["content"]).task_id
            for each in reversed(told):
                yield "items", [self._item(each, titles[each["problem"]])]
            if not told:
                self.has_all.set()
                break
        yield "result", None

    def _item(self, each: dict[str, Any], title: str) -> dict[str, Any]:
        self.num_left -= 1
        code = each["code"]
        right = verdict("passed" if len(str(code)) % 2 else "failed", f"{title} {code}")
        if code == "harness":
            right = verdict("harness_error", "the suite is at fault")
        elif self.how == "harness" and self.num_left < 0:
            right = verdict("harness_error", "the sandbox broke")
        elif self.how == "dies" and self.num_left < 0:
            self.ended = True
            raise EngineError("it was killed")
        elif self.how == "weaker" and self.num_left < 0:
            right = right.model_copy(update={"sandbox": "none"})
        elif self.how == "twice" and self.num_left < 0:
            each = each | {"id": each["id"] + 1000}
        return right.model_dump() | {"id": each["id"]}


WAYS = st.tuples(st.integers(0, 30), st.sampled_from([None, "dies", "harness", "weaker", "twice"]))
SHORT = st.tuples(st.integers(0, 3), st.sampled_from(["a", "bb", "ccc", "dddd", None, "", "harness"]))


def scripted(
    ways: Sequence[tuple[int, str | None]], notes: list[str], local: Grader | None = None
) -> tuple[Graders, list[ScriptedWorker]]:
    nodes = [node(f"n{number}", num_cpus=1.0) for number in range(1, len(ways) + 1)]
    made: list[ScriptedWorker] = []

    def start(node: Node, number: int, pulse: Callable[[], None]) -> Any:
        made.append(ScriptedWorker(*ways[number - 1], pulse))
        return made[-1]

    return Graders(local or Scripted(), lambda: nodes, start, notes.append), made


PROBLEMS = [PLUS_ONE.model_copy(update={"task_id": f"p{number}"}) for number in range(4)]


@given(st.lists(SHORT, max_size=60), st.lists(WAYS, max_size=4), st.none() | st.integers(1, 100))
def test_each_job_gets_its_verdict_once_and_in_order_whoever_is_lost(
    rows: list[tuple[int, str | None]], ways: list[tuple[int, str | None]], ahead: int | None
) -> None:
    programs = [Job(key, PROBLEMS[which], code) for key, (which, code) in enumerate(rows)]
    notes: list[str] = []
    graders, made = scripted(ways, notes)
    try:
        for _ in range(2):
            assert list(graders.grade(iter(programs), ahead)) == list(Scripted().grade(programs))
    finally:
        graders.close()
    assert all(worker.ended for worker in made)
    losses = Counter(note.partition(":")[0] for note in notes)
    assert all(num <= 2 for num in losses.values()), "one note for each loss"
    at_fault = {row for row in rows if row[1] == "harness"}
    assert sum("the suite is at fault" in note for note in notes) <= 2 * len(at_fault), "one node at most is asked"
    assert at_fault or set(losses) <= {f"n{number}" for number, (_, how) in enumerate(ways, 1) if how}


def test_what_a_node_cannot_grade_is_graded_here_and_the_note_names_the_node() -> None:
    notes: list[str] = []
    graders, _ = scripted([(0, "harness")], notes, local := Scripted())
    programs = [Job(number, PLUS_ONE, f"# {number}") for number in range(200)]
    assert list(graders.grade(programs)) == list(Scripted().grade(programs))
    wait_until(lambda: graders._tell() or notes)
    graders.close()
    assert notes == ["n1: grading p failed there: the sandbox broke; the others grade what it had not finished"]
    assert len(local.graded) == 200


def test_a_suite_at_fault_is_a_harness_error_as_ever() -> None:
    notes: list[str] = []
    graders, _ = scripted([(99, None)] * 3, notes)
    ((_, given),) = graders.grade([Job(1, PLUS_ONE, "harness")])
    graders.close()
    assert (given.verdict, given.detail) == ("harness_error", "it is the suite's")


def test_jobs_are_taken_a_few_at_a_time_and_equal_programs_are_run_once() -> None:
    notes: list[str] = []
    graders, made = scripted([(10**6, None)] * 2, notes, local := Scripted())
    taken = 0

    def programs() -> Iterator[Job]:
        nonlocal taken
        for taken in range(1, 501):
            yield Job(taken, PLUS_ONE, f"# {taken // 5}")

    for number, (key, _) in enumerate(graders.grade(programs()), 1):
        assert key == number and taken <= number + 8 * (2 + 1 + 1)
    graders.close()
    assert len(local.graded) + sum(len(worker.told) for worker in made) == 101


def test_a_node_that_waits_for_jobs_is_no_node_that_stalls() -> None:
    """While completions are sampled, say. And the caller's own errors come through."""
    notes: list[str] = []
    graders, made = scripted([(99, None)], notes)

    def programs() -> Iterator[Job]:
        yield Job(1, PLUS_ONE, "a")
        wait_until(lambda: made and made[0].waited)
        raise KeyError("the caller's")

    with pytest.raises(KeyError, match="the caller's"):
        list(graders.grade(programs()))
    graders.close()
    assert notes == []


@pytest.mark.parametrize("error", [RuntimeError("no thread"), HarnessError("broken")])
def test_where_this_machine_cannot_go_on_the_call_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    graders, _ = scripted([(99, None)], [], local := Scripted())

    def broken(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(local, "grade_taken", broken)
    with pytest.raises(type(error), match=str(error)):
        list(graders.grade(Job(number, PLUS_ONE, f"# {number}") for number in itertools.count()))
    graders.close()


def test_large_problems_do_not_travel_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graders, made = scripted([(99, None)], [], local := Scripted(num_workers=1))
    graded = local._graded

    def after_the_node(*what: Any) -> Verdict:
        wait_until(lambda: made and made[0].has_all.is_set())
        return graded(*what)

    monkeypatch.setattr(local, "_graded", after_the_node)
    monkeypatch.setattr(ScriptedWorker, "num_wanted", lambda self, number: 100)
    large = [assert_problem(f"assert f(1) == 2  # {number} {'x' * (1 << 20)}") for number in range(8)]
    assert len(list(graders.grade(Job(number, problem, "a") for number, problem in enumerate(large)))) == 8
    graders.close()
    assert 1 << 20 < max(made[0].sizes) < 2 << 20


# ---- whoever opens them --------------------------------------------------------------------------------------------


class FakeHub:
    """A hub whose nodes are this machine."""

    ended = False

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes

    def nodes(self) -> list[Node]:
        return [*self._nodes]

    def starter(self, node: Node, num_gpus: int) -> Any:
        assert num_gpus == 0
        return LocalProcess

    def close(self) -> None:
        pass


def test_one_machine_grades_alone_unless_the_cluster_is_asked_for_it(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, local = begin(), Scripted()
    assert engines.grader(local) is local
    config: Any = engines.loaded.config
    config.cluster, config.grading = Cluster(), Grading()
    assert engines.grader(local) is local
    config.cluster = Cluster(grading=True)
    monkeypatch.setattr(up, "versions_here", lambda: {"python": "3.11.7", "ssd-loop": "1.0"})
    head = node("head").model_copy(update={"is_here": True})
    engines._hub = FakeHub(node("a", num_cpus=1.0), node("gpus", num_gpus=8, num_cpus=0.0), head)  # type: ignore[assignment]
    graders = engines.grader(local)
    assert isinstance(graders, Graders)
    assert [each.name for each in graders.nodes()] == ["a"]
    programs = [Job(number, PLUS_ONE, f"# {number}") for number in range(20)]
    assert said(list(graders.grade(programs))) == said(list(Scripted().grade(programs)))
    wait_until(lambda: graders._members["id-a"].worker)
    engines._hub = FakeHub(node("a").model_copy(update={"versions": {"python": "3.12"}}))  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="^cluster: a has python 3.12, here is 3.11.7"):
        list(graders.grade(programs))

    def lost() -> None:
        raise EngineError("cluster: no cluster answers")

    monkeypatch.setattr(engines, "_joined", lost)
    assert said(list(graders.grade(programs))) == said(list(Scripted().grade(programs)))
    assert engines.watch.notes == ["cluster: no cluster answers; this machine grades alone"]  # type: ignore[attr-defined]


def test_doctor_has_a_line_for_each_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Any = SimpleNamespace(config=SimpleNamespace(grading=Grading()), run_dir=tmp_path)
    (line,) = _graders(loaded, FakeHub(), [node("a", num_cpus=2.0)])  # type: ignore[arg-type]
    assert (line.name, line.verdict) == ("grading", "ok") and line.detail.startswith("a: ") and "bwrap" in line.detail
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (line,) = _graders(loaded, FakeHub(), [node("a")])  # type: ignore[arg-type]
    assert line.verdict == "warn" and line.detail.startswith("a does not grade: ") and "namespaces" in line.remedy
    (line,) = _graders(loaded, FakeHub(), [])  # type: ignore[arg-type]
    assert line.verdict == "warn"
    assert nothing_left()
