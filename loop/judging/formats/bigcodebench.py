"""BigCodeBench: `*_eval_results.json`. Split, temperature and model stand in the file's name only.

Written by `evaluate` in bigcodebench/evaluate.py (0.2.5); the name is made in `run_codegen` of bigcodebench/generate.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel

from loop.judging.left import Left, checked
from loop.judging.results import Problem, Results

NAME = "bigcodebench"
WHAT = "BigCodeBench's eval_results.json"
_FILE_NAME = re.compile(
    r"(?P<model>.+?)--bigcodebench(?P<subset>-hard)?-(?P<split>complete|instruct)--\w+-(?P<temperature>[\d.]+)-\d+-"
)


class _Sample(BaseModel):
    status: str | None


class _File(BaseModel):
    eval: dict[str, list[_Sample]]


def reads(left: Left) -> bool:
    tasks = left.value.get("eval") if isinstance(left.value, dict) else None
    first = next(iter(tasks.values()), None) if isinstance(tasks, dict) else None
    return isinstance(first, list) and isinstance(first[0] if first else None, dict) and "status" in first[0]


def read(left: Left) -> Iterator[Results]:
    file = checked(_File, left.value, left.path, NAME)
    named = _FILE_NAME.match(left.path.name)
    yield Results(
        file=left.path,
        harness=NAME,
        suite=f"BigCodeBench{named['subset'] or ''}-{named['split']}" if named else "BigCodeBench",
        metric="all tests",
        problems={
            id: Problem(tuple(float(sample.status == "pass") for sample in samples))
            for id, samples in file.eval.items()
            if samples
        },
        model=named["model"].replace("--", "/", 1) if named else None,
        decoding={"temperature": float(named["temperature"])} if named else {},
    )
