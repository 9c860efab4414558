"""lm-evaluation-harness: `samples_TASK_DATE.jsonl` (`--log_samples`), a row for each document and filter.

Written by `save_results_samples` in lm_eval/loggers/evaluation_tracker.py (0.4.13); the rows are made by `evaluate` in
lm_eval/evaluator.py. Model and number of shots stand in results_DATE.json in the same directory, if it is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from loop.judging.left import Left, checked
from loop.judging.results import Problem, Results, broken, date_of, difficulty_of, of_mean, said, text_of
from loop.words import safe
from store.records import Json

NAME = "lm-eval"
WHAT = "lm-evaluation-harness' samples_*.jsonl"
_FILE_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+))?\.jsonl")
_MEAN_OF_SAMPLES = re.compile(r"pass(?:@|_at_)1\b")


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow")  # a key for each metric

    doc_id: int
    metrics: list[str]
    filter: str = "none"
    doc: Any = None
    doc_hash: str | None = None
    prompt_hash: str | None = None
    arguments: Any = None
    resps: Any = None


def reads(left: Left) -> bool:
    return {"doc_id", "metrics", "doc_hash"} <= left.first_row.keys()


def read(left: Left) -> Iterator[Results]:
    rows = [checked(_Row, row, left.path, NAME, f"line {number}") for number, row in enumerate(left.rows(), 1)]
    named = _FILE_NAME.fullmatch(left.path.name)
    task = named["task"] if named else left.path.name
    beside = _beside(left, named["date"]) if named and named["date"] else {}
    more = {
        key: value[task]
        for key in ("versions", "n-shot", "higher_is_better")
        if task in (value := beside.get(key) or {})
    }
    for metric, filter in dict.fromkeys((metric, row.filter) for row in rows for metric in row.metrics):
        if said(more.get("higher_is_better")).get(metric) is False:
            continue  # it counts mistakes
        problems: dict[str, Problem] = {}
        for number, row in enumerate(rows, 1):
            if row.filter == filter and metric in row.metrics:
                if str(row.doc_id) in problems:
                    raise broken(
                        left.path, NAME, f"line {number}: doc_id {row.doc_id} is there twice for {safe(filter)}"
                    )
                problems[str(row.doc_id)] = _problem(row, metric)
        yield Results(
            file=left.path,
            harness=NAME,
            suite=task,
            metric=metric if filter == "none" else f"{metric},{filter}",
            problems=problems,
            model=text_of(beside, "model_name") or (left.path.parent.name if named else None),
            decoding=_decoding(rows[0]),
            conditions={words: more[key] for key, words in (("versions", "version"), ("n-shot", "number of shots")) if key in more},
        )  # fmt: skip


def _problem(row: _Row, metric: str) -> Problem:
    value = (row.model_extra or {}).get(metric)
    drawn = row.resps[0] if isinstance(row.resps, list) and row.resps and isinstance(row.resps[0], list) else ()
    outcomes = of_mean(value, len(drawn)) if _MEAN_OF_SAMPLES.match(metric) else (value,)
    return Problem(outcomes, difficulty_of(row.doc), date_of(row.doc), row.doc_hash, row.prompt_hash)


def _decoding(row: _Row) -> Json:
    """The generation arguments, which stand in every row; likelihoods have none."""
    first = row.arguments.get("gen_args_0") if isinstance(row.arguments, dict) else None
    settings = first.get("arg_1") if isinstance(first, dict) else None
    return said(settings)


def _beside(left: Left, date: str) -> Json:
    """What results_DATE.json says; {} if it is not there."""
    try:
        beside = json.loads((left.path.parent / f"results_{date}.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return beside if isinstance(beside, dict) else {}
