"""Experiments for tests: a file with its base configuration on the fake engine, and loopctl on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.experiments.file import Experiment, ExperimentRun, load_experiment
from loop.experiments.running import Machine, prepare
from loop.round import run_round
from loop.run.opening import open_session
from tests.support.runs import KEEPING, Quiet, findings, patient_loopctl, write_run

BASE = KEEPING.replace("num_prompts = 0", "num_prompts = 4\nmax_new_tokens = 16") + "\n[storage]\nmin_free_bytes = 0\n"

MIX = """[[arms]]
name = "mix"
collect.data = { type = "mix", earlier = 0.25 }
"""
POLICIES = f"""
name = "policies"
rounds = 2
seeds = [1]
[[arms]]
name = "replace"
[[arms]]
name = "accumulate"
collect.data = {{ type = "accumulate" }}
{MIX}[[arms]]
name = "strict"
decide.gates = [{{ type = "improvement", min_gain = 0.9 }}]
"""
THREE = POLICIES.replace(MIX, "")


def write_experiment(directory: Path, text: str = POLICIES, base: str = BASE) -> Path:
    """An experiment's file beside its base configuration; its path."""
    write_run(directory, base)
    path = directory / "experiment.toml"
    path.write_text(text)
    return path


def loopctl(*arguments: str | Path, code: int | None = 0, **variables: str) -> str:
    """What `loopctl experiment` printed on standard output."""
    done = patient_loopctl("experiment", *arguments, **variables)
    assert code is None or done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout + ("" if "--json" in arguments else done.stderr)


def facts_of(path: Path) -> Any:
    """`loopctl experiment status --json`."""
    return json.loads(loopctl("status", path, "--json"))


def tables_of(facts: Any) -> Any:
    """What does not depend on time, on who did what first, or on what was killed meanwhile."""
    runs = [{key: run[key] for key in ("arm", "seed", "state", "rounds_done", "num_kept")} for run in facts["runs"]]
    return {"runs": runs} | {key: facts[key] for key in ("arms", "seeds", "lines", "comparisons", "state")}


def sound(path: Path) -> Experiment:
    """Every store of an experiment verified."""
    experiment = load_experiment(path)
    assert {run.name: findings(run.run_dir) for run in experiment.runs} == {run.name: [] for run in experiment.runs}
    return experiment


def run_of(experiment: Experiment, arm: str, seed: int) -> ExperimentRun:
    """The run of an arm with a seed."""
    return next(run for run in experiment.of_arm(arm) if run.seed == seed)


# In this process


def prepared(directory: Path, text: str = POLICIES, base: str = BASE) -> Experiment:
    experiment = load_experiment(write_experiment(directory, text, base))
    prepare(experiment, Machine(1))
    return experiment


def drive(run: ExperimentRun, rounds: int, watch: Quiet | None = None) -> None:
    """Rounds of one run in this process."""
    with open_session(load_config(run.path), watch or Quiet()) as session:
        for _ in range(rounds):
            round = run_round(session)
            assert round.state != "failed", round.error


@pytest.fixture(scope="module")
def first_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment whose first run has done a round; to be copied."""
    experiment = prepared(tmp_path_factory.mktemp("first"))
    drive(experiment.runs[0], 1)
    return experiment.path


@pytest.fixture
def begun(first_done: Path, tmp_path: Path) -> Experiment:
    shutil.copytree(first_done.parent, tmp_path, dirs_exist_ok=True)
    return load_experiment(tmp_path / first_done.name)
