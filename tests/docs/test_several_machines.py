"""docs/kuberay.yaml and the table of docs/several-machines.md: what can be checked of them without a cluster."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from loop.config.machine import Cluster
from tests.support import ROOT
from tests.support.configurations import VALID, load_text

yaml = pytest.importorskip("yaml")


def resources() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((ROOT / "docs/kuberay.yaml").read_text())}


def test_the_resources_go_together(tmp_path: Path) -> None:
    of = resources()
    loaded = load_text(tmp_path, of["ConfigMap"]["data"]["loop.toml"])
    spec = of["RayCluster"]["spec"]
    head, (group,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cluster"]
    assert pinned == [f"ray=={spec['rayVersion']}"] and spec["authOptions"] == {"mode": "token"}
    (head_container,), (container,) = (each["template"]["spec"]["containers"] for each in (head, group))
    assert head_container["image"] == container["image"], "one image for all"
    mounts = {mount["mountPath"] for mount in head_container["volumeMounts"]}
    assert str(loaded.run_dir.parent) in mounts
    cluster = loaded.config.cluster
    assert cluster and cluster.dir in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert cluster.training_nodes == group["replicas"] and not cluster.shared
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["terminationGracePeriodSeconds"] > loaded.config.daemon.stop_grace_s
    for script in (*head_container["args"], *container["args"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)


def test_the_table_of_the_page_is_accepted(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/several-machines.md").read_text(), re.DOTALL)
    cluster = load_text(tmp_path, VALID + block).config.cluster
    assert cluster == Cluster(training_nodes=2, grading=True), "all else is the default"
