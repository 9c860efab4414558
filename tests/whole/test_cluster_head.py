"""The head of a cluster is lost, or this machine's own part of Ray: the run says so once, and leaves nothing anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from loop.config.machine import Cluster
from loop.errors import EngineError
from loop.reading.standing import status
from loop.workers.cluster import Hub
from store.errors import StoreError
from tests.support import cli
from tests.support.clusters import Machines, all_gone, machines
from tests.support.on_nodes import Engines, actors_of, engines_of
from tests.support.runs import dump, findings, finish, processes_of, write_run
from tests.support.waiting import wait_until
from tests.support.workers import PARAMS, requests
from tests.whole.test_cluster_run import FAKE

pytestmark = pytest.mark.slow
NEVER = {"LOOP_FAKE_STEP_S": "3600"}  # the time of a batch: nothing is finished before the loss is seen


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Machines]:
    yield from machines(tmp_path / "cluster", 2, **NEVER)


def kill_head(machines: Machines, *kinds: str) -> None:
    for kind in kinds:
        psutil.Process(machines.ray.head_node.all_processes[kind][0].process.pid).kill()


def workers_of(machines: Machines) -> list[psutil.Process]:
    return [each for node in machines.nodes for each in (*actors_of(machines, node), *engines_of(machines, node))]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (("gcs_server", "raylet"), "the cluster at {} is gone: its head has given no answer for 45 s"),
        (("raylet",), "this machine is no node of the cluster any more: its raylet was lost"),
    ],
    ids=["head", "own raylet"],
)
def test_a_cluster_that_is_gone_ends_the_call_with_one_line(
    two: Machines, tmp_path: Path, lost: tuple[str, ...], said: str
) -> None:
    """Where Ray itself would go on without a raylet, and end the hub without a word."""
    with closing(Hub(Cluster(address=two.address, dir="~/shelf", insecure=True), tmp_path / "hub.log")) as hub:
        engines = Engines(hub, tmp_path, **NEVER)
        its = workers_of(two)
        assert len(its) == 2 * 3, "an actor, a guard and an engine on each node"
        said = said.format(two.address)
        kills = [lost]
        engines.pulse = lambda: kill_head(two, *kills.pop()) if kills else None
        with pytest.raises(EngineError) as ended:
            list(engines.pool.generate(requests(100), PARAMS))
        assert said in str(ended.value) and "\n" not in str(ended.value)
        assert engines.notes == [], "no other engine takes anything over"
        assert all_gone(its)
        assert hub.ended and engines.pool.ended
        with pytest.raises(EngineError, match="^cluster: " + said):
            hub.nodes()
        engines.pool.close()


def test_a_run_goes_on_with_another_cluster(tmp_path: Path) -> None:
    """Its stage fails, is tried once more while there is no cluster, and fails; the next start goes on in another one."""
    fake = FAKE.replace("max_attempts = 8", "max_attempts = 2")
    whole = dump(finish(write_run(tmp_path / "whole", fake)))
    directory = tmp_path / "lost"
    with contextmanager(machines)(tmp_path / "one", 2, **NEVER) as one:
        config = write_run(directory, fake + one.table())
        running = cli.start(directory, "run")

        def samples() -> bool:
            with contextlib.suppress(StoreError):  # it is just being made
                return any(node["doing"] == "sampling" for node in status(directory / ".loop", "killed").nodes or [])
            return False

        wait_until(samples)
        its = workers_of(one)
        assert its
        kill_head(one, "gcs_server", "raylet")
        _, err = running.communicate()
        print(err)
        assert running.returncode not in (0, -9)
        assert f"the cluster at {one.address} is gone: its head has given no answer for 45 s" in err
        assert f"no cluster answers at {one.address}" in err
        assert all_gone(its)
        assert processes_of(config) == []
    with contextmanager(machines)(tmp_path / "other", 2) as other:
        config.write_text(fake + other.table())
        assert findings(finish(config)) == []
        assert processes_of(config) == []
    left = dump(directory / ".loop")
    for table, rows in whole.items():
        if table != "runs":
            assert left[table] == rows, table
