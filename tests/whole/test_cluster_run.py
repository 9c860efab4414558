"""Whole runs over the nodes of a real Ray cluster: the same ledger as on one machine, whatever is lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.reading.reader import Reader, reader
from loop.reading.rounds import StageRow, whole_round
from loop.reading.standing import status
from loop.reading.status_words import labelled
from store.canonical import canonical_json
from store.errors import StoreError
from tests.support import cli
from tests.support.clusters import Machines, all_gone, cmdline, lives, machines
from tests.support.configurations import configuration
from tests.support.runs import dump, environment, findings, finish, processes_of, write_run
from tests.support.tiny import make_tiny_model
from tests.support.waiting import HANG_S
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


def same_to_the_token(left: dict[str, Any], expected: dict[str, Any]) -> None:
    """Rounds, completions, outcomes; and losses within 2e-6."""
    assert [row["state"] for row in left["rounds"]] == [row["state"] for row in expected["rounds"]]
    assert drawn(left) == drawn(expected)
    assert outcomes(left) == outcomes(expected)
    ours, theirs = (
        [
            json.loads(row["origin"])["training"]["losses"]
            for row in sorted(each["checkpoints"], key=lambda row: row["round"])[1:]
        ]
        for each in (left, expected)
    )
    assert ours == [pytest.approx(losses, abs=2e-6) for losses in theirs]


@contextlib.contextmanager
def looked_at(run_dir: Path) -> Iterator[list[dict[str, Any]]]:
    """What `loopctl status` says of each node while the block runs. `pytest -s` prints it."""
    seen: list[dict[str, Any]] = []
    words: list[str] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            with contextlib.suppress(StoreError):  # it is just being made
                answer = status(run_dir, "tiny")
                seen.extend(answer.nodes or [])
                words.extend(f"{label:9} {text}" for label, text in labelled(answer) if text and label == "nodes")

    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(look)
        try:
            yield seen
        finally:
            ended.set()
        looking.result()
    print(*dict.fromkeys(words), sep="\n")


def store_stages(store: Reader, number: int) -> list[StageRow]:
    whole = whole_round(store, number)
    assert whole is not None
    return whole.stages


def test_two_rounds_over_two_nodes_are_those_of_one_machine(
    alone: dict[str, Any], two: Machines, model: Path, tmp_path: Path
) -> None:
    """Sampled, evaluated, graded and trained on the nodes; token for token, and every decision."""
    config = write(tmp_path, model, CONFIG + two.table() + "training_nodes = 2\ngrading = true\n")
    run_dir = tmp_path / ".loop"
    with looked_at(run_dir) as seen:
        said = cli.process(tmp_path, "run")
    assert said.code == 0, said.err
    names = {f"{socket.gethostname()}-{node.node_id[:4]}" for node in two.nodes}
    print(cli.process(tmp_path, "doctor").out, cli.process(tmp_path, "round", "1").out, sep="\n")
    assert {(each["name"], each["doing"]) for each in seen} >= {(name, "training") for name in names}
    with reader(run_dir) as store:
        for number in (1, 2):
            did = {stage.stage: stage.nodes for stage in store_stages(store, number)}
            for stage in ("sampling", "training", "evaluating"):
                assert {each["name"] for each in did[stage]} == names
                assert all((each["tokens_per_s"] or 0) > 0 for each in did[stage]) == (stage != "training")
    same_to_the_token(dump(run_dir), alone)
    assert findings(run_dir) == []
    assert processes_of(config) == []
    logs = {path.name for path in (run_dir / "logs").iterdir()}
    assert {f"{what}-{number}.log" for what in ("sampler", "trainer", "grader") for number in (1, 2)} <= logs


# Kills at random moments

NUM_KILLS = int(os.environ.get("LOOP_TEST_CLUSTER_KILLS", "8"))
FAKE = configuration(
    name="killed",
    prompts={"source": "starter", "per_round": 60},
    training={"num_steps": 20, "batch_size": 4},
    engine={"batch_size": 4, "max_attempts": 8, "retry_wait_s": 0.1},
    decide={"suite": "ones", "gates": [{"type": "improvement", "min_gain": -0.9}]},
)
SLOW = {"LOOP_FAKE_STEP_S": "0.1"}


REAL = CONFIG.replace("[engine]", "[engine]\nmax_attempts = 8").replace("num_epochs = 2", "num_steps = 60")
KINDS = ("engine", "guard", "rank", "actor", "raylet", "node", "hub", "daemon")


class Killed:
    """A run over the nodes whose parts are killed at random; whoever is gone is replaced.

    `left`: how many kills are still to come in each stage. `pauses_s`: at most so long before a kill in a stage, which is about
    how long it lasts.
    """

    def __init__(self, two: Machines, config: Path, seed: int, left: Counter[str], pauses_s: dict[str, float]) -> None:
        self.two, self.config, self.random, self.left, self.pauses_s = two, config, random.Random(seed), left, pauses_s
        self.hits: list[str] = []
        self.begin()

    @property
    def stage(self) -> str:
        with contextlib.suppress(StoreError):  # it is just being made
            round = status(self.config.parent / ".loop", "").round
            return round.stage if round else "between rounds"
        return "before the first round"

    def begin(self) -> None:
        command = [sys.executable, "-P", "-m", "loop.cli.main", "run", "--config", str(self.config)]
        with (self.config.parent / "stderr").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment() | SLOW, stdout=log, stderr=log, start_new_session=True
            )

    def victims(self, kind: str) -> list[psutil.Process]:
        """The processes of that kind that live now, all of a node for one of its kind."""
        if kind == "daemon":
            return [psutil.Process(self.process.pid)]
        if kind == "hub":
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "loop.workers.ray_hub" in cmdline(child)][:1]
        node = self.random.choice(self.two.nodes)
        if kind == "raylet":
            return [self.two.raylet(node)]
        of_node = self.two.processes(node)
        if kind == "node":
            return of_node
        marks = {"actor": "RemoteWorker", "rank": "loop.engines.distributed_rank"}
        said = {each: cmdline(each) for each in of_node}
        named = [
            each for each, words in said.items() if marks.get(kind, "loop.workers.child") in words and "$@" not in words
        ]
        return named[-1:] if kind == "engine" else named[:1]

    def hit(self, kind: str) -> None:
        """Kill one of that kind, if there is one and if this stage has kills to come."""
        if not self.left[stage := self.stage]:
            return
        try:
            its = self.victims(kind)
            workers = [w for node in self.two.nodes for w in self.two.processes(node) if "loop.workers" in cmdline(w)]
        except psutil.Error:
            return
        for process in its:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if not its:
            return
        self.left[stage] -= 1
        self.hits.append(f"{kind} in {stage}")
        if kind == "daemon":
            self.process.wait()
            assert all_gone(workers), "a worker outlived the daemon"
        self.repair()

    def repair(self) -> None:
        """Replace nodes that are lost, and the daemon."""
        for node in list(self.two.nodes):
            pid = node.all_processes["raylet"][0].process.pid
            if not psutil.pid_exists(pid) or not lives(psutil.Process(pid)):
                self.two.remove(node)
                self.two.add()
        if self.process.poll() is not None:
            self.begin()

    def to_the_end(self) -> None:
        deadline = time.monotonic() + HANG_S * 3
        while self.process.poll() != 0:
            assert time.monotonic() < deadline, (self.hits, (self.config.parent / "stderr").read_text()[-3000:])
            self.repair()
            time.sleep(self.random.uniform(0.1, self.pauses_s.get(self.stage, 0.2)))
            some = self.random.sample(KINDS, 3)
            self.hit(min(some, key=lambda kind: sum(hit.startswith(kind) for hit in self.hits)))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two nodes whose engines take their time, so that kills meet them."""
    yield from machines(tmp_path_factory.mktemp("slow"), 2, **SLOW)


def killed_at_random(
    two: Machines, num_kills: int, write: Callable[[str], Path], **pauses_s: float
) -> Iterator[dict[str, Any]]:
    """Runs of which parts are killed, so many in all: what each leaves in the end. Nothing is left of it anywhere else."""
    hits: Counter[str] = Counter()
    left = Counter([stage for _, stage in zip(range(num_kills), cycle(pauses_s), strict=False)])
    for seed in count(1):
        config = write(f"killed-{seed}")
        killed = Killed(two, config, seed, left, pauses_s)
        killed.to_the_end()
        hits.update(killed.hits)
        assert findings(config.parent / ".loop") == []
        assert all_gone([w for node in two.nodes for w in two.processes(node) if "loop.workers.child" in cmdline(w)])
        assert processes_of(config) == []
        print("killed:", dict(hits))
        yield dump(config.parent / ".loop")
        if not left.total():
            return


def test_killed_at_random_it_ends_as_an_undisturbed_run(slow: Machines, tmp_path: Path) -> None:
    """Of engines and graders, guards, actors, raylets, nodes, hub and daemon. Nothing is lost or done twice."""
    whole = dump(finish(write_run(tmp_path / "whole", FAKE)))
    text = FAKE + slow.table() + "grading = true\n"
    num = -(-NUM_KILLS // 2)
    pauses_s = {"sampling": 3.0, "training": 2.0, "evaluating": 3.0}
    for left in killed_at_random(slow, num, lambda name: write_run(tmp_path / name, text), **pauses_s):
        for table, rows in whole.items():
            if table != "runs":
                assert left[table] == rows, table


def test_killed_while_it_samples_and_trains_on_nodes_it_ends_as_an_undisturbed_run(
    two: Machines, model: Path, tmp_path: Path
) -> None:
    """A tiny real model, so that processes on both nodes train, which are killed, too."""
    text = REAL + two.table() + "training_nodes = 2\ngrading = true\n"
    whole = dump(finish(write(tmp_path / "whole", model, text)))
    pauses_s = {"training": 15.0, "evaluating": 2.0, "sampling": 10.0}
    for left in killed_at_random(two, NUM_KILLS // 2, lambda name: write(tmp_path / name, model, text), **pauses_s):
        same_to_the_token(left, whole)
