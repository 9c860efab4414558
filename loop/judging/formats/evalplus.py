"""EvalPlus: `*eval_results.json`. A sample passes if the base tests pass and, where they were run, the further tests, too.

Written by `evaluate` in evalplus/evaluate.py (0.3.1); the temperature stands in the file's name, see evalplus/codegen.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel

from loop.judging.left import Left, checked
from loop.judging.results import Problem, Results

NAME = "evalplus"
WHAT = "EvalPlus' eval_results.json"


class _Sample(BaseModel):
    base_status: str | None
    plus_status: str | None


class _File(BaseModel):
    hash: str | None = None
    eval: dict[str, list[_Sample]]


def reads(left: Left) -> bool:
    tasks = left.value.get("eval") if isinstance(left.value, dict) else None
    first = next(iter(tasks.values()), None) if isinstance(tasks, dict) else None
    return isinstance(first, list) and isinstance(first[0] if first else None, dict) and "base_status" in first[0]


def read(left: Left) -> Iterator[Results]:
    file = checked(_File, left.value, left.path, NAME)
    stem = left.path.name.removesuffix(".json").removesuffix("eval_results").rstrip("_.-")
    temperature = re.search(r"_temp_(\d+(?:\.\d+)?)", stem)
    tests = {"plus": "base + extra tests", "base": "base tests"}
    if all(sample.plus_status is None for samples in file.eval.values() for sample in samples):
        del tests["plus"]
    for name, words in tests.items():
        problems = {
            id: Problem(tuple(float(_passed(sample, name == "plus")) for sample in samples))
            for id, samples in file.eval.items()
            if samples
        }
        yield Results(
            file=left.path,
            harness=NAME,
            suite=next(iter(file.eval)).partition("/")[0],
            metric=words,
            problems=problems,
            model=re.sub(r"_(?:hf|vllm|openai|anthropic|google|ollama|gptqmodel|bedrock)_temp_.*", "", stem)
            if temperature
            else None,
            decoding={"temperature": float(temperature[1])} if temperature else {},
            conditions={"hash of the data set": file.hash} if file.hash else {},
        )


def _passed(sample: _Sample, plus: bool) -> bool:
    return sample.base_status == "pass" and (not plus or sample.plus_status == "pass")
