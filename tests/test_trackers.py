"""Experiment trackers, each against its real library and without a network: what was logged is read back."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_cli_support import CONFIG, Loopctl, Said, call, environment, finished, process

from loop import trackers as trackers_module
from loop.cli.view import reader
from loop.config import Watching
from loop.tracking import about, bring_up_to_date, figures_of
from loop.trackers import PACKAGES, Trackers, missing, missing_in_words, trackers_of

__all__ = ["call", "finished"]
GUARD_S = 120.0  # a hang, not a measure
Figures = dict[int, dict[str, float]]  # by round


def needs(name: str) -> Any:
    """Skips where a tracker's library is not installed."""
    return pytest.mark.skipif(bool(missing([name])), reason=f"{name} is not installed: pip install 'ssd-loop[trackers]'")


ALL = [pytest.param(name, marks=needs(name)) for name in PACKAGES]


def expected(run_dir: Path) -> Figures:
    with reader(run_dir) as found:
        return {number: figures_of(found, number) for number in about(found, "x").rounds}


# ---- reading back ----------------------------------------------------------------------------------------------------


def read_back(name: str, directory: Path, project: str = "small") -> tuple[Figures, dict[str, Any]]:
    """What a tracker holds: the figures by round, without a round twice, and the configuration."""
    return {"trackio": from_trackio, "wandb": from_wandb, "mlflow": from_mlflow}[name](directory, project)


def from_wandb(directory: Path, project: str) -> tuple[Figures, dict[str, Any]]:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(file))
    found: Figures = {}
    config: dict[str, Any] = {}
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            assert record.run.project == project
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = int(row.pop("_step", record.history.step.num))
            assert step not in found, "a round came twice"
            found[step] = {key: value for key, value in row.items() if not key.startswith("_")}
    return found, config


def from_mlflow(directory: Path, project: str) -> tuple[Figures, dict[str, Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(directory.absolute().as_uri())
    experiment = client.get_experiment_by_name(project)
    (run,) = client.search_runs([experiment.experiment_id])
    found: Figures = {}
    for key in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, key):
            row = found.setdefault(metric.step, {})
            assert key not in row, "a round came twice"
            row[key.replace("_at_", "@")] = metric.value
    return found, dict(run.data.params)
