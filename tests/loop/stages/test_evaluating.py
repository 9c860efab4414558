"""Evaluating: a harness that fails says whose fault that is."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from loop.errors import HarnessError
from loop.grading.formats import problem_of
from loop.grading.grader import Verdict as Graded
from loop.stages.evaluating import grade
from store.records import Completion, Prompt

PROBLEM = problem_of({"task_id": "t/0", "text": "Return 1.", "test_list": ["assert one() == 1"]}, "here")
PROMPT = Prompt("p", "here", "t/0", "Return 1.", {"opening": ""})


@pytest.mark.parametrize(
    ("detail", "remedy"),
    [
        ("the sandbox could not start: no such file", "; `loopctl doctor` says what the sandbox lacks"),
        ("[Errno 24] Too many open files", "; `loopctl doctor` says what the sandbox lacks"),
        ("problem t/0 has no tests", "; leave the problem out"),
        ("the suite's own code fails: NameError: x", "; leave the problem out"),
        ("the canonical solution fails on base input 1: KeyError: 1; leave the problem out", ""),
        ("the problem by itself uses more than 9 MiB; raise grading.memory_bytes, or leave the problem out", ""),
    ],
)
def test_a_failure_names_the_remedy_that_helps(detail: str, remedy: str) -> None:
    completion = Completion("c", "r", 1, "e", "w", "p", 0, "d", 1, "x", (1,), (2,), "t", 1, 1, "eos", None)
    verdict = Graded(verdict="harness_error", detail=detail, duration_s=0.0, sandbox="none")
    grader = Mock(grade=lambda jobs, ahead: ((job.key, verdict) for job in jobs))
    with pytest.raises(HarnessError) as caught:
        list(grade([completion], {"p": PROBLEM}, {"p": PROMPT}, "e", grader))
    assert str(caught.value) == f"grading t/0 failed: {detail}{remedy}"
