"""The formats of problem files: a file each, and a line each in the table below. All that others know of them is here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from loop.errors import ConfigError, HarnessError
from loop.grading.formats import gsm8k, humaneval, ifeval, livecodebench, math500, mbpp, mmlu_pro, plus, repository
from loop.grading.formats.format import TextVerdict
from loop.grading.problem import Problem
from loop.words import shown

# A row has the first format of which it has a key.
_FORMATS = (
    repository.FORMAT,
    mmlu_pro.FORMAT,  # its rows have a question_id, too
    livecodebench.FORMAT,
    plus.FORMAT,
    mbpp.FORMAT,
    humaneval.FORMAT,
    ifeval.FORMAT,
    math500.FORMAT,
    gsm8k.FORMAT,
)
# A training prompt is tested in the first for which its row has tests. Fetched data sets are known by the keys in this order.
FORMATS_OF_PROMPTS = (mbpp.FORMAT, humaneval.FORMAT, livecodebench.FORMAT)

_BY_KIND = {form.kind: form for form in _FORMATS}
NAMES = ", ".join(form.name for form in reversed(_FORMATS))
_DESCRIBED = [f"{form.name} ({form.keys})" for form in reversed(_FORMATS)]
DESCRIPTION = f"{', '.join(_DESCRIBED[:-1])} or {_DESCRIBED[-1]}"
DEFINITION = r"(?:(?:async[ \t]+)?def|class)[ \t]+"


def problem_of(row: dict[str, Any], where: str) -> Problem:
    """A row as the problem that it describes; `where` is its place for messages. Raises ConfigError, UntestedProblem."""
    for form in _FORMATS:
        if any(key in row for key in form.told_by):
            return form.problem_of(row, where)
    keys = ", ".join(shown(key)[1:-1] for key in list(row)[:8]) or "none"
    raise ConfigError(f"{where}: is in no known format (keys: {keys}); expected {DESCRIPTION}")


def asks_for_text(problem: Problem) -> bool:
    """Whether an answer is read as it stands, and no program is taken out of it and run."""
    return _BY_KIND[problem.kind].reads is not None


def is_of_repository(problem: Problem) -> bool:
    """Whether a repository's own tests judge, in its own package (`loop.grading.repositories`)."""
    return problem.kind == repository.FORMAT.kind


def beside(problem: Problem, file: Path) -> Problem:
    """The problem as one of this file, beside which a repository's problem has what it needs."""
    return problem.model_copy(update={"place": str(file.parent.resolve())}) if is_of_repository(problem) else problem


def verdict_on_text(problem: Problem, text: str) -> TextVerdict:
    """The verdict on an answer to a problem that asks for text, and its detail."""
    reads = _BY_KIND[problem.kind].reads
    assert reads is not None
    return reads(problem, text)


def judge_job(problem: Problem) -> dict[str, Any]:
    """What the tests' process is told, as plain data. Raises HarnessError for a problem that has no tests.

    `called` names what a solution has to define; `imports` run before it, and `before` is the beginning that it may have from
    the prompt: neither counts as its own.
    """
    before = code_before(problem)
    if not re.search(rf"\b{problem.entry_point}\b|import\s*\*", before):
        before = ""  # it cannot bind the function's name
    names = {"imports": "", "before": before, "called": [problem.entry_point]}
    try:
        return names | _BY_KIND[problem.kind].judge_job(problem)
    except ValueError as error:
        raise HarnessError(f"problem {problem.task_id}: {error}") from None


def code_before(problem: Problem) -> str:
    """The imports and helper functions that the prompt has before the function that it asks for, or ""."""
    if not _BY_KIND[problem.kind].prompt_has_helpers:
        return ""
    function = re.search(rf"^{DEFINITION}{re.escape(problem.entry_point or '')}\b", problem.prompt_code, re.MULTILINE)
    return problem.prompt_code[: function.start()].strip() if function else ""
