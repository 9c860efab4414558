"""HumanEval+ and MBPP+ (Liu et al., 2023, arXiv 2305.01210): the older problems with many more inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loop.grading.json_lines import Row
from loop.grading.known.benchmark import FENCE, Benchmark, File, Harness, PlacedRow, chat
from loop.grading.problem import Problem

_INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
_RESPONSE = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
)


def _asks(row: Row, problem: Problem) -> dict[str, Any]:
    """As evalplus/provider/utility.py and codegen.py do it for chat models."""
    return chat(f"{_INSTRUCTION}\n```\n{row['prompt'].strip()}\n```\n", prefill=f"{_RESPONSE}\n{FENCE}")


_TOO_LARGE = (86, 87, 91, 97, 101)


def _without_the_largest(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """Mbpp/255 without five of its 109 plus inputs, whose right answers have six million entries and more: none gets across."""
    for line, row in rows:
        inputs = row.get("plus_input")
        if row.get("task_id") == "Mbpp/255" and isinstance(inputs, list):
            row = row | {"plus_input": [each for number, each in enumerate(inputs, 1) if number not in _TOO_LARGE]}
        yield line, row


_EVALPLUS = Harness(
    asks=_asks,
    decoding={
        "greedy": True,
        "max_new_tokens": 768,
        "stop": ("\nif __name__", "\ndef main(", "\nprint(", "\n```\n"),
    },
)

HUMANEVAL = Benchmark(
    name="humaneval+",
    about="HumanEval+ v0.1.10, 164 problems, Apache-2.0",
    files=(
        File(
            "HumanEvalPlus.jsonl.gz",
            "https://github.com/evalplus/humanevalplus_release/releases/download/v0.1.10/HumanEvalPlus.jsonl.gz",
            "272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101",
        ),
    ),
    harnesses={"evalplus": _EVALPLUS},
)
MBPP = Benchmark(
    name="mbpp+",
    about="MBPP+ v0.2.0, 378 problems, Mbpp/255 without five huge inputs, Apache-2.0",
    files=(
        File(
            "MbppPlus.jsonl.gz",
            "https://github.com/evalplus/mbppplus_release/releases/download/v0.2.0/MbppPlus.jsonl.gz",
            "af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63",
        ),
    ),
    rows=_without_the_largest,
    harnesses={"evalplus": _EVALPLUS},
)
