"""lighteval: `details_TASK_DATE.parquet` (`--save-details`), a row for each document.

Written by `save_details` in lighteval/logging/evaluation_tracker.py (0.13.0). Decoding and model stand in results_DATE.json, in the
same directory or where lighteval puts it (results/MODEL beside details/MODEL/DATE), if it is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from loop.judging.left import Left, checked
from loop.judging.results import (
    Problem,
    Results,
    broken,
    date_of,
    difficulty_of,
    hash_of,
    of_mean,
    said,
    text_of,
)
from loop.words import safe
from store.records import Json

NAME = "lighteval"
WHAT = "lighteval's details_*.parquet"
_FILE_NAME = re.compile(r"details_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.parquet")
_MEAN_OF_SAMPLES = re.compile(r"(?:avg@n|pass@k:k=1)\b.*\bn=(\d+)")
_COLUMNS = ["doc", "metric", "model_response"]


class _Doc(BaseModel):
    id: str
    query: str
    specific: Any = None


class _Row(BaseModel):
    doc: _Doc
    metric: dict[str, Any]
    model_response: dict[str, Any] | None = None


def reads(left: Left) -> bool:
    if not left.is_parquet:
        return False
    import pyarrow
    import pyarrow.parquet

    try:
        return set(_COLUMNS) <= set(pyarrow.parquet.read_schema(left.path).names)
    except (pyarrow.ArrowException, OSError):
        return False


def read(left: Left) -> Iterator[Results]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(left.path, columns=_COLUMNS).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise broken(left.path, NAME, f"cannot be read ({safe(error)})") from None
    rows = [checked(_Row, row, left.path, NAME, f"row {number}") for number, row in enumerate(table, 1)]
    named = _FILE_NAME.fullmatch(left.path.name)
    beside = _beside(left.path, named["date"]) if named else {}
    general = said(beside.get("config_general"))
    for metric in dict.fromkeys(metric for row in rows for metric in row.metric):
        yield Results(
            file=left.path,
            harness=NAME,
            suite=named["task"] if named else left.path.name,
            metric=metric,
            problems={row.doc.id: _problem(row, metric) for row in rows},
            model=text_of(general, "model_name"),
            decoding=said(said(general.get("model_config")).get("generation_parameters")),
        )  # fmt: skip


def _problem(row: _Row, metric: str) -> Problem:
    value, mean = row.metric.get(metric), _MEAN_OF_SAMPLES.match(metric)
    asked = said(row.model_response).get("input") or row.doc.query
    outcomes = of_mean(value, int(mean[1])) if mean else (value,)
    return Problem(
        outcomes, difficulty_of(row.doc.specific), date_of(row.doc.specific), hash_of(row.doc.query), hash_of(asked)
    )


def _beside(path: Path, date: str) -> Json:
    """What results_DATE.json says; {} if it is not there."""
    places = [path.parent]
    if "details" in (parts := path.parts):
        at = len(parts) - 1 - parts[::-1].index("details")
        places.append(Path(*parts[:at], "results", *parts[at + 1 : -2]))
    for place in places:
        try:
            beside = json.loads((place / f"results_{date}.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        return beside if isinstance(beside, dict) else {}
    return {}
