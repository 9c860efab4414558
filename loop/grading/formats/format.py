"""What a format of problem files says of itself. A new format is a file beside this and a name in `__init__.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from loop.grading.json_lines import Row
from loop.grading.problem import Problem

TextVerdict = tuple[Literal["passed", "failed", "no_code"], str]


def _no_program(problem: Problem) -> dict[str, Any]:
    raise ValueError("asks for a text, so there is nothing to run")


@dataclass(frozen=True)
class Format:
    """One format.

    `kind` is its name in problems and stores, so it never changes; `name` and `keys` are for messages. A row has this format
    if it has one of the keys in `told_by` and none of an earlier format's.

    `problem_of` reads a row; its second argument is the row's place. It raises ConfigError, and UntestedProblem where any
    answer would pass. `judge_job` gives what `judge.py` is told, without the names that `loop.grading.formats` adds; it raises
    ValueError. With `prompt_has_helpers`, code that a prompt has before its function belongs to each solution.

    A format whose problems ask for a text and not for a program gives `reads` instead: the verdict on an answer and its detail,
    found by reading it. The text is a model's and may be hostile: it is compared and searched, in time that grows with its length.

    A training prompt has tests in this format if its row has something in one of the `test_keys`; they may need `more_keys`,
    too. `row_of_prompt` makes a row that `problem_of` reads out of the prompt's row, name, statement and starter code.
    """

    kind: str
    name: str
    keys: str
    told_by: tuple[str, ...]
    problem_of: Callable[[Row, str], Problem]
    judge_job: Callable[[Problem], dict[str, Any]] = _no_program
    reads: Callable[[Problem, str], TextVerdict] | None = None
    prompt_has_helpers: bool = False
    test_keys: tuple[str, ...] = ()
    more_keys: tuple[str, ...] = ()
    row_of_prompt: Callable[[Row, str, str, str], Row] = lambda row, name, statement, starter_code: row
