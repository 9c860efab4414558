"""Two engines on the nodes of a test's cluster, what they answer, and how a part of a node is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from loop.engines.base import CheckpointRef, EngineConfig
from loop.workers.cluster import Hub
from loop.workers.nodes import Placement, pool_on_nodes
from loop.workers.pool import Pool
from loop.workers.worker import RemoteSampler, Worker
from tests.support.clusters import Machines, cmdline, lives
from tests.support.engines import no_progress
from tests.support.waiting import HANG_S, wait_until
from tests.support.workers import PARAMS, SETTINGS, fake_model, requests


class Engines:
    """A pool of two engines on two nodes, and what it told."""

    def __init__(self, hub: Hub, directory: Path, **variables: str) -> None:
        self.hub, self.directory, self.variables = hub, directory, variables
        self.notes: list[str] = []
        self.workers: list[Worker] = []
        wait_until(lambda: len(hub.nodes()) == 2, lambda: hub.problems)
        nodes = hub.nodes()
        self.placement = Placement(hub, SETTINGS, nodes, nodes)
        self.pulse: Callable[[], None] = lambda: None
        self.pool = pool_on_nodes(
            self.placement, self.model(0.5), self.worker,
            progress=no_progress, pulse=lambda: self.pulse(), note=self.notes.append,
        )  # fmt: skip

    def model(self, skill: float) -> CheckpointRef:
        return fake_model(self.directory / f"model-{skill}", skill, sha256=f"{skill}")

    def worker(self, init: dict[str, Any], tag: str, settings: EngineConfig, has_gpu: bool, **more: Any) -> Worker:
        made = Worker(
            init | {"settings": settings}, log_file=self.directory / f"{tag}.log", stall_timeout_s=HANG_S, tag=tag,
            environment=self.variables, has_gpu=has_gpu, **more,
        )  # fmt: skip
        self.workers.append(made)
        return made


def here(directory: Path) -> RemoteSampler:
    init = {"op": "load_sampler", "checkpoint": fake_model(directory / "here"), "settings": SETTINGS}
    return RemoteSampler(
        Worker(init, log_file=directory / "here.log", stall_timeout_s=HANG_S, progress=no_progress, tag="sampler")
    )


def answers(sampler: RemoteSampler | Pool, num: int) -> dict[str, Any]:
    """What it answers to so many requests, by id; no answer comes twice."""
    given = [answer for batch in sampler.generate(requests(num), PARAMS) for answer in batch]
    assert len({answer.id for answer in given}) == len(given) == num
    return {answer.id: answer for answer in given}


def engines_of(machines: Machines, node: Any) -> list[psutil.Process]:
    """The workers' own processes on a node: guards and engines, not the shells above them."""
    return [
        each
        for each in machines.processes(node)
        if " -m loop.workers.child" in cmdline(each) and "$@" not in cmdline(each)
    ]


def actors_of(machines: Machines, node: Any) -> list[psutil.Process]:
    return [each for each in machines.processes(node) if "RemoteWorker" in cmdline(each)]


def raylet_lives(node: Any) -> bool:
    pid = node.all_processes["raylet"][0].process.pid
    return psutil.pid_exists(pid) and lives(psutil.Process(pid))


def kill_engine(machines: Machines, node: Any) -> None:
    os.kill(engines_of(machines, node)[-1].pid, signal.SIGKILL)


def kill_guard(machines: Machines, node: Any) -> None:
    os.kill(engines_of(machines, node)[0].pid, signal.SIGKILL)


def kill_actor(machines: Machines, node: Any) -> None:
    os.kill(actors_of(machines, node)[0].pid, signal.SIGKILL)


def kill_raylet(machines: Machines, node: Any) -> None:
    machines.raylet(node).kill()


def kill_node(machines: Machines, node: Any) -> None:
    for process in machines.processes(node):
        process.kill()


def stop_node(machines: Machines, node: Any) -> None:
    """As if its cable was pulled."""
    for process in machines.processes(node):
        process.suspend()
