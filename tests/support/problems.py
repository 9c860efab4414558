"""Problems for the tests of grading. PLUS_ONE asks for `f(x)`, which is x + 1; SUM for a program that adds numbers up."""

from __future__ import annotations

from collections.abc import Iterable

from loop.grading.grader import Grader, Job
from loop.grading.problem import Problem

Row = tuple[Problem, str | None, str, str]
"""A problem, a program, its verdict, and the verdict's detail ("" where any will do)."""


def assert_problem(*tests: str, setup: str = "", imports: tuple[str, ...] = ()) -> Problem:
    payload = {"tests": list(tests), "setup": setup, "imports": list(imports)}
    return Problem(task_id="p", statement="", kind="mbpp", payload=payload)


def live_problem(*tests: tuple[str, str], func_name: str | None = None) -> Problem:
    testtype = "functional" if func_name else "stdin"
    public = [{"input": given, "output": wanted, "testtype": testtype} for given, wanted in tests]
    payload = {"public": public, "private": None}
    return Problem(task_id="l", statement="", kind="livecodebench", entry_point=func_name, payload=payload)


PLUS_ONE = assert_problem("assert f(1) == 2", "assert f(2) == 3")
SUM = live_problem(("2\n1 2\n", "3\n"), ("3\n4 5 6\n", "15\n"), ("1\n-7", "-7"))


def wrong_verdicts(grader: Grader, rows: Iterable[Row]) -> list[str]:
    """The programs whose verdict is not what the row says. One that passed has no detail."""
    wrong, jobs = [], (Job(row[1:], row[0], row[1]) for row in rows)
    for (code, word, detail), verdict in grader.grade(jobs):  # type: ignore[misc]
        right_detail = verdict.detail == detail if detail or word == "passed" else True
        if verdict.verdict != word or not right_detail:
            wrong.append(f"{code}: {verdict.verdict}: {verdict.detail}")
    return wrong
