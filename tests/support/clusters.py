"""A real Ray cluster on this machine for tests: every node has processes, a home and a shelf of its own.

Nodes share the machine, so a node is told by its id. Only for the main thread, and by its address: "auto" would be whichever
cluster of the machine was started last.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.support import ROOT
from tests.support.waiting import wait_until

STORE_BYTES = 80 << 20  # of each node's object store; Ray takes no less than 75 MiB
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}
HEAD = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


class Machines:
    """A cluster of nodes, of which the first, the head, computes nothing."""

    def __init__(self, directory: Path, num_nodes: int, **variables: str) -> None:
        os.environ |= ENVIRONMENT
        from ray.cluster_utils import Cluster

        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.count, self.variables = directory, 0, variables
        self.ray = Cluster(initialize_head=True, head_node_args=HEAD | {"object_store_memory": STORE_BYTES})
        self.nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add()

    @property
    def address(self) -> str:
        return str(self.ray.address)

    def add(self, home: Path | None = None) -> Any:
        """Another node, with a core and an empty home, or with that of one which is gone."""
        if home is None:
            home = self.directory / f"home-{self.count}"
            home.mkdir()
            self.count += 1
        variables = {"HOME": str(home), "PYTHONPATH": str(ROOT)} | self.variables
        node = self.ray.add_node(num_cpus=1, object_store_memory=STORE_BYTES, env_vars=variables)
        self.nodes.append(node)
        return node

    def shelf(self, number: int) -> Path:
        """Where that node keeps what it was brought."""
        return self.directory / f"home-{number}" / "shelf"

    def table(self) -> str:
        """The table of loop.toml that joins it."""
        return f'\n[cluster]\naddress = "{self.address}"\ndir = "~/shelf"\ninsecure = true\n'

    def raylet(self, node: Any) -> psutil.Process:
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def processes(self, node: Any) -> list[psutil.Process]:
        """Everything that belongs to a node: Ray's own, its actors, and their workers."""
        pids = [each.process.pid for kind in node.all_processes.values() for each in kind]
        own = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        return [*own, *(below for process in own if lives(process) for below in process.children(recursive=True))]

    def remove(self, node: Any) -> None:
        """Forget a node whose processes were killed, or end it."""
        self.nodes.remove(node)
        self.ray.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self.ray.shutdown()


def cmdline(process: psutil.Process) -> str:
    """Its command line; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def all_gone(processes: list[psutil.Process]) -> bool:
    """True as soon as none of them is left."""
    return bool(wait_until(lambda: not [process for process in processes if lives(process)], lambda: processes))


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def machines(directory: Path, num_nodes: int, **variables: str) -> Iterator[Machines]:
    """What a fixture yields from. `variables`: in the environment of the nodes."""
    made = Machines(directory, num_nodes, **variables)
    try:
        yield made
    finally:
        made.close()
