r"""MATH-500: a competition problem whose answer is a piece of LaTeX. The last \boxed{} of an answer counts.

Two answers are the same if they are equal text once written alike, by the rules of the data set's own comparison
(hendrycks/math, modeling/math_equivalence.py, MIT): nothing is computed, so x+1 is not 1+x.
"""

from __future__ import annotations

import re

from loop.grading.formats import fields
from loop.grading.formats.format import Format, TextVerdict
from loop.grading.json_lines import Row
from loop.grading.problem import Problem

MAX_BOXED_CHARS = 1000
_ASKED = "\n\nReason step by step, and put the final answer within \\boxed{}."
_DROPPED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%")


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} or \fbox{...} of a text, or behind `\boxed ` up to the next $."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[text.index("box", start) :].removeprefix("boxed").removeprefix("box")[: MAX_BOXED_CHARS + 2]
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip() if rest.startswith(" ") else None
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:position]
    return None


def written_alike(answer: str) -> str:
    """An answer in the one way of writing it."""
    text = answer.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    if text.count("\\text{ ") == 1:  # a unit
        text = text.partition("\\text{ ")[0]
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    if text.count("=") == 1 and len(text.partition("=")[0]) <= 2:  # "x = 7"
        text = text.partition("=")[2]
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
    text = text.replace(" ", "")
    text = re.sub(r"\\frac([^{\\])([^{\\])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{\\])(?=\{)", r"\\frac{\1}", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"^(-?\d{1,30})/(-?\d{1,30})$", r"\\frac{\1}{\2}", text)


def _problem_of(row: Row, where: str) -> Problem:
    fields.require(row, ("problem", "answer"), FORMAT.name, where)
    question, answer = fields.text(row, "problem", where), fields.text(row, "answer", where)
    level = row.get("level")
    return Problem(
        task_id=fields.task_id(row, "unique_id", where) if "unique_id" in row else fields.named_by(question),
        statement=question.strip() + _ASKED,
        difficulty=f"level {level}" if isinstance(level, int) else fields.difficulty(row, where),
        kind=FORMAT.kind,
        payload={"answer": answer},
        reference=fields.reference(row, "solution"),
    )


def _verdict(problem: Problem, text: str) -> TextVerdict:
    answer = boxed(text)
    if answer is None or not answer.strip():
        return "no_code", "the answer has no \\boxed{}"
    if written_alike(answer) == written_alike(problem.payload["answer"]):
        return "passed", ""
    return "failed", "wrong answer"


FORMAT = Format(
    kind="math500",
    name="MATH-500",
    keys="problem, answer",
    told_by=("problem",),
    problem_of=_problem_of,
    reads=_verdict,
)
