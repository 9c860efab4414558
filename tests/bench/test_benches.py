"""Every bench (slow) in its smallest size: whether it runs and prints figures, not what they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

COMMANDS = {
    "busy": "bench/busy.py --small --neighbours 0 1 --variants before dtype=float32,num_threads=1",
    "corpus": "-m bench.corpus --num 2000 --pairs 1 --batch 100 --directory PLACE",
    "search": "-m bench.search --num 500",
    "hashing": "-m bench.hashing --mb 2 --turns 1",
    "serve": "-m bench.serve --rounds 1",
    "status": "bench/status.py --where PLACE --completions 2000 --runs 1",
    "report": "bench/report.py --where PLACE --rounds 3 --completions 300 --runs 1",
    "daemon": "bench/daemon.py --seconds 1",
    "grading": "bench/grading.py --repeats 1 --turns 1",
    "sampling": "bench/sampling.py --pairs 1 --requests 4 --batch-size 2",
    "training": "bench/training.py --pairs 1 --rows 2",
    "rounds": "bench/rounds.py --rounds 1 --small",
    "decisions": "bench/decisions.py --runs 20 --only 1",
    "candidates": "bench/candidates.py --runs 10 --rounds 2 --candidates 1 4",
    "collapse": "bench/collapse.py --runs 10 --rounds 2",
    "estimate": "bench/estimate.py --small",
    "drift": "bench/drift.py --runs 2 --rounds 2",
    "dealing": "bench/dealing.py --steps 5",
    "sharding": "bench/sharding.py --hidden-size 128",
    "cluster": "bench/cluster.py --requests 32 --turns 1 --streams 2 --mb 20",
    "cluster_training": "bench/cluster_training.py --turns 1 --steps 2",
    "cluster_growth": "bench/cluster_growth.py --hub-ms 0.6 --stream-ms 0.3 --completions 500",
    "in_repository": "bench/in_repository.py --programs 60 --pytest 4",
    "planted": "bench/planted.py --runs 4 --problems 60",
    "cluster_losses": "bench/cluster_losses.py --only engine node",
    "feed": "bench/feed.py --completions 300",
    "gpu": "bench/gpu.py --device cpu --place PLACE/gpu",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, *COMMANDS[name].replace("PLACE", str(tmp_path)).split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\d", done.stdout), "no figures"


def test_none_is_forgotten() -> None:
    others = {
        "beside_evalplus",  # needs EvalPlus; `make test-harnesses` runs it
        "gallery",
        "measuring",
        "sampling_vllm",
        "script",
        "simulation",
        "stores",
        "study",
        "study_model",
        "table",
    }
    assert {file.stem for file in (ROOT / "bench").glob("[a-z]*.py")} == set(COMMANDS) | others
