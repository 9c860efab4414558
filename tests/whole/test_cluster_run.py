"""Whole runs over the nodes of a real Ray cluster: the same ledger as on one machine, whatever is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.canonical import canonical_json
from tests.support.clusters import Machines, machines
from tests.support.runs import dump, findings, finish, processes_of
from tests.support.tiny import make_tiny_model
from tests.whole.test_round_tiny import CONFIG, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    yield from machines(tmp_path_factory.mktemp("cluster"), 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Any]:
    return dump(finish(write(tmp_path_factory.mktemp("alone"), model)))


def drawn(left: dict[str, Any]) -> list[str]:
    """Every completion to the token, whatever it was drawn for."""
    keys = ("token_ids", "text", "finish_reason", "seed")
    return sorted(canonical_json([row[key] for key in keys]) for row in left["completions"])


def outcomes(left: dict[str, Any]) -> list[dict[str, Any]]:
    """What each evaluation came to, but for log-probabilities, whose last digits depend on who was computed beside whom."""
    all_of_them = [json.loads(row["metrics"]) for row in left["evaluations"]]
    exact = ({key: value for key, value in each.items() if "logprob" not in key} for each in all_of_them)
    return sorted(exact, key=canonical_json)


def test_two_rounds_over_two_nodes_are_those_of_one_machine(
    alone: dict[str, Any], two: Machines, model: Path, tmp_path: Path
) -> None:
    """Sampled, evaluated and trained on the nodes; token for token, and every decision."""
    config = write(tmp_path, model, CONFIG + two.table() + "training_nodes = 2\n")
    run_dir = finish(config)
    left = dump(run_dir)
    assert [row["state"] for row in left["rounds"]] == [row["state"] for row in alone["rounds"]]
    assert drawn(left) == drawn(alone)
    assert outcomes(left) == outcomes(alone)
    ours, theirs = (
        [
            json.loads(row["origin"])["training"]["losses"]
            for row in sorted(each["checkpoints"], key=lambda row: row["round"])[1:]
        ]
        for each in (left, alone)
    )
    assert ours == [pytest.approx(losses, abs=2e-6) for losses in theirs]
    assert findings(run_dir) == []
    assert processes_of(config) == []
    logs = {path.name for path in (run_dir / "logs").iterdir()}
    assert {"sampler-1.log", "sampler-2.log", "trainer-1.log", "trainer-2.log", "hub.log"} <= logs
