"""What a dry run says: counts that are exact, and a time once a round is finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loop.experiments.facts import experiment_facts
from loop.experiments.file import Experiment
from loop.experiments.planning import plan_of
from loop.experiments.running import Machine
from tests.support.experiments import drive, loopctl, write_experiment


def test_a_dry_run_says_how_much_there_is_and_what_is_shared(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    plan = json.loads(loopctl("run", path, "--dry-run", "--json"))
    assert plan["num_runs"] == 4 and plan["num_rounds"] == plan["num_rounds_left"] == 8
    assert plan["stages"] == {"sampling": 8, "training": 8, "evaluations": 24, "diagnoses": 12}
    # all but one of: samples, weights, and base and candidate on all that measures
    assert plan["num_shared_at_least"] == 24
    assert (plan["time_s"], plan["time_from"]) == (None, "no round is finished yet") and plan["disk_bytes"] > 0
    assert not (tmp_path / "policies").exists()
    words = loopctl("run", path, "--dry-run")
    assert "4 arms x 1 seed = 4 runs, 8 rounds in all" in words and "at least 24 of them" in words


def test_what_is_left_is_estimated_from_what_is_finished(begun: Experiment) -> None:
    drive(begun.runs[1], 1)
    plan = plan_of(begun, Machine(2))
    assert plan["num_rounds_left"] == 6 and plan["time_from"] == "the 2 rounds that are finished"
    spent_s = sum(sum(run.spent_s.values()) for run in experiment_facts(begun).runs)
    # each run's own pace where it has one, else the mean; two at a time
    assert plan["time_s"] == pytest.approx(3 * spent_s / 2)
    shared = experiment_facts(begun).shared
    assert sum(len(product["used_by"]) for product in shared) <= plan["num_shared_at_least"]
