"""LiveCodeBench (Jain et al., 2024, arXiv 2403.07974): contest problems with their dates, in releases that only grow.

`livecodebench/v6` is what the benchmark calls release_v6, the files of all six versions; v6 alone is their last file.
"""

from __future__ import annotations

from typing import Any

from loop.grading.json_lines import Row
from loop.grading.known.benchmark import FENCE, Benchmark, Harness, chat, on_hub
from loop.grading.problem import Problem

_REPO, _REVISION = "livecodebench/code_generation_lite", "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"
_SHA256 = (
    "2bd02b38beb48e8c46b5b9987095d999ff38cd8efc255ea5d58974317c48f63f",
    "095df7c5daf15f882c51a9deb84085cff1e073495a5dbcf95015a564d485f3a3",
    "28ed26cc83363ce3f1fe2d5fad9f8393077beb1907b167a31bd3b32f80801b79",
    "d711138ddaebfcf5f8ec6a4283ee677298c0f5c5d374a235af92aaf0584510da",
    "7f77571c2a6df0c2a72a3277650309f67e01e0008e18117e624633df53f81214",
    "bb4c364f71921c4495a6ad15abe1a927350b720009f4933e2e71f8af0f6fd1f5",
)
_FILES = [
    on_hub(_REPO, _REVISION, f"test{number if number > 1 else ''}.jsonl", sha256)
    for number, sha256 in enumerate(_SHA256, start=1)
]

_SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
_WITH_STARTER_CODE = "You will use the following starter code to write the solution to the problem and enclose your code within delimiters."
_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)


def _official(row: Row, problem: Problem) -> dict[str, Any]:
    """lcb_runner/prompts/code_generation.py at 28fef95: the messages of its chat models."""
    starter = row.get("starter_code")
    wanted, code = (_WITH_STARTER_CODE, starter) if starter else (_STDIN, "# YOUR CODE HERE")
    return chat(
        f"### Question:\n{row['question_content']}\n\n### Format: {wanted}\n{FENCE}{code}\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n",
        system=_SYSTEM,
    )


def _apple(row: Row, problem: Problem) -> dict[str, Any]:
    """evaluation/benchmark.py of ml-ssd: another wording, no system message."""
    begins = _SYSTEM.partition(". ")[2] + " You will NOT return anything except for the program."
    if problem.entry_point is None:
        wanted, code = _STDIN, "  # YOUR CODE HERE"
    else:
        wanted, code = _WITH_STARTER_CODE.removesuffix(".") + " as follows.", row.get("starter_code") or ""
    return chat(f"{begins}\n\nQuestion: {row['question_content']}\n\n{wanted}\n{FENCE}{code}\n```")


_HARNESSES = {
    "official": Harness(
        asks=_official,
        decoding={
            "temperature": 0.2,
            "top_p": 0.95,
            "max_new_tokens": 2000,
            "num_samples": 10,
            "pass_at": (1, 5),
            "stop": ("###",),
        },
    ),
    "apple": Harness(
        asks=_apple,
        decoding={
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "max_new_tokens": 32768,
            "num_samples": 20,
            "pass_at": (1, 5, 10),
        },
        window="2025-02..2025-05",
    ),
}

BENCHMARKS = tuple(
    Benchmark(
        name=f"livecodebench/v{release}",
        about=f"LiveCodeBench's code generation (lite), release {release}, CC",
        files=tuple(_FILES[:release]),
        harnesses=_HARNESSES if release == 6 else {"official": _HARNESSES["official"]},
        has_dates=True,
    )
    for release in range(1, 7)
)
