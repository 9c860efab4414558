"""Runs all tests of a repository, several times in shuffled order, and says which pass each time and what they reach."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from loop.errors import ConfigError, HarnessError
from loop.grading.repositories import Environment, RepositoryHost
from loop.mining.environment import own_packages

NUM_RUNS = 3
Spans = dict[str, list[tuple[int, int]]]
"""For each file the first and the last line of each function's body."""


class Survey(NamedTuple):
    """What all tests came to. `seconds` are those of the tests that always pass, `left_out` the reasons for the others.

    `reached` has for each function of the spans, as (file, number), the tests that run a line of its body.
    """

    seconds: dict[str, float]
    left_out: dict[str, str]
    reached: dict[tuple[str, int], list[str]]
    troubles: list[str]


def survey(tree: Path, environment: Environment, spans: Spans, limit_s: float, say: Callable[[str], None]) -> Survey:
    """Run the tests NUM_RUNS times. A test that takes more than `limit_s` seconds counts as failed. Raises ConfigError."""
    runs = []
    for number in range(1, NUM_RUNS + 1):
        say(f"running all tests in shuffled order, {number} of {NUM_RUNS}")
        runs.append(_run(tree, environment, spans if number == 1 else {}, number, limit_s))
        if number == 1 and not runs[0]["outcomes"]:
            trouble = (runs[0]["troubles"] or [f"pytest ended with status {runs[0]['status']}"])[0]
            raise ConfigError(
                f"no tests: pytest collects none in the sandbox ({trouble}); give a repository with tests that run under --python"
            )
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, (outcome, took_s, reason) in runs[0]["outcomes"].items():
        others = [run["outcomes"].get(name, ["missing", 0.0, "it was not collected again"]) for run in runs[1:]]
        outcomes = [outcome, *(other[0] for other in others)]
        if outcomes == ["passed"] * NUM_RUNS:
            seconds[name] = min(took_s, *(other[1] for other in others))
        elif "passed" in outcomes:
            left_out[name] = "flaky: " + ", ".join(outcomes)
        else:
            left_out[name] = f"{outcome}: {reason}" if reason else outcome
    if not seconds:
        name, reason = next(iter(left_out.items()))
        raise ConfigError(
            f"none of {len(left_out):,} tests passes in the sandbox, without a network; the first is {name} ({reason})"
        )
    reached: dict[tuple[str, int], list[str]] = {}
    for file, number, tests in runs[0]["reached"]:
        stable = [name for name in tests if name in seconds]
        if stable:
            reached[file, number] = stable
    return Survey(seconds, left_out, reached, runs[0]["troubles"])


def _run(tree: Path, environment: Environment, spans: Spans, seed: int, limit_s: float) -> dict[str, Any]:
    job = {"survey": {"seed": seed, "limit_s": limit_s, "spans": spans, "options": list(environment.options)}}
    core = min(os.sched_getaffinity(0))
    try:
        host = RepositoryHost(tree, environment, job, core, tools=own_packages())
    except HarnessError as error:
        raise ConfigError(f"the tests cannot be run: {error}") from None
    with contextlib.closing(host):
        host.wait()
        try:
            result: dict[str, Any] = json.loads((host.result / "survey.json").read_text("utf-8"))
        except (OSError, ValueError):
            raise ConfigError(
                f"the tests ended their own process: {host.last_words()}; see whether they pass with pytest alone"
            ) from None
        return result
