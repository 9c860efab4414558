"""Our own `loopctl grade --json`: a line for each completion, then the summary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from loop.judging.left import Left, checked
from loop.judging.results import Problem, Results, date_of, without_ungraded

NAME = "loopctl grade"
WHAT = "what `loopctl grade --json` prints"


class _Line(BaseModel):
    task_id: str
    verdict: str
    difficulty: str | None = None
    date: str | None = None


def reads(left: Left) -> bool:
    return {"task_id", "verdict"} <= left.first_row.keys()


def read(left: Left) -> Iterator[Results]:
    rows = [row for row in left.rows() if "summary" not in row]
    lines = [checked(_Line, row, left.path, NAME, f"line {number}") for number, row in enumerate(rows, 1)]
    outcomes: dict[str, list[Any]] = defaultdict(list)
    for line in lines:
        outcomes[line.task_id].append(None if line.verdict == "harness_error" else float(line.verdict == "passed"))
    about = {line.task_id: line for line in lines}
    graded, notes = without_ungraded(outcomes, "harness_error")
    yield Results(
        file=left.path,
        harness=NAME,
        suite=lines[0].task_id.partition("/")[0],
        metric="all tests",
        problems={
            id: Problem(each, about[id].difficulty, date_of(about[id].model_dump())) for id, each in graded.items()
        },
        notes=notes,
    )
