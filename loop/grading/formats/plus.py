"""HumanEval+ and MBPP+ as EvalPlus publishes them: inputs instead of tests, and a canonical solution that gives the answers.

JSON has neither tuples nor sets nor complex numbers, so MBPP+ has rules, by task, for which lists stand for them. A few
problems accept more than one answer; their oracles are chosen by the function's name. `inside/compare.py` does the comparison.
The rules are those of evalplus 0.3.1: `data/mbpp.py`, `eval/__init__.py`, `eval/_special_oracle.py` (Apache-2.0).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.formats.format import Format
from loop.grading.formats.humaneval import STATEMENT
from loop.grading.json_lines import Row
from loop.grading.problem import Problem, UntestedProblem
from loop.words import shown

# `is_right` in inside/compare.py says what an oracle's name means. Without one, equal answers are right.
_HUMANEVAL_ORACLES = {"find_zero": "root"}
_MBPP_ORACLES = {
    "are_equivalent": "anything",
    "sum_div": "or_zero",
    "surface_Area": "surface_area",
    "digit_distance_nums": "digit_distance",
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "not_none"),
    **dict.fromkeys(("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"), "set"),
    **dict.fromkeys(("larg_nnum", "intersection_array", "find_dissimilar", "Diff"), "set"),
}


def inputs_of(task_id: str, payload: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """Part -> the arguments of each call. Raises ValueError, with the place, for arguments that the task cannot take."""
    suite, _, number = task_id.partition("/")
    restore = _RESTORERS.get(int(number), list) if suite == "Mbpp" and number.isdecimal() else list
    inputs: dict[str, list[list[Any]]] = {"base": [], "plus": []}
    for part, calls in inputs.items():
        for place, arguments in enumerate(json.loads(payload[part]), start=1):
            try:
                calls.append(list(restore(arguments)))
            except (TypeError, ValueError, IndexError, AttributeError):
                raise ValueError(f"{part}_input {place} is not what {task_id} takes") from None
    return inputs


def _tuples(values: Any) -> list[Any]:
    return [tuple(value) for value in values]


def _lists_of_tuples(values: Any) -> list[Any]:
    return list(map(_tuples, values))


def _deep(value: Any) -> Any:
    return tuple(map(_deep, value)) if isinstance(value, list) else value


def _inner(values: Any) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _sets(values: Any) -> list[Any]:
    return [set(value) if isinstance(value, list) and value else {} for value in values]


_RESTORERS: dict[int, Callable[[list[Any]], Any]] = {
    **dict.fromkeys((2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630), _tuples),
    **dict.fromkeys((726, 740, 744, 809), _tuples),
    **dict.fromkeys((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780), _lists_of_tuples),
    **dict.fromkeys((75, 413, 444, 753), lambda given: [_tuples(given[0]), given[1]]),
    **dict.fromkeys((106, 750), lambda given: [given[0], tuple(given[1])]),
    **dict.fromkeys((250, 405, 446, 617, 720, 763, 808), lambda given: [tuple(given[0]), given[1]]),
    **dict.fromkeys((259, 401, 445), lambda given: [tuple(_tuples(value)) for value in given]),
    **dict.fromkeys((580, 615, 791), _deep),
    115: lambda given: [_sets(given[0])],
    124: lambda given: [float(given[0]), complex(given[1])],
    252: lambda given: [complex(given[0])],
    278: lambda given: [_inner(given[0])],
    307: lambda given: [tuple(given[0]), given[1], given[2]],
    722: lambda given: [{key: tuple(value) for key, value in given[0].items()}, *given[1:]],
}


def _problem_of(row: Row, where: str) -> Problem:
    fields.require(row, ("task_id", "prompt", "entry_point", "canonical_solution", "base_input"), FORMAT.name, where)
    prompt, entry_point = fields.text(row, "prompt", where), fields.identifier(row, "entry_point", where)
    base, more = row["base_input"], row.get("plus_input") or []  # MBPP+ has {} for none
    for key, inputs in (("base_input", base), ("plus_input", more)):
        if not isinstance(inputs, list) or not all(isinstance(arguments, list) for arguments in inputs):
            raise ConfigError(f"{where}: {key} is not a list of lists; write the arguments of each call as a list")
    if not base + more:
        raise UntestedProblem(f"{where}: has neither base_input nor plus_input, so anything would pass; add inputs")
    atol = row.get("atol") or 0
    if isinstance(atol, bool) or not isinstance(atol, int | float) or not 0 <= atol < 1:
        raise ConfigError(f"{where}: atol is {shown(atol)}; expected the absolute tolerance of floats, such as 1e-6")
    program = prompt + fields.text(row, "canonical_solution", where)
    begins_function = re.search(rf"^\s*(?:async\s+)?(?:def|class)\s+{entry_point}\b", prompt, re.MULTILINE)
    problem = Problem(
        task_id=fields.task_id(row, "task_id", where),
        statement=STATEMENT if begins_function else "Write the function that is described here.",
        prompt_code=prompt,
        entry_point=entry_point,
        difficulty=fields.difficulty(row, where),
        date=fields.date(row),
        kind=FORMAT.kind,
        payload={"program": program, "base": json.dumps(base), "plus": json.dumps(more), "atol": atol},
        reference=program,
    )
    try:
        inputs_of(problem.task_id, problem.payload)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; fetch the file again") from None
    return problem


def _judge_job(problem: Problem) -> dict[str, Any]:
    inputs = inputs_of(problem.task_id, problem.payload)
    if not any(inputs.values()):
        raise ValueError("has no tests")
    oracles = {"HumanEval": _HUMANEVAL_ORACLES, "Mbpp": _MBPP_ORACLES}.get(problem.task_id.partition("/")[0], {})
    compared = {"atol": problem.payload["atol"], "oracle": oracles.get(problem.entry_point or "", "")}
    return {"kind": "plus", "program": problem.payload["program"], "inputs": inputs, **compared}


FORMAT = Format(
    kind="plus",
    name="HumanEval+ or MBPP+",
    keys="task_id, prompt, entry_point, canonical_solution, base_input",
    told_by=("base_input",),
    problem_of=_problem_of,
    judge_job=_judge_job,
    prompt_has_helpers=True,
)
