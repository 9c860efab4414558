"""HumanEval+ and MBPP+: made-up problems in their formats. The right answer passes by each oracle, a wrong one by none."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from loop.errors import ConfigError
from loop.grading.extract import extract_code
from loop.grading.formats import problem_of
from loop.grading.formats.plus import inputs_of
from loop.grading.grader import Grader, Job
from loop.grading.inside.compare import is_right
from loop.grading.problem import Problem
from loop.grading.suite import load_suite
from tests.support.problems import Row, wrong_verdicts

HALVES = {
    "task_id": "HumanEval/900",
    "prompt": 'from typing import List\n\n\ndef halves(xs: List[int]) -> List[float]:\n    """Half of each.\n    """\n',
    "entry_point": "halves",
    "canonical_solution": "\n    return [x / 2 for x in xs]\n\n",
    "test": "def check(candidate):\n    assert candidate([2]) == [1.0]\n",
    "contract": "\n    assert all(type(x) == int for x in xs) # $_CONTRACT_$\n",
    "base_input": [[[1, 2, 3]], [[]]],
    "plus_input": [[[-7]], [[10, 11]]],
    "atol": 0,
}
SHARED = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nWrite a function to find the shared elements of two tuples.\nassert set(similar_elements((3, 4), (5, 4))) == {4}\n"""\n',
    "entry_point": "similar_elements",
    "canonical_solution": "\ndef similar_elements(one, other):\n  return tuple(set(one) & set(other))\n",
    "base_input": [[[3, 4, 5, 6], [5, 7, 4, 10]]],
    "plus_input": [[[], []], [["a", 1], [1, "a", True]]],
    "atol": 0,
    "contract": "\n  assert isinstance(one, tuple) # $_CONTRACT_$\n",
    "assertion": "\nassert set(similar_elements((3, 4), (5, 4))) == {4}\n",
}


def plus(row: dict[str, Any], **changes: Any) -> Problem:
    return problem_of({**row, **changes}, "here")


def mbpp(entry_point: str, code: str, *inputs: Any, task_id: str = "Mbpp/1", **more: Any) -> Problem:
    row = {"task_id": task_id, "prompt": f'"""\nWrite {entry_point}.\n"""\n', "entry_point": entry_point}
    return plus({**row, "canonical_solution": f"\n{code}\n", "base_input": list(inputs), "plus_input": {}, **more})


def test_both_suites_load_from_their_files(tmp_path: Path) -> None:
    file = tmp_path / "plus.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in (HALVES, SHARED)).encode()))
    halves, shared = load_suite(str(file)).problems
    assert halves.kind == shared.kind == "plus"
    assert halves.statement == "Complete the following Python function." and halves.prompt_code == HALVES["prompt"]
    assert shared.prompt_code == SHARED["prompt"] and "return" not in shared.statement + shared.prompt_code
    assert halves.reference == str(HALVES["prompt"]) + str(HALVES["canonical_solution"])


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    for change, message in [
        ({"base_input": 3}, "base_input is not a list of lists; write the arguments of each call as a list"),
        ({"plus_input": [3]}, "plus_input is not a list of lists"),
        ({"base_input": [], "plus_input": {}}, "has neither base_input nor plus_input"),
        ({"atol": "x"}, 'atol is "x"; expected the absolute tolerance'),
        ({"canonical_solution": " "}, "canonical_solution is blank"),
        ({"entry_point": "a b"}, 'entry_point is "a b"'),
        ({"task_id": "Mbpp/252"}, "base_input 1 is not what Mbpp/252 takes; fetch the file again"),
    ]:
        with pytest.raises(ConfigError) as caught:
            plus(HALVES, **change)
        assert str(caught.value).startswith(f"here: {message}")
    with pytest.raises(ConfigError, match="lacks canonical_solution"):
        plus({"task_id": "a", "prompt": "b", "entry_point": "c", "base_input": []})


@pytest.mark.parametrize("row", [{"entry_point": "f"}, {"test_list": ["assert f()"]}])
def test_tests_that_need_numpy_are_refused_with_the_remedy(row: dict[str, Any]) -> None:
    test = "import numpy as np\n\ndef check(candidate):\n    assert np.allclose(1, 1)\n"
    with pytest.raises(ConfigError, match=r"^here: test imports numpy, .* take EvalPlus' own files \(HumanEvalPlus"):
        plus({"task_id": 2, "prompt": "x", "test": test, **row})


ROOT = {
    "task_id": "HumanEval/32",
    "prompt": 'def find_zero(xs: list):\n    """A root."""\n',
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "base_input": [[[1, 2]]],
    "plus_input": [[[-6, 1]]],
    "atol": 0.0001,
}
ANOTHER_ROOT = plus(ROOT, plus_input=[[[-6, 1]], [[-4, 0, 1]]], canonical_solution="    return 2.0\n")
CHECK_STR = mbpp("check_str", "import re\ndef check_str(s): return re.match('[aeiou]', s)", ["apple"], ["xyz"])
FLOATS = "def f(n): return [0.5, 10 ** 9][n]"
ALMOST = "def f(n): return [0.5, 10 ** 9 + 1][n]"
WRONG = "base test 1: wrong answer"
SEARCH = """
import sys
def halves(xs):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if 'canonical' in str(value) or 'x / 2' in str(value): return [x / 2 for x in xs]
        frame = frame.f_back
"""
HALF, BOTH, AWAY = plus(HALVES), plus(SHARED), plus(ROOT)
EQUIVALENT = mbpp("are_equivalent", "def are_equivalent(a, b): return a == b", [1, 2])
SUM_DIV = mbpp("sum_div", "def sum_div(n): return 1", [6])
SURFACE = mbpp("surface_Area", "def surface_Area(b, h): return 33", [3, 4])
DIGITS = mbpp("digit_distance_nums", "def digit_distance_nums(a, b): return 9", [1, 23])
COMPLEX = mbpp("f", "def f(z): return abs(z)", ["3+4j"], task_id="Mbpp/252")
SETS = mbpp("f", "def f(x): return len(x)", [[[1], []]], task_id="Mbpp/115")
LIAR = (
    "class A:\n    __eq__ = lambda *_: True\n    __hash__ = lambda s: 4\ndef similar_elements(a, b): return [A(), A()]"
)
BY_ZERO = "plus test 1: line 1: ZeroDivisionError: division by zero"

PROGRAMS: list[Row] = [
    (HALF, "def halves(xs): return [x / 2 for x in xs]", "passed", ""),
    (HALF, "def halves(xs): return [x * 0.5 + 1e-9 for x in xs]", "passed", ""),
    (HALF, "def halves(xs): return [x / 2 + 2e-6 for x in xs]", "failed", WRONG),
    (HALF, "def halves(xs): return tuple(x / 2 for x in xs)", "failed", WRONG),
    (HALF, "def halves(xs): return [abs(x) / 2 for x in xs]", "failed", "plus test 1: wrong answer"),
    (HALF, "def halves(xs): return (x / 2 for x in xs)", "failed", WRONG),
    (HALF, "def halves(xs): return [x / (x + 7) for x in xs]", "failed", WRONG),
    (HALF, "def halves(xs): return [x / 2 for x in xs] if -7 not in xs else 1 / 0", "error", BY_ZERO),
    (HALF, "def other(xs): return []", "error", "the program defines no halves"),
    (HALF, "halves = 3", "error", "base test 1: TypeError: 'int' object is not callable"),
    # what a solution does to its arguments is nobody's business but its own
    (HALF, "def halves(xs):\n    ys = [x / 2 for x in xs]\n    xs.clear()\n    return ys", "passed", ""),
    # two that only those who see the answers would find out
    (HALF, SEARCH, "failed", ""),
    (HALF, "class A:\n    __eq__ = lambda *_: True\ndef halves(xs): return A()", "failed", WRONG),
    (BOTH, "def similar_elements(a, b): return sorted(set(a) & set(b), key=str)", "passed", ""),
    (BOTH, "def similar_elements(a, b): return (x for x in a if x in b)", "passed", ""),
    (BOTH, "def similar_elements(a, b): return a + b", "failed", WRONG),
    (BOTH, "def similar_elements(a, b): return None", "failed", WRONG),
    (BOTH, "def similar_elements(a, b): return [[x] for x in a]", "failed", WRONG),
    (BOTH, LIAR, "failed", "base test 1: a value of type A is not plain data"),
    (plus(SHARED, task_id="own/2"), "def similar_elements(a, b): return list(set(a) & set(b))", "failed", ""),
    (AWAY, "def find_zero(xs): return -xs[0] / xs[1] + 1e-5", "passed", ""),
    (AWAY, "def find_zero(xs): return -xs[0] / xs[1] + 1e-3", "failed", WRONG),
    (AWAY, "def find_zero(xs): return -xs[0] / xs[1] if xs[0] > 0 else 6", "passed", ""),
    (AWAY, "def find_zero(xs):\n    xs[:] = [0]\n    return 1.0", "failed", WRONG),
    (AWAY, "def find_zero(xs): return 'x'", "failed", WRONG),
    (AWAY, "def find_zero(xs): return float('nan')", "failed", WRONG),
    (ANOTHER_ROOT, "def find_zero(xs): return {1: -0.5, -6: 6, -4: -2}[xs[0]]", "passed", ""),
    (EQUIVALENT, "def are_equivalent(a, b): return 7", "passed", ""),
    (EQUIVALENT, "def are_equivalent(a, b): 1 / 0", "error", ""),
    (SUM_DIV, "def sum_div(n): return 0", "passed", ""),
    (SUM_DIV, "def sum_div(n): return 2", "failed", ""),
    (SURFACE, "def surface_Area(b, h): return 33", "passed", ""),
    (SURFACE, "def surface_Area(b, h): return 34", "failed", ""),
    (SURFACE, "def surface_Area(b, h): return 35", "passed", ""),
    (DIGITS, "def digit_distance_nums(a, b): return 4", "passed", ""),
    (DIGITS, "def digit_distance_nums(a, b): return 5", "failed", ""),
    (CHECK_STR, "def check_str(s): return s[0] in 'aeiou'", "passed", ""),
    (CHECK_STR, "import re\ndef check_str(s): return re.search('^[aeiou]', s)", "passed", ""),
    (CHECK_STR, "def check_str(s): return 'x' if s[0] in 'aeiou' else 'y'", "failed", "base test 2: wrong answer"),
    (CHECK_STR, "def check_str(s): return object()", "failed", "base test 2: wrong answer"),
    # a float among the answers makes all that follow inexact, in its part only
    (mbpp("f", FLOATS, [0], [1]), ALMOST, "passed", ""),
    (mbpp("f", FLOATS, [1], [0]), ALMOST, "failed", ""),
    (mbpp("f", FLOATS, [0], plus_input=[[1]]), ALMOST, "failed", "plus test 1: wrong answer"),
    (COMPLEX, "def f(z): return abs(z) if type(z) is complex else None", "passed", ""),
    (SETS, "def f(x): return sum(type(y) is set for y in x) + 1", "passed", ""),
]


def test_verdicts_of_each_oracle(grader: Grader) -> None:
    canonical: list[Row] = [(p, p.reference, "passed", "") for p in (HALF, BOTH, CHECK_STR, AWAY)]
    assert wrong_verdicts(grader, PROGRAMS + canonical) == []


HUGE = "def f(n): return [bytearray(1 << 20) for _ in range(n)]"
LONG = "def f(n): return bytearray(36_000 * n)"
FORKS = "import os, time\ndef f(n):\n    os.fork()\n    x = b'x' * (230 << 20)\n    time.sleep(n)"
MUCH = "the problem by itself uses more than 400 MiB of memory; raise grading.memory_bytes, or leave the problem out"


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (plus(HALVES, canonical_solution="\n    return 1 / 0\n"), "fails on base input 1: ZeroDivisionError"),
        (plus(HALVES, canonical_solution="\n    return (x for x in xs)\n"), "fails on base input 1: NoPlainValue"),
        (plus(HALVES, canonical_solution="\n    return [\n"), "the suite's own code fails: SyntaxError"),
        (mbpp("f", HUGE, [1000]), "the canonical solution runs out of memory on base input 1; raise grading."),
        (mbpp("f", LONG, [1000]), "base input 1: NotPlain: a value of 68 MiB is too big; leave the problem"),
        pytest.param(mbpp("f", FORKS, [1000]), MUCH, marks=pytest.mark.slow),
    ],
)
def test_trouble_with_a_canonical_solution_is_the_suites_and_the_remedy_is_named(problem: Problem, words: str) -> None:
    verdict = Grader(num_workers=1, memory_bytes=400 << 20).grade_one(problem, "def halves(xs): return []")
    assert verdict.verdict == "harness_error" and words in verdict.detail, verdict


@pytest.mark.parametrize(
    ("value", "wanted", "atol", "right"),
    [
        (1.0 + 0.9e-6, 1.0, 1e-6, True),
        (1.0 + 1.2e-6, 1.0, 1e-6, False),
        (1e9 + 90, 1e9, 1e-6, True),  # rtol 1e-7
        (1e9 + 110, 1e9, 1e-6, False),
        (1e9 + 90, 1e9, 0, False),
        (1, 1.0, 0, True),  # equal
        (2, 2.0 + 1e-9, 1e-6, False),  # close, but of another type
        (True, 1, 1e-6, True),
        ((1.0,), [1.0], 1e-6, False),
        ([(1.0 + 1e-9,)], [[1.0]], 1e-6, True),  # types count on the outside only
        ([1.0, 2.0], [1.0], 1e-6, False),
        ([[1.0], [2.0]], [[1.0, 1.0], [2.0, 2.0]], 1e-6, False),
        ([[1.0 + 1e-9], [1.0, 2.0]], [[1.0], [1.0, 2.0]], 1e-6, False),  # no array
        (["a", 1.0 + 1e-9], ["a", 1.0], 1e-6, False),
        ({"a": 1.0 + 1e-9}, {"a": 1.0}, 1e-6, False),
        (float("inf"), float("inf"), 1e-6, True),
        (1.0, float("inf"), 1e-6, False),
        (float("nan"), float("nan"), 1e-6, False),
        (1j, 1j + 1e-9, 1e-6, True),
        (10**30 + 1, 10**30, 1e-6, False),
        (None, None, 0, True),
    ],
)
def test_tolerance_at_its_edges(value: Any, wanted: Any, atol: float, right: bool) -> None:
    assert is_right("", value, wanted, [], atol) is right


INPUTS = [
    (2, [[1, 2], [3]], [(1, 2), (3,)]),
    (63, [[[1, 2], [3, 4]]], [[(1, 2), (3, 4)]]),
    (75, [[[1], [2]], 3], [[(1,), (2,)], 3]),
    (106, [[1], [2]], [[1], (2,)]),
    (115, [[[1, 1], []]], [[{1}, {}]]),
    (124, ["0", "1+2j"], [0.0, 1 + 2j]),
    (250, [[1], 2], [(1,), 2]),
    (252, ["(1+2j)"], [1 + 2j]),
    (259, [[[1], [2]], [[3]]], [((1,), (2,)), ((3,),)]),
    (278, [[1, [2]]], [(1, (2,))]),
    (307, [[1], 2, 3], [(1,), 2, 3]),
    (580, [[1, [2, [3]]]], [(1, (2, (3,)))]),
    (722, [{"a": [1, 2]}, 3], [{"a": (1, 2)}, 3]),
    (3, [[1], [[2]]], [[1], [[2]]]),
]


@pytest.mark.parametrize(("number", "written", "given"), INPUTS)
def test_inputs_that_json_cannot_say(number: int, written: Any, given: Any) -> None:
    payload = {"base": json.dumps([written]), "plus": "[]"}
    assert inputs_of(f"Mbpp/{number}", payload)["base"] == [given]
    assert inputs_of(f"HumanEval/{number}", payload)["base"] == [written]


def test_all_of_humaneval_in_the_plus_format(grader: Grader) -> None:
    """Their inputs, found by running their own tests, and their own solutions."""
    problems = []
    for problem in load_suite("humaneval").problems[::3]:
        calls: list[Any] = []
        space: dict[str, Any] = {}
        assert problem.reference and problem.entry_point
        exec(problem.reference, space)
        function = space[problem.entry_point]
        exec(problem.payload["test"], space)
        space["check"](lambda *given, calls=calls, function=function: (calls.append(given), function(*given))[1])
        solution = problem.reference.removeprefix(problem.prompt_code)
        row = {"task_id": problem.task_id, "prompt": problem.prompt_code, "entry_point": problem.entry_point}
        inputs = json.loads(json.dumps(calls[:200]))
        problems.append(plus({**row, "canonical_solution": solution, "base_input": inputs}))
    jobs = [Job((p.task_id, "right"), p, extract_code(str(p.reference), p, False)) for p in problems]
    jobs += [Job((p.task_id, "stub"), p, p.prompt_code + "    pass\n") for p in problems]
    wrong = [key for key, verdict in grader.grade(jobs) if (verdict.verdict == "passed") is (key[1] == "stub")]
    assert wrong == []


COUNTED = plus(HALVES, base_input=[], plus_input=[[[number]] for number in range(200)])
ACTS = {
    "right": ("return [x / 2 for x in xs]", "passed", ""),
    "wrong": ("return [x for x in xs] + [1]", "failed", "plus test {}: wrong answer"),
    "raises": ("1 / 0", "error", "plus test {}: line 4: ZeroDivisionError: division by zero"),
    "ends": ("__import__('os')._exit(3)", "error", "ended before the last test was done"),
    "handle": ("return object()", "failed", "plus test {}: wrong answer"),
    "big": ("return '0' * (80 << 20)", "error", "plus test {}: NotPlain: a value of 80 MiB is too big"),
    "endless": ("while True: pass", "timeout", ""),
}


@pytest.mark.parametrize("endings", [["wrong", "raises", "ends", "handle", "big"], ["endless"]])
def test_several_calls_at_once_have_the_verdict_of_the_first_that_is_not_right(
    grader: Grader, endings: list[str]
) -> None:
    """Calls that were asked for together with it and come later change neither its verdict nor its place."""
    draw = random.Random(7)
    rows: list[Row] = []
    for number in range(40 if len(endings) > 1 else 2):
        first = draw.choice([0, 1, 2, 3, 62, 63, 64, 65, 126, 127, 198]) if number else 5
        plan = {first: draw.choice(endings), first + 1 + number % 3: draw.choice(endings)}
        if endings == ["endless"]:
            plan[first - 1] = "wrong"
            first -= 1
        acts = "".join(f"    if n == {n}:\n        {ACTS[act][0]}\n" for n, act in sorted(plan.items()))
        program = "def halves(xs):\n    n = xs[0]\n" + acts + f"    {ACTS['right'][0]}\n"
        _, verdict, detail = ACTS[plan[first]]
        rows.append((COUNTED, program, verdict, detail.format(first + 1)))
    assert wrong_verdicts(grader, rows) == []


def test_each_value_is_as_it_was_before_the_next_call(grader: Grader) -> None:
    grows = "seen = []\ndef f(n):\n    seen.append(n)\n    return seen"
    problem = mbpp("f", grows, *[[n] for n in range(150)])
    assert wrong_verdicts(grader, [(problem, grows, "passed", ""), (problem, grows + "[:]", "passed", "")]) == []


COUNTING = """
import sys
cell, asked = sys.modules['loop.grading.inside.cell'], []
answers = cell.Link.answers
def counted(link, question):
    asked.append(question['do'])
    yield from {}
cell.Link.answers = counted
def halves(xs):
    assert len(asked) <= 30, asked
    return [x / 2 for x in xs]
"""


def test_a_thousand_calls_are_few_questions(grader: Grader) -> None:
    problem = plus(HALVES, plus_input=[[list(range(number % 50))] for number in range(1000)])
    verdict = grader.grade_one(problem, COUNTING.format("answers(link, question)"))
    assert verdict.verdict == "passed", verdict.detail


@pytest.mark.parametrize(
    "lie",
    [
        "() if question['do'] == 'calls' else answers(link, question)",
        "list(answers(link, question))[:1]",
        "[next(answers(link, question))] * 2",
        "[{'value': ['o', 0, ''], 'containers': [], 'given': []}] * 99",
        "[{'value': True, 'containers': [], 'given': []}] * 99",
        "[{}] * 99",
        "[3] * 99",
    ],
)
def test_a_program_that_lies_about_its_values_does_not_pass(lie: str) -> None:
    problem = plus(HALVES, plus_input=[[[number]] for number in range(100)])
    verdict = Grader(timeout_s=2.0, num_workers=1).grade_one(problem, COUNTING.format(lie))
    assert verdict.verdict in ("error", "failed", "timeout"), verdict
