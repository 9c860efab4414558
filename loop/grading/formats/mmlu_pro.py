"""MMLU-Pro: questions with up to ten options. The letter that an answer names counts."""

from __future__ import annotations

import re

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.formats.format import Format, TextVerdict
from loop.grading.json_lines import Row
from loop.grading.problem import Problem

LETTERS = "ABCDEFGHIJ"
_ASKED = '\n\nThink step by step, and finish with "the answer is (X)", where X is the letter of the right option.'


def letter(text: str) -> str | None:
    """The letter that evaluate_from_local.py takes: "answer is (X)", else "Answer: X", else the last that stands alone."""
    if match := re.search(r"answer is \(?([A-J])\)?", text):
        return match[1]
    if named := list(re.finditer(r"[aA]nswer:\s*([A-J])", text)):  # the last on the first line that has any
        end = (text + "\n").index("\n", named[0].start())
        return [match for match in named if match.start() < end][-1][1]
    return str(alone[-1]) if (alone := re.findall(r"\b[A-J]\b", text)) else None


def options(row: Row) -> list[str]:
    """The options of a row, without those that only fill the list up."""
    return [str(option) for option in row["options"] if option != "N/A"]


def _problem_of(row: Row, where: str) -> Problem:
    fields.require(row, ("question", "options", "answer"), FORMAT.name, where)
    question = fields.text(row, "question", where)
    offered = fields.texts(row, "options", where)
    right = row["answer"]
    if not isinstance(right, str) or len(right) != 1 or right not in LETTERS[: len(offered)]:
        raise ConfigError(f"{where}: answer is not the letter of one of the {len(offered)} options; give it, such as A")
    lines = "\n".join(f"{each}. {option}" for each, option in zip(LETTERS, options(row), strict=False))
    category = row.get("category")
    return Problem(
        task_id=fields.task_id(row, "question_id", where) if "question_id" in row else fields.named_by(question),
        statement=f"{question.strip()}\n\n{lines}{_ASKED}",
        difficulty=category if isinstance(category, str) else None,
        kind=FORMAT.kind,
        payload={"answer": right},
        reference=f"The answer is ({right}).",
    )


def _verdict(problem: Problem, text: str) -> TextVerdict:
    chosen = letter(text)
    if chosen is None:
        return "no_code", "the answer names no letter"
    return ("passed", "") if chosen == problem.payload["answer"] else ("failed", f"wrong letter, {chosen}")


FORMAT = Format(
    kind="mmlu_pro",
    name="MMLU-Pro",
    keys="options, answer",
    told_by=("options",),
    problem_of=_problem_of,
    reads=_verdict,
)
