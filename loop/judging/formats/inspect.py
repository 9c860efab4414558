"""inspect: `.eval` logs, zip files whose members are JSON: `header.json` and `summaries.json` are all that is needed.

Written by `EvalRecorder` in inspect_ai/log/_recorders/eval.py (0.3.285); scores become numbers as `value_to_float` in
inspect_ai/scorer/_metric.py does it. Nothing of inspect is imported.
"""

from __future__ import annotations

import math
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from loop.judging.left import Left, checked, members
from loop.judging.results import (
    Problem,
    Results,
    broken,
    date_of,
    difficulty_of,
    hash_of,
    said,
    without_ungraded,
)
from loop.words import safe, shown

NAME = "inspect"
WHAT = "inspect's .eval logs"
_WORDS = {"c": 1.0, "p": 0.5, "i": 0.0, "n": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


class _Score(BaseModel):
    value: Any


class _Sample(BaseModel):
    id: int | str
    epoch: int
    input: Any
    metadata: dict[str, Any] = {}
    scores: dict[str, _Score] | None = None


class _Samples(BaseModel):
    samples: list[_Sample]


class _Eval(BaseModel):
    task: str
    task_version: int | str = 0
    model: str
    model_generate_config: dict[str, Any] = {}


class _Plan(BaseModel):
    steps: list[dict[str, Any]] = []
    config: dict[str, Any] = {}


class _Header(BaseModel):
    status: str
    eval: _Eval
    plan: _Plan = _Plan()
    results: dict[str, Any] | None = None


def reads(left: Left) -> bool:
    if not left.is_zip:
        return False
    try:
        with zipfile.ZipFile(left.path) as archive:
            return bool({"header.json", "_journal/start.json"} & set(archive.namelist()))
    except (zipfile.BadZipFile, OSError):
        return False


def read(left: Left) -> Iterator[Results]:
    first, summaries = members(left.path, ("header.json", "summaries.json"), NAME)
    header = checked(_Header, first, left.path, NAME, "header.json")
    samples = checked(_Samples, {"samples": summaries}, left.path, NAME, "summaries.json").samples
    if header.status != "success":
        raise broken(left.path, NAME, f"its evaluation ended as {shown(header.status)}, not as success")
    scorers = list(dict.fromkeys(name for sample in samples for name in sample.scores or {}))
    headline = said((header.results or {}).get("headline")).get("score")
    scorers.sort(key=lambda name: name != headline)
    about = {str(sample.id): sample for sample in samples}
    solvers = [str(step.get("solver")) for step in header.plan.steps]
    settings = said(header.eval.model_generate_config) | said(header.plan.config)
    for scorer in scorers:
        outcomes: dict[str, list[Any]] = defaultdict(list)
        for sample in sorted(samples, key=lambda sample: sample.epoch):
            given = (sample.scores or {}).get(scorer)
            outcomes[str(sample.id)].append(None if given is None else _number(given.value))
        graded, notes = without_ungraded(outcomes, f"no score of {safe(scorer)}")
        yield Results(
            file=left.path,
            harness=NAME,
            suite=header.eval.task,
            metric=scorer,
            problems={id: _problem(about[id], each) for id, each in graded.items()},
            model=header.eval.model,
            decoding={key: value for key, value in settings.items() if not key.startswith("max_connections")},
            conditions={"version": header.eval.task_version} | ({"solvers": solvers} if solvers else {}),
            notes=notes,
        )


def _problem(sample: _Sample, outcomes: tuple[Any, ...]) -> Problem:
    asked = sample.input
    if isinstance(asked, list):  # messages have ids that differ from run to run
        asked = [(message.get("role"), message.get("content")) for message in asked if isinstance(message, dict)]
    return Problem(outcomes, difficulty_of(sample.metadata), date_of(sample.metadata), None, hash_of(asked))


def _number(value: Any) -> Any:
    """A score as inspect counts it; None for its mark of what was not scored."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value
