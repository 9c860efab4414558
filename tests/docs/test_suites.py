"""The problem files that docs/problem-files.md shows are ones: they load, the right answers pass, and wrong ones do not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from loop.grading.extract import extract_code
from loop.grading.formats.livecodebench import livecodebench_tests
from loop.grading.grader import Grader, Job
from loop.grading.suite import load_suite
from tests.support import ROOT

PAGE = (ROOT / "docs" / "problem-files.md").read_text(encoding="utf-8")
ROWS = [json.loads(line) for block in re.findall(r"```jsonl\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
RIGHT = {
    "abc_a": "input()\nprint(sum(map(int, input().split())))",
    "3001": "        return max(xs)",
    "1000": "Blue is one",
}
WRONG = {"abc_a": "print(3)", "3001": "        return xs[0]", "1000": "Red, green", "own/2": "\\boxed{3}", "1": "(B)"}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("docs") / "page.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return load_suite(str(file))


def test_the_examples_load_as_what_they_are(suite: Any) -> None:
    kinds = [problem.kind for problem in suite.problems]
    assert kinds == [
        "mbpp",
        "mbpp",
        "humaneval",
        "plus",
        "plus",
        "livecodebench",
        "livecodebench",
        "gsm8k",
        "math500",
        "mmlu_pro",
        "ifeval",
    ]
    own, live = suite.problems[0], suite.problems[5]
    assert (own.difficulty, own.date, own.entry_point) == ("easy", "2025-01-31", "total_price")
    assert (live.difficulty, live.date) == ("easy", "2024-01-06T00:00:00")
    assert [test["output"] for test in livecodebench_tests(live)] == ["3\n", "3\n", "15\n"], "the packed ones, too"


def test_the_examples_are_graded(suite: Any) -> None:
    grader = Grader(num_workers=2)
    jobs = []
    for problem in suite.problems:
        right = extract_code(RIGHT.get(problem.task_id, problem.reference), problem, prefilled_fence=False)
        wrong = extract_code(WRONG[problem.task_id], problem, False) if problem.task_id in WRONG else None
        jobs.append(Job((problem.task_id, "passed"), problem, right))
        jobs.append(Job((problem.task_id, "failed"), problem, wrong or f"def {problem.entry_point}(*given): return 77"))
    verdicts = [(key, verdict.verdict, verdict.detail) for key, verdict in grader.grade(jobs)]
    assert [graded for graded in verdicts if graded[1] != graded[0][1]] == []


STDIN = [
    ("input(); print(sum(map(int, input().split()))); raise SystemExit(1)", "passed"),
    ("import os\ninput(); print(sum(map(int, input().split())), flush=True); os._exit(3)", "passed"),
    ("input(); print(sum(map(int, input().split())), '\\n\\n')", "passed"),
    ("input(); print(sum(map(int, input().split()))); print('done')", "failed"),
    ("input(); print(sum(map(int, input().split()))); 1 / 0", "error"),
    ("import os\ninput(); print(sum(map(int, input().split())), flush=True); os.abort()", "error"),
    ("import sys\ninput(); print(sum(map(int, input().split()))); sys.stderr.write('note')", "passed"),
    ("input(); print(f'{sum(map(int, input().split())):.2f}')", "passed"),
    ("input(); print(sum(map(int, input().split())), 'x' * 100000)", "failed"),
]


def test_what_the_page_says_of_programs_that_print(suite: Any) -> None:
    (problem,) = (problem for problem in suite.problems if problem.task_id == "abc_a")
    verdicts = Grader(num_workers=2).grade(Job(code, problem, code) for code, _ in STDIN)
    assert [(key, verdict.verdict) for key, verdict in verdicts] == STDIN
