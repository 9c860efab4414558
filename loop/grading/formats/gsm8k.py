"""GSM8K: a word problem whose solution ends in `#### 18`. What an answer says last counts, as a number."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.formats.format import Format, TextVerdict
from loop.grading.json_lines import Row
from loop.grading.problem import Problem

_MARKED = re.compile(r"####[ \t]*([^\n]{1,60})")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_ASKED = "\n\nReason step by step, and end with the answer on a line of its own, as #### and a number."


def last_number(text: str) -> Decimal | None:
    """The number behind the last `####`; in a text without it, or without a number behind it, the last number."""
    for part in [*reversed(_MARKED.findall(text)), text]:
        if numbers := _NUMBER.findall(part):
            number = numbers[0] if part is not text else numbers[-1]
            try:
                return Decimal(number.replace(",", "").replace("$", ""))
            except InvalidOperation:
                return None
    return None


def _problem_of(row: Row, where: str) -> Problem:
    fields.require(row, ("question", "answer"), FORMAT.name, where)
    question, solution = fields.text(row, "question", where), fields.text(row, "answer", where)
    wanted = last_number(solution) if "####" in solution else None
    if wanted is None:
        raise ConfigError(f"{where}: answer does not end in #### and a number; give the published solution")
    return Problem(
        task_id=fields.task_id(row, "task_id", where) if "task_id" in row else fields.named_by(question),
        statement=question.strip() + _ASKED,
        kind=FORMAT.kind,
        payload={"answer": str(wanted)},
        reference=solution,
    )


def _verdict(problem: Problem, text: str) -> TextVerdict:
    number = last_number(text)
    if number is None:
        return "no_code", "the answer holds no number"
    if number == Decimal(problem.payload["answer"]):
        return "passed", ""
    return "failed", "wrong number"


FORMAT = Format(
    kind="gsm8k",
    name="GSM8K",
    keys="question, answer",
    told_by=("answer",),
    problem_of=_problem_of,
    reads=_verdict,
)
