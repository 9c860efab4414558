"""Two engines on a node of a small real Ray cluster: the same answers as here. What is lost with whom is in test_cluster.py, which is slow."""

from __future__ import annotations

from pathlib import Path

import psutil

from loop.config.machine import Cluster
from loop.workers.cluster import Hub
from loop.workers.nodes import Placement, pool_on_nodes
from loop.workers.worker import RemoteSampler, Worker
from tests.support.clusters import Machines, all_gone, cmdline
from tests.support.engines import no_progress
from tests.support.waiting import HANG_S
from tests.support.workers import PARAMS, SETTINGS, fake_model, requests


def test_engines_on_a_node_answer_as_one_here(tmp_path: Path) -> None:
    models = [fake_model(tmp_path / f"model-{number}", number / 2, sha256=f"{number}") for number in range(2)]

    def worker(init: object, tag: str, settings: object, has_gpu: bool, **more: object) -> Worker:
        log = tmp_path / f"{tag}.log"
        return Worker({**init, "settings": settings}, log_file=log, stall_timeout_s=HANG_S, tag=tag, **more)  # type: ignore

    def answers(sampler: object) -> dict[str, object]:
        given = [answer for batch in sampler.generate(requests(50), PARAMS) for answer in batch]  # type: ignore
        assert len(given) == 50
        return {answer.id: answer for answer in given}

    here = RemoteSampler(
        worker({"op": "load_sampler", "checkpoint": models[0]}, "here", SETTINGS, False, progress=no_progress)
    )
    expected = []
    for model in models:
        here.change(model)
        expected.append(answers(here))
    here.close()
    assert expected[0] != expected[1]

    machines = Machines(tmp_path / "cluster", 1)
    try:
        hub = Hub(Cluster(address=machines.address, dir="~/shelf", insecure=True), tmp_path / "hub.log")
        try:
            nodes = hub.nodes()
            placement = Placement(hub, SETTINGS, nodes, [*nodes, *nodes])
            pool = pool_on_nodes(placement, models[0], worker, progress=no_progress, pulse=lambda: None, note=print)
            seen = [answers(pool)]
            placement.deliver(models[1])
            assert pool.change(models[1])
            seen.append(answers(pool))
            workers = [each for each in machines.processes(machines.nodes[0]) if "loop.workers" in cmdline(each)]
            assert len(workers) >= 4, "two guards and two engines"
            pool.close()
        finally:
            hub.close()
        assert all_gone(workers)
        assert not psutil.pid_exists(hub.process.pid)
    finally:
        machines.close()
    assert seen == expected
