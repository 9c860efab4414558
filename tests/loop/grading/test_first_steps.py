"""The shipped suite measures something: no answer passes that does not look at its task. Its references pass: test_verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from loop.grading.problem import Problem
from loop.grading.suite import load_suite

PROBLEMS = load_suite("first-steps").problems
TRIVIAL = {
    "None": lambda *args: None,
    "0": lambda *args: 0,
    "1": lambda *args: 1,
    "True": lambda *args: True,
    "False": lambda *args: False,
    "an empty list": lambda *args: [],
    "an empty string": lambda *args: "",
    "its first argument": lambda *args: args[0] if args else None,
}


def passes(problem: Problem, function: Any) -> bool:
    """These are our own assertions on our own functions: no sandbox is needed."""
    try:
        for test in problem.payload["tests"]:
            exec(test, {problem.entry_point or "": function})
    except Exception:  # whatever a wrong answer leads to
        return False
    return True


@pytest.mark.parametrize("answer", TRIVIAL)
def test_a_trivial_answer_fails(answer: str) -> None:
    assert [problem.task_id for problem in PROBLEMS if passes(problem, TRIVIAL[answer])] == []


def test_the_suite_is_large_enough_and_says_how_hard_each_task_is() -> None:
    assert len(PROBLEMS) >= 200
    assert {problem.difficulty for problem in PROBLEMS} == {"easy", "medium"}
    assert all(problem.prompt_code and problem.entry_point for problem in PROBLEMS)
    assert len({problem.entry_point for problem in PROBLEMS}) == len({p.task_id for p in PROBLEMS}) == len(PROBLEMS)


def test_the_check_bites() -> None:
    for problem in PROBLEMS:
        space: dict[str, Any] = {}
        exec(problem.reference or "", space)
        assert passes(problem, space[problem.entry_point or ""]), problem.task_id
