"""LiveCodeBench: `*_eval_all.json`. The number of samples and the temperature stand in the file's name only.

Written by `main` in lcb_runner/runner/main.py from `insert_output_evaluation` of lcb_runner/benchmarks/code_generation.py; the name
is made in lcb_runner/utils/path_utils.py (github.com/LiveCodeBench/LiveCodeBench, 2025-04).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel

from loop.judging.left import Left, checked
from loop.judging.results import Problem, Results, date_of, hash_of

NAME = "livecodebench"
WHAT = "LiveCodeBench's eval_all.json"


class _Problem(BaseModel):
    question_id: str
    graded_list: list[bool]
    question_content: str = ""
    difficulty: str | None = None
    contest_date: str | None = None


class _File(BaseModel):
    problems: list[_Problem]


def reads(left: Left) -> bool:
    first = left.value[0] if isinstance(left.value, list) and left.value else None
    return isinstance(first, dict) and {"question_id", "graded_list"} <= first.keys()


def read(left: Left) -> Iterator[Results]:
    rows = checked(_File, {"problems": left.value}, left.path, NAME).problems
    named = re.match(r"(?P<scenario>.+)_\d+_(?P<temperature>\d+(?:\.\d+)?)_eval_all\.json", left.path.name)
    yield Results(
        file=left.path,
        harness=NAME,
        suite=f"LiveCodeBench {named['scenario'].removeprefix('Scenario.')}" if named else "LiveCodeBench",
        metric="all tests",
        problems={
            row.question_id: Problem(
                tuple(map(float, row.graded_list)),
                row.difficulty,
                date_of(row.model_dump()),
                hash_of(row.question_content),
            )
            for row in rows
            if row.graded_list
        },
        model=left.path.parent.name if named else None,
        decoding={"temperature": float(named["temperature"])} if named else {},
    )
