"""The references pass, odd but right programs pass, and each verdict has its words."""

from __future__ import annotations

import sys
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
from tests.support.problems import PLUS_ONE, SUM, Row, assert_problem, live_problem, wrong_verdicts

# --- references


@pytest.mark.parametrize("source", ["humaneval", "first-steps"])
def test_all_references_pass(grader: Grader, source: str) -> None:
    """As answers: HumanEval's continue the prompt, those of first-steps stand under a fence. Some as whole programs, too."""
    problems, fenced = load_suite(source).problems, source == "first-steps"
    answers = [str(p.reference) if fenced else str(p.reference).removeprefix(p.prompt_code) for p in problems]
    rows = [(p, extract_code(text, p, fenced), "passed", "") for p, text in zip(problems, answers, strict=True)]
    assert wrong_verdicts(grader, rows + [(p, f"{p.reference}\n", "passed", "") for p in problems[:20]]) == []


def test_humaneval_stubs_do_not_pass(grader: Grader) -> None:
    problems = load_suite("humaneval", limit=12).problems
    verdicts = [v.verdict for _, v in grader.grade(Job(None, p, p.prompt_code + "    pass\n") for p in problems)]
    assert set(verdicts) <= {"failed", "error"}


def test_nothing_of_a_reference_is_sent() -> None:
    for source in ("humaneval", "first-steps"):
        for problem in load_suite(source).problems:
            job = judge_job(problem)
            assert problem.reference and problem.reference not in job.values()
            assert job == judge_job(problem.model_copy(update={"reference": None}))


# --- verdicts and their words

NODE = assert_problem("assert f(n) == 1", setup="n = Node(1)")
TWICE = live_problem(("1", "2"), ("2", "3"), func_name="f")
TWO_RUNS = live_problem(("1", "2"), ("2", "3"))
BY_ZERO = "ZeroDivisionError: division by zero"
NOTHING_USED = "the tests use nothing that a solution defines: anything would pass; leave the problem out"
CHECK = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3, 'more'\n"
IN_LINES = Problem(task_id="h", statement="", entry_point="f", kind="humaneval", payload={"test": CHECK})


def loaded(*tests: str, **more: Any) -> Problem:
    return problem_of({"task_id": "p", "text": "x", "test_list": list(tests), **more}, "here")


def checked(prompt: str) -> Problem:
    test = "def check(candidate):\n    assert candidate(4, 6) == 2\n"
    return problem_of({"task_id": "p", "entry_point": "gcd", "test": test, "prompt": prompt}, "here")


GCD = {"test_imports": ["from math import gcd"]}
SET_UP_GCD = {"test_setup_code": "from math import gcd"}
STAR = checked("from __future__ import annotations\nfrom math import *\n\n\ndef gcd(a: Unknown, b):\n    'X.'\n")
DECORATED = checked("from functools import *\nfrom math import *\n\n\n@cache\ndef gcd(a, b):\n    'X.'\n")
SUITES = loaded("assert f(1) == 2", test_setup_code="def f(x): return 2", entry_point="f")

VERDICTS: list[Row] = [
    (PLUS_ONE, "def f(x): return x + 1", "passed", ""),
    (PLUS_ONE, "def f(x): return 2", "failed", "test 2: AssertionError"),
    (PLUS_ONE, "def f(x): return y", "error", "test 1: line 1: NameError: name 'y' is not defined"),
    (PLUS_ONE, "\n\nimport nothing", "error", "line 3: ModuleNotFoundError: No module named 'nothing'"),
    (PLUS_ONE, "def f(x) return x", "error", "line 1: SyntaxError: expected ':'"),
    (PLUS_ONE, "def g(x): return 2", "error", "test 1: NameError: name 'f' is not defined"),
    (PLUS_ONE, "assert False, 'early'", "error", "line 1: AssertionError: early"),
    (PLUS_ONE, "raise ValueError(object())", "error", "line 1: ValueError: <object object at 0x...>"),
    (PLUS_ONE, "import os\nos.abort()", "error", "killed by signal 11 before the last test was done"),
    (PLUS_ONE, "raise SystemExit", "error", "line 1: SystemExit"),
    (PLUS_ONE, None, "no_code", "the answer holds no code"),
    (PLUS_ONE, " \n", "no_code", "the answer holds no code"),
    (assert_problem("assert f(S) == {1}", setup="S = {1}"), "def f(x): return x", "passed", ""),
    # as where setup, solution and tests run in one process
    (assert_problem("assert f(1) == 0", setup="from math import exp, log"), "def f(x): return log(x)", "passed", ""),
    (NODE, "class Node(int): pass\ndef f(x): return x", "passed", ""),
    (NODE, "x = 1", "error", "setup: NameError: name 'Node' is not defined"),
    (assert_problem("assert math.isclose(f(1), 1)", imports=("import math",)), "def f(x): return x", "passed", ""),
    (assert_problem("assert f()\nassert g()"), "def f(): return 1\ndef g(): pass", "failed", "test 1: AssertionError"),
    (TWICE, "def f(x): return 2", "failed", "test 2: wrong answer"),
    (TWICE, "def f(x): return 1 / 0", "error", f"test 1: line 1: {BY_ZERO}"),
    (TWO_RUNS, "print(2)", "failed", "test 2: wrong answer"),
    (TWO_RUNS, "print(1 / 0)", "error", f"test 1: line 1: {BY_ZERO}"),
    (TWO_RUNS, "print(", "error", "line 1: SyntaxError: '(' was never closed"),
    (IN_LINES, "def f(x): return 2", "failed", "test line 3: AssertionError: more"),
    # lines are counted from the program's first
    (STAR, f"\n{STAR.prompt_code}    return 1 / 0\n", "error", f"test line 2: line 8: {BY_ZERO}"),
    # a decorator of the prompt binds nothing
    (DECORATED, DECORATED.prompt_code.replace(" gcd", " g") + "    return 2", "error", "the program defines no gcd"),
    (SUITES, "def g(x): return 3", "error", "the program defines no f"),
    (SUITES, "def f(x): return 3", "harness_error", NOTHING_USED),
]


def test_verdicts(grader: Grader) -> None:
    assert wrong_verdicts(grader, VERDICTS) == []
    assert grader.grade_one(PLUS_ONE, None).sandbox == "bubblewrap"


def test_details_are_the_same_on_every_run(grader: Grader) -> None:
    code = "def f(x): raise ValueError(f, {'b', 'a', 'c', 'd'}, [object()])"
    details = {verdict.detail for _, verdict in grader.grade(Job(None, PLUS_ONE, code) for _ in range(5))}
    assert len(details) == 1


# --- odd but right

# What a suite offers stays there, and a solution may hide it.
OFFERED = [
    (loaded("assert sum([1, 2]) == 7"), "def sum(xs): return 7"),
    (loaded("assert not (sum([1, 2]) == 3)"), "def sum(xs): return 7"),
    (loaded("assert max(f(1), f(2)) == 2"), "def f(x): return x"),
    (loaded("assert gcd(f(4), 6) == 2", **GCD), "def f(x): return x"),
    (loaded("assert gcd(4, 6) == 2", **GCD), "from math import gcd"),
    (loaded("assert gcd(4, 6) == 7", test_setup_code="from math import gcd\nx = gcd(4, 6)"), "def gcd(a, b): return 7"),
    (loaded("assert gcd(PAIR, 6) == 2", **SET_UP_GCD), "PAIR = 4"),
    (loaded("assert gcd(4) == 2", test_setup_code="from math import gcd\ngcd = gcd"), "def gcd(a): return 2"),
    (loaded("assert f(4) == 8", test_setup_code="g = f\ndef f(x): return 2 * g(x)"), "def f(x): return x"),
    (loaded("assert twice(3) == f(3)", test_setup_code="def twice(x): return 2 * x"), "def f(x): return 2 * x"),
    (loaded("assert len(s) == 0", test_setup_code="s = Stack()"), "class Stack:\n    def __len__(self): return 0"),
    (loaded("assert LIMIT == 3", entry_point="LIMIT"), "LIMIT = 3"),
    (loaded("assert LIMIT[0] == 3", "assert LIMIT[1] == 4"), "LIMIT = [3, 4]"),
    (loaded("assert f(0).a is f(0) is not f(1)"), "class A: pass\nx = A(); x.a = x\ndef f(n): return A() if n else x"),
    (loaded("assert not f(0) and f(1)"), "from fractions import Fraction as f"),
    (loaded("assert f.__name__ == 'f' and f.__doc__ == 'X.'"), "def f(): 'X.'"),
    (STAR, f"{STAR.prompt_code}    return floor(a / b + 2)\n"),
    (STAR, "from math import gcd"),
    (DECORATED, f"{DECORATED.prompt_code}    return 2\n"),
]
ODD_BUT_RIGHT = {
    "functions": [(PLUS_ONE, code) for code in FUNCTIONS.values()],
    "programs": [(SUM, code) for code in PROGRAMS.values()],
    "with tests of their own": [(assert_problem(*tests), code) for code, *tests in TESTED],
    "named like what the suite offers": [(PROBLEMS["live:add"], code) for code in ADD.values()],
    "what a suite offers": OFFERED,
}


@pytest.mark.parametrize("kind", ODD_BUT_RIGHT)
def test_odd_but_right_programs_pass(grader: Grader, kind: str) -> None:
    assert wrong_verdicts(grader, [(problem, code, "passed", "") for problem, code in ODD_BUT_RIGHT[kind]]) == []


def test_no_name_of_livecodebenchs_imports_is_the_solutions() -> None:
    imports = PREAMBLE.rpartition("sys.setrecursionlimit")[0]
    space: dict[str, Any] = {}
    exec(imports, space)
    question = {"do": "load", "kind": "functional", "code": "class Solution: pass", "imports": imports, "before": ""}
    for name in space.keys() - {"__builtins__"}:
        link = Link(shut_in=False)
        (loaded,) = link.answers({**question, "called": [name]})
        (entry,) = link.answers({"do": "entry", "name": name})
        assert "raised" not in loaded and entry["value"] is None, name
    del sys.modules["solution"]


def test_what_tests_draw_does_not_depend_on_who_was_before() -> None:
    problem = assert_problem("assert f(random.random()) == 0.8444218515250481", imports=("import random",))
    jobs = [Job(number, problem, f"def f(x): return x  # {number}") for number in range(3)]
    assert [verdict.verdict for _, verdict in Grader(num_workers=1).grade(jobs)] == ["passed"] * 3


VALUES = [
    ("[2, 3]", "return [2, 3]", "passed"),
    ("[2, 3]", "return (2, 3)", "passed"),  # as LiveCodeBench: a tuple at the top only
    ("[[2], 3]", "return [(2,), 3]", "failed"),
    ("[2, 3]", "return [3, 2]", "failed"),
    ("2", "return 2.0", "passed"),
    ("0.1", "return 0.1", "passed"),
    ("0.3", "return 0.1 + 0.2", "failed"),
    ("true", "return True", "passed"),
    ("null", "return None", "passed"),
    ("null", "pass", "passed"),
    ('"a"', "return 'a'", "passed"),
    ('{"a": [1]}', "return {'a': [1]}", "passed"),
    ('{"a": 1}', "return defaultdict(int, a=1)", "passed"),
    ('{"1": 1}', "return {1: 1}", "failed"),
    ("[1]", "return {1}", "failed"),
    ("[1]", "return iter([1])", "failed"),
    ("1", "return '1'", "failed"),
    ("[]", "return []", "passed"),
    (str(10**30), "return 10 ** 30", "passed"),
    ('"\\ud800"', "return chr(0xd800)", "passed"),
    ("[1]", "return [[[[1]]]]", "failed"),
]


def test_values_are_compared_as_livecodebench_does(grader: Grader) -> None:
    rows = [
        (
            live_problem(("1", wanted), func_name="f"),
            f"class Solution:\n    def f(self, x: List[int]): {body}",
            word,
            "",
        )
        for wanted, body, word in VALUES
    ]
    assert wrong_verdicts(grader, rows) == []


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
