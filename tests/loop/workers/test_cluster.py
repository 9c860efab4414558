"""Workers on the nodes of a real Ray cluster: the same answers as here, and what is lost with whom."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from loop.cli.doctor import _graders
from loop.config.machine import Cluster, Grading
from loop.engines.base import CheckpointRef, EngineConfig
from loop.errors import ConfigError, EngineError
from loop.grading.grader import Grader, Job
from loop.grading.suite import load_suite
from loop.workers.cluster import Hub, Node
from loop.workers.graders import Graders, start_grader
from loop.workers.node_trainer import NodeTrainer
from loop.workers.nodes import HEARTBEAT_TIMEOUT_S
from loop.workers.worker import RemoteTrainer, Worker
from tests.support.clusters import Machines, all_gone, cmdline, lives, machines
from tests.support.engines import many_rows, no_progress, settings, training, write_rows
from tests.support.on_nodes import (
    Engines,
    actors_of,
    answers,
    engines_of,
    here,
    kill_actor,
    kill_engine,
    kill_guard,
    kill_node,
    kill_raylet,
    raylet_lives,
    stop_node,
)
from tests.support.tiny import make_tiny_model
from tests.support.waiting import HANG_S, wait_until
from tests.support.workers import PARAMS, requests

pytestmark = pytest.mark.slow
REAL = settings(device="cpu", dtype="float32")
SLOW = {"LOOP_FAKE_STEP_S": "0.05"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    yield from machines(tmp_path_factory.mktemp("cluster"), 2)


@pytest.fixture
def hub(two: Machines, tmp_path: Path) -> Iterator[Hub]:
    while len(two.nodes) < 2:  # a test before has lost one
        two.add()
    hub = Hub(Cluster(address=two.address, dir="~/shelf", insecure=True), tmp_path / "hub.log")
    yield hub
    hub.close()


def test_engines_on_two_nodes_answer_as_one_here(hub: Hub, two: Machines, tmp_path: Path) -> None:
    alone = here(tmp_path)
    engines = Engines(hub, tmp_path)
    assert answers(engines.pool, 100) == answers(alone, 100)
    assert all(len(engines_of(two, node)) == 2 for node in two.nodes), "a guard and an engine on each"
    environment = engines_of(two, two.nodes[0])[0].environ()
    assert not [name for name in environment if name.startswith("RAY_")]
    ref = engines.model(0.9)
    engines.placement.deliver(ref)
    assert engines.pool.change(ref)
    assert alone.change(ref)
    assert answers(engines.pool, 50) == answers(alone, 50)
    left = [process for node in two.nodes for process in engines_of(two, node)]
    engines.pool.close()
    assert all_gone(left)
    assert "loop.workers" not in (tmp_path / "sampler-1.log").read_text(), "nothing was wrong"
    alone.close()


def test_a_cluster_that_lets_anybody_in_is_refused(two: Machines, tmp_path: Path) -> None:
    """With another attempt it would not be another cluster, so it is a mistake of the configuration."""
    with pytest.raises(ConfigError, match=rf"^cluster: whoever reaches {two.address} can run programs on its nodes"):
        Hub(Cluster(address=two.address), tmp_path / "hub.log")
    with pytest.raises(EngineError, match="^cluster: no cluster answers at 127.0.0.1:9 "):
        Hub(Cluster(address="127.0.0.1:9"), tmp_path / "hub.log")


@pytest.mark.parametrize(
    ("kill", "said"),
    [
        (kill_engine, r"sampler-\d: it was killed \(out of memory\?\)"),
        (kill_guard, r"sampler-\d: it was killed \(out of memory\?\)"),
        (kill_actor, r"sampler-\d: it was lost on .*ActorDiedError"),
        (kill_raylet, r"sampler-\d: it.* was lost"),
        (kill_node, r"sampler-\d: it.* was lost"),
        (stop_node, rf"sampler-\d: nothing was heard from it for {HEARTBEAT_TIMEOUT_S:g} s"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_lost_costs_only_what_it_had_not_finished(
    hub: Hub, two: Machines, tmp_path: Path, kill: Callable[..., None], said: str
) -> None:
    alone = here(tmp_path)
    expected = answers(alone, 400)
    alone.close()
    engines = Engines(hub, tmp_path, **SLOW)
    node = two.nodes[0]
    its = [*actors_of(two, node), *engines_of(two, node)]
    all_of_it = two.processes(node)
    given: dict[str, Any] = {}
    is_killed = False
    for batch in engines.pool.generate(requests(400), PARAMS):
        given |= {answer.id: answer for answer in batch}
        if len(given) >= 100 and not is_killed:
            kill(two, node)
            is_killed = True
    assert given == expected
    assert re.search(said, engines.notes[0]), engines.notes
    assert "the other engines take over its work" in engines.notes[0]
    for process in all_of_it:
        if lives(process) and process.status() == psutil.STATUS_STOPPED:
            process.resume()
    assert all_gone([each for each in its if "RemoteWorker" not in cmdline(each)]), "an engine outlived its loss"
    engines.pool.close()
    if not raylet_lives(node):
        two.remove(node)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_processes_on_two_nodes_train_as_one_here(hub: Hub, two: Machines, tmp_path: Path, method: str) -> None:
    """Losses within 2e-6; the same files come home, candidates among them, and nothing is left on the nodes."""
    parent = make_tiny_model(tmp_path / "parent")
    ref = CheckpointRef(sha256="", path=parent)
    rows = write_rows(tmp_path / "rows.jsonl", many_rows(30))
    recipe = training(method=method, candidates=2, batch_size=8, num_steps=6)

    def fit(trainer: Any, name: str) -> Any:
        out = tmp_path / name / "weights"
        out.mkdir(parents=True)
        return trainer.fit(rows, ref, recipe, out)

    alone = Worker(
        {"op": "load_trainer", "settings": REAL}, log_file=tmp_path / "alone.log", stall_timeout_s=HANG_S,
        progress=no_progress, tag="trainer",
    )  # fmt: skip
    expected = fit(RemoteTrainer(alone), "alone")
    alone.end()
    seen: list[tuple[int, int]] = []
    wait_until(lambda: len(hub.nodes()) == 2, lambda: hub.problems)

    def worker(init: dict[str, Any], tag: str, settings: EngineConfig, has_gpu: bool, **more: Any) -> Worker:
        log = tmp_path / f"{tag}.log"
        return Worker(init | {"settings": settings}, log_file=log, stall_timeout_s=HANG_S, tag=tag, **more)

    trainer = NodeTrainer(
        hub, hub.nodes(), REAL, worker, lambda: None, lambda *now: seen.append(now), print, lambda: False
    )
    result = fit(trainer, "nodes")
    assert seen[-1] == (6, 6)
    assert result.losses == pytest.approx(expected.losses, abs=2e-6)
    assert result.held_out_loss == pytest.approx(expected.held_out_loss, abs=2e-6)
    files = {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "nodes") for path in (tmp_path / "nodes").rglob("*") if path.is_file()}
    assert not [path for number in range(2) for path in two.shelf(number).glob("training-*")]


@pytest.mark.parametrize("number", [0, 1])
def test_a_node_that_is_lost_ends_the_training_everywhere(hub: Hub, two: Machines, tmp_path: Path, number: int) -> None:
    """Also the first one, where they meet."""
    ref = CheckpointRef(sha256="", path=make_tiny_model(tmp_path / "parent"))
    rows = write_rows(tmp_path / "rows.jsonl", many_rows(30))
    recipe = training(batch_size=8, num_steps=2000)  # more than are done before it is lost
    seen: list[tuple[int, int]] = []
    workers: list[Worker] = []

    def worker(init: dict[str, Any], tag: str, settings: EngineConfig, has_gpu: bool, **more: Any) -> Worker:
        log = tmp_path / f"{tag}.log"
        made = Worker(init | {"settings": settings}, log_file=log, stall_timeout_s=HANG_S, tag=tag, **more)
        workers.append(made)
        return made

    def pulse() -> None:
        if seen and kills:
            lost = kills.pop()
            for process in two.processes(lost):
                process.kill()

    wait_until(lambda: len(hub.nodes()) == 2, lambda: hub.problems)
    nodes = hub.nodes()
    kills = [node for node in two.nodes if node.node_id == nodes[number].id]
    assert kills
    trainer = NodeTrainer(hub, nodes, REAL, worker, pulse, lambda *now: seen.append(now), print, lambda: False)
    (tmp_path / "out" / "weights").mkdir(parents=True)
    with pytest.raises(
        EngineError,
        match=rf"trainer-{number + 1}: (its node {nodes[number].name} was lost|it was lost on {nodes[number].name}) ",
    ):
        trainer.fit(rows, ref, recipe, tmp_path / "out" / "weights")
    for node in two.nodes:
        if raylet_lives(node):
            assert all_gone([each for each in two.processes(node) if "loop.engines" in cmdline(each)])
        else:
            two.remove(node)
            break
    assert not list((tmp_path / "out" / "weights").iterdir())


def test_two_nodes_grade_as_this_machine_does_and_one_is_lost(hub: Hub, two: Machines, tmp_path: Path) -> None:
    """HumanEval's references, broken in several ways. `doctor` says of each node that it can."""
    local = Grader(timeout_s=20.0, num_workers=1)
    ways = ("", "\n", "\nraise ValueError", "\n)", "\ndel {}")
    programs = [
        Job((problem.task_id, way), problem, f"{problem.reference}{way.format(problem.entry_point)}")
        for problem in load_suite("humaneval").problems
        for way in ways
    ]

    def said(graders: Grader | Graders) -> Iterator[tuple[Any, ...]]:
        return ((key, each.verdict, each.detail, each.sandbox) for key, each in graders.grade(programs))

    expected = list(said(local))
    assert len({verdict for _, verdict, *_ in expected}) > 1
    wait_until(lambda: len(hub.nodes()) == 2, lambda: hub.problems)
    nodes, notes, workers = hub.nodes(), list[str](), dict[str, Worker]()
    assert all(node.may_grade for node in nodes), "the head is this machine, and has no cores"
    loaded: Any = SimpleNamespace(config=SimpleNamespace(grading=Grading()), run_dir=tmp_path)
    assert [line.detail.partition(":")[0] for line in _graders(loaded, hub, nodes) if line.verdict == "ok"] == [
        node.name for node in nodes
    ]

    def start(node: Node, number: int, pulse: Callable[[], None]) -> Worker:
        workers[node.id] = start_grader(
            hub, node, Grading(timeout_s=20.0), tmp_path / f"grader-{number}.log", HANG_S, pulse
        )
        return workers[node.id]

    graders = Graders(local, hub.nodes, start, notes.append)
    assert list(said(graders)) == expected
    wait_until(lambda: len(workers) == 2)
    lost = two.nodes[0]
    name = next(node.name for node in nodes if node.id == lost.node_id)
    its = engines_of(two, lost)
    results = []
    for result in said(graders):
        results.append(result)
        if len(results) == 100:
            for process in two.processes(lost):
                process.kill()
    assert results == expected
    wait_until(lambda: graders._tell() or notes)
    assert len(notes) == 1 and notes[0].startswith(f"{name}: grader-"), notes
    assert " was lost " in notes[0] and "the others grade what it had not finished" in notes[0]
    assert all_gone(its)
    two.remove(lost)
    wait_until(lambda: len(hub.nodes()) == 1)
    left = engines_of(two, two.nodes[0])
    assert left
    assert list(said(graders)) == expected
    graders.close()
    assert all_gone(left)
    assert len(notes) == 1
