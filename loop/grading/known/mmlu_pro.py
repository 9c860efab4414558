"""MMLU-Pro (Wang et al., 2024, arXiv 2406.01574): questions of fourteen subjects with up to ten options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loop.errors import ConfigError
from loop.grading.formats.mmlu_pro import LETTERS, options
from loop.grading.json_lines import Row
from loop.grading.known.benchmark import Benchmark, Harness, PlacedRow, bare, on_hub
from loop.grading.problem import Problem

_NUM_SHOTS = 5
_REPO, _REVISION = "TIGER-Lab/MMLU-Pro", "b189ec765aa7ed75c8acfea42df31fdae71f97be"
_INITIAL = (
    "You are an expert in {subject}. Below is a series of example questions (with answers) about {subject} for "
    "demonstration. You will be given a question at the end, after the examples, for you to answer. First give "
    "step-by-step reasoning about how to solve the question. Then output the answer."
)


def _rows(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The questions, each with the examples of its subject: the validation file comes first, and its rows have reasoning."""
    shots: dict[str, list[Row]] = {}
    for line, row in rows:
        if row.get("cot_content"):
            shots.setdefault(str(row.get("category")), []).append(row)
        else:
            yield line, row | {"shots": shots.get(str(row.get("category")), [])[:_NUM_SHOTS]}


def _example(row: Row) -> str:
    lines = "".join(f"{each}. {option}\n" for each, option in zip(LETTERS, options(row), strict=False))
    return f"Question:\n{row['question']}\nOptions:\n{lines}"


def _asks(row: Row, problem: Problem) -> dict[str, Any]:
    """evaluate_from_local.py: five examples of the subject, as a text to be continued."""
    if len(row["shots"]) != _NUM_SHOTS:
        raise ConfigError(f"mmlu-pro@tiger: {row.get('category')} has no five examples; give the folder of both files")
    begun = "Answer: Let's think step by step."
    told = "A: Let's think step by step."
    shots = "".join(_example(shot) + shot["cot_content"].replace(told, begun) + "\n\n" for shot in row["shots"])
    return bare(f"{_INITIAL.format(subject=row['category'])}\n{shots}{_example(row)}{begun}")


BENCHMARK = Benchmark(
    name="mmlu-pro",
    about="MMLU-Pro, 12,032 questions, June 2024, MIT",
    files=(
        on_hub(_REPO, _REVISION, "data/validation-00000-of-00001.parquet"),
        on_hub(_REPO, _REVISION, "data/test-00000-of-00001.parquet"),
    ),
    rows=_rows,
    harnesses={
        "tiger": Harness(asks=_asks, decoding={"greedy": True, "max_new_tokens": 2048, "stop": ("Question:",)}),
    },
)
