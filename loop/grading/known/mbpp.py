"""MBPP (Austin et al., 2021, arXiv 2108.07732): the problems 11 to 510, which are its test split; 2, 3 and 4 are the examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loop.errors import ConfigError
from loop.grading.json_lines import Row
from loop.grading.known.benchmark import Benchmark, File, Harness, PlacedRow, bare
from loop.grading.problem import Problem

_TEST_IDS, _SHOT_IDS = range(11, 511), (2, 3, 4)
_AT = "https://raw.githubusercontent.com/google-research/google-research/4700efb9afa54286b0e04473ba80a13e8461e25f/mbpp/"


def _rows(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The test split, each row with the three examples of the prompt, as far as the file has them before it."""
    shots: list[Row] = []
    for line, row in rows:
        if row.get("task_id") in _SHOT_IDS:
            shots.append(row)
        elif row.get("task_id") in _TEST_IDS:
            yield line, row | {"shots": shots}


def _task(row: Row) -> str:
    tests = "\n".join(row["test_list"])
    statement = row["text"] if "text" in row else row["prompt"]
    return (
        f"You are an expert Python programmer, and here is your task: {statement} Your code should pass these tests:\n\n"
        f"{tests}\n[BEGIN]\n"
    )


def _asks(row: Row, problem: Problem) -> dict[str, Any]:
    """The paper's prompt with its three examples."""
    if len(row["shots"]) != len(_SHOT_IDS):
        raise ConfigError(
            "mbpp@google: the file lacks problems 2, 3 and 4, which the prompt shows; take the whole file"
        )
    shots = [f"{_task(shot)}{shot['code']}\n[DONE]\n\n" for shot in row["shots"]]
    return bare("".join(shots) + _task(row))


_HARNESSES = {"google": Harness(asks=_asks, decoding={"stop": ("[DONE]",)})}

FULL = Benchmark(
    name="mbpp",
    about="MBPP, its 500 test problems, August 2021, CC BY 4.0",
    files=(File("mbpp.jsonl", f"{_AT}mbpp.jsonl", "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"),),
    rows=_rows,
    harnesses=_HARNESSES,
)
SANITIZED = Benchmark(
    name="mbpp/sanitized",
    about="MBPP, the hand-verified ones of its test problems, CC BY 4.0",
    files=(
        File(
            "sanitized-mbpp.json",
            f"{_AT}sanitized-mbpp.json",
            "8ac32b2799150228e2d745aed09c870b7e4444246d4727d1004576207ef40769",
        ),
    ),
    rows=_rows,
    harnesses=_HARNESSES,
)
