"""ml-ssd: `results_*.json`. Its `examples` are those of the last repeat only, so there is one sample of each problem, however many
were drawn; `pass@k` stands in the file as a mean over problems, which cannot be paired.

Written by `save_results` in evaluation/eval.py from `evaluate` in evaluation/benchmark.py (github.com/apple/ml-ssd, 27849bb).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from loop.judging.left import Left, checked
from loop.judging.results import Problem, Results, hash_of

NAME = "ml-ssd"
WHAT = "ml-ssd's results.json"
_NEVER_GRADED = ("Evaluation error:", "Critical error:", "Future error:")


class _Example(BaseModel):
    task_id: str
    correctness: bool
    difficulty: str | None = None
    prompt: str = ""
    reason: str | None = None


class _Outcome(BaseModel):
    examples: list[_Example]
    num_repeat: int = 1


class _File(BaseModel):
    results: _Outcome
    config: dict[str, Any] = {}


def reads(left: Left) -> bool:
    results = left.value.get("results") if isinstance(left.value, dict) else None
    return isinstance(results, dict) and {"examples", "num_repeat"} <= results.keys()


def read(left: Left) -> Iterator[Results]:
    file = checked(_File, left.value, left.path, NAME)
    results, config = file.results, file.config
    notes = []
    if results.num_repeat > 1:
        notes.append(f"the file holds the last of {results.num_repeat} repeats only: one sample of each problem")
    if errors := sum((each.reason or "").startswith(_NEVER_GRADED) for each in results.examples):
        notes.append(f"{errors:,} samples count as wrong because their grading failed, as ml-ssd counts them")
    sampling = str(config.get("sampling_params", ""))
    decoding = dict(pair.split("=", 1) for pair in sampling.replace(" ", "").split(",") if "=" in pair)
    yield Results(
        file=left.path,
        harness=NAME,
        suite="LiveCodeBench v6",
        metric="all tests",
        problems={
            each.task_id: Problem((float(each.correctness),), each.difficulty, None, None, hash_of(each.prompt))
            for each in results.examples
        },
        model=str(config["model"]) if config.get("model") else None,
        decoding={**decoding, **({"max_tokens": config["max_tokens"]} if "max_tokens" in config else {})},
        notes=tuple(notes),
    )
