"""Suites: files of problems in any of the formats, published benchmarks by name, and the shipped first steps.

Every mistake in a file is a ConfigError of one line, raised when the file is read and not in the middle of a run. Nothing in
a file is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from loop.errors import ConfigError
from loop.grading.extract import EXTRACTION_VERSION
from loop.grading.formats import DESCRIPTION, beside, humaneval, problem_of
from loop.grading.json_lines import Row, read_bytes, read_file, sound
from loop.grading.known import wanted
from loop.grading.known.files import rows_of
from loop.grading.problem import Problem
from loop.words import safe, shown

SPLIT_ORDER = ("select", "confirm", "final")


class Suite(BaseModel):
    """Problems in the order of their file. `sha256` covers all of them, with statements, tests and published prompts.

    `decoding` has the keys of a [[suites]] table that the harness in its name decodes with; it has none without a harness.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    source: str
    problems: tuple[Problem, ...]
    sha256: str
    decoding: dict[str, Any] = {}

    @property
    def identity(self) -> str:
        """Equal for gradings that can be compared: a hash of the problems and of how code is taken out of an answer."""
        decoding = " decoding " + json.dumps(self.decoding, sort_keys=True) if self.decoding else ""
        return hashlib.sha256(f"{self.sha256} extraction {EXTRACTION_VERSION}{decoding}".encode()).hexdigest()


def load_suite(source: str, limit: int | None = None, base_dir: Path | None = None, fetch: bool = True) -> Suite:
    """Read "first-steps", a benchmark by name or a .jsonl, .jsonl.gz or .json file (relative to `base_dir`).

    `limit` takes the problems with the smallest hash of their id, so that a suite that grows keeps most of its subset.
    Raises ConfigError and PermissionDenied; NotHere for a benchmark that is not on this machine, where it may not `fetch`.
    """
    published = (named := wanted(source)) and named.published
    name, place, rows = suite_rows(source, base_dir, fetch)
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for line, row in sound(rows):
        where = f"{place}:{line}"
        problem = problem_of(row, where)
        if problem.task_id in lines:
            earlier = f"task_id {shown(problem.task_id)} is already used in line {lines[problem.task_id]}"
            raise ConfigError(f"{where}: {earlier}; each problem needs its own")
        lines[problem.task_id] = line
        try:
            asked = published.asks(row, problem) if published else None
        except (LookupError, TypeError, AttributeError):
            raise ConfigError(f"{where}: lacks what {name} asks with; fetch the file again") from None
        problem = beside(problem, (base_dir or Path()) / Path(source).expanduser())
        problems.append(problem.model_copy(update={"asked": asked}) if asked else problem)
    if not problems:
        raise ConfigError(f"{place}: holds no problems; expected one JSON object per line: {DESCRIPTION}")
    if limit is not None and limit < len(problems):
        # with a prefix of its own, or a limit would keep only problems of the first split
        chosen = set(sorted(lines, key=lambda task_id: _hash("limit:" + task_id))[:limit])
        problems = [problem for problem in problems if problem.task_id in chosen]
    hashes = (hashlib.sha256(json.dumps(problem.content(), sort_keys=True).encode()).digest() for problem in problems)
    sha256 = hashlib.sha256(b"".join(hashes)).hexdigest()
    decoding = dict(published.decoding) if published else {}
    return Suite(name=name, source=source, problems=tuple(problems), sha256=sha256, decoding=decoding)


def split_of(task_id: str, shares: Mapping[str, float]) -> str:
    """The split of a problem: the SHA-256 of its id as a number in [0, 1) against the shares, laid end to end.

    It depends on nothing else, so it never moves when problems are added or the shares are written in another order.
    """
    position = int.from_bytes(_hash(task_id)[:8], "big") / 2**64
    order = [*SPLIT_ORDER, *sorted(shares.keys() - set(SPLIT_ORDER))]
    names = [name for name in order if shares.get(name, 0.0) > 0.0]
    end = 0.0
    for name in names:
        end += shares[name]
        if position < end:
            return name
    return names[-1]  # the shares sum to 1, except for rounding


def suite_rows(
    source: str, base_dir: Path | None, fetch: bool = True
) -> tuple[str, str, Iterator[tuple[int, Row | ConfigError]]]:
    """The suite's name, what messages call its file, and its rows as `json_lines` reads them."""
    if source == "first-steps":
        content = (importlib.resources.files("loop.grading") / "suites" / "first_steps.jsonl").read_bytes()
        return source, "first_steps.jsonl", read_bytes(content, "first_steps.jsonl")
    if named := wanted(source):
        file = named.benchmark.files[0].name
        if named.benchmark.name == "humaneval" and named.path is None:
            read = read_bytes(humaneval.installed_file(), file)
        else:
            read = rows_of(named, base_dir, fetch)
        place = named.path or (file if len(named.benchmark.files) == 1 else named.name)
        return named.name, safe(place), iter(named.rows(sound(read)))
    path = (base_dir or Path()) / Path(source).expanduser()
    choices = 'suites are "first-steps", "humaneval", other benchmarks by name, or a .jsonl, .jsonl.gz or .json file'
    rows = read_file(path, "problems", choices, lists=True)
    return re.sub(r"\.(jsonl|json)(\.gz)?$", "", path.name), safe(path), rows


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
