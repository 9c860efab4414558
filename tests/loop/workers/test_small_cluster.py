"""Two engines on two nodes of a real Ray cluster, in the smallest size: what the fast tests have of test_cluster.py.

It is one test, so that one process has the cluster, however many run tests.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from pathlib import Path

from loop.config.machine import Cluster
from loop.workers.cluster import Hub
from tests.support.clusters import all_gone, machines
from tests.support.on_nodes import Engines, actors_of, answers, engines_of, here
from tests.support.workers import nothing_left


def test_two_engines_answer_as_one_here_and_leave_nothing(tmp_path: Path) -> None:
    with closing(here(tmp_path)) as alone, contextmanager(machines)(tmp_path, 2) as two:
        settings = Cluster(address=two.address, dir="~/shelf", insecure=True)
        with closing(Hub(settings, tmp_path / "hub.log")) as hub:
            engines = Engines(hub, tmp_path)
            assert answers(engines.pool, 50) == answers(alone, 50)
            other = engines.model(0.9)
            engines.placement.deliver(other)
            assert engines.pool.change(other) and alone.change(other)
            assert answers(engines.pool, 50) == answers(alone, 50)
            its = [process for node in two.nodes for process in (*actors_of(two, node), *engines_of(two, node))]
            assert len(its) == 2 * 3, "an actor, a guard and an engine on each node"
            engines.pool.close()
        assert all_gone(its)
        assert engines.notes == []
        all_of_ray = [process for node in (two.ray.head_node, *two.nodes) for process in two.processes(node)]
    assert all_gone(all_of_ray)
    assert nothing_left()
