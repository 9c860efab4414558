"""A training whose nodes share storage goes on from its state when one of them is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loop.config.machine import Cluster
from loop.engines.base import CheckpointRef, EngineConfig, Kept, TrainingResult
from loop.errors import EngineError
from loop.workers.cluster import Hub
from loop.workers.node_trainer import NodeTrainer
from loop.workers.worker import Worker
from tests.support.clusters import Machines, machines
from tests.support.engines import many_rows, settings, training, write_rows
from tests.support.on_nodes import kill_node
from tests.support.tiny import make_tiny_model
from tests.support.waiting import HANG_S, wait_until

pytestmark = pytest.mark.slow
NUM_STEPS = 400  # some seconds, so that the training goes on when the kill comes
REAL = settings(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    yield from machines(tmp_path_factory.mktemp("cluster"), 2)


@pytest.fixture
def hub(two: Machines, tmp_path: Path) -> Iterator[Hub]:
    cluster = Cluster(address=two.address, dir="~/shelf", insecure=True, shared=True)
    with closing(Hub(cluster, tmp_path / "hub.log")) as hub:
        yield hub


class Fits:
    """Trainings on both nodes from the same rows. `steps`: those that the last one has reported."""

    def __init__(self, hub: Hub, directory: Path) -> None:
        self.hub, self.directory, self.steps = hub, directory, list[int]()
        self.parent = CheckpointRef(sha256="", path=make_tiny_model(directory / "parent"))
        self.rows = write_rows(directory / "rows.jsonl", many_rows(30))

    def worker(self, init: dict[str, Any], tag: str, settings: EngineConfig, has_gpu: bool, **more: Any) -> Worker:
        log = self.directory / f"{tag}.log"
        return Worker(init | {"settings": settings}, log_file=log, stall_timeout_s=HANG_S, tag=tag, **more)

    def fit(self, out: Path, kept: Kept | None, pulse: Callable[[], None] = lambda: None) -> TrainingResult:
        out.mkdir(parents=True)
        self.steps.clear()
        wait_until(lambda: len(self.hub.nodes()) == 2, lambda: self.hub.problems)
        trainer = NodeTrainer(
            self.hub, self.hub.nodes(), REAL, self.worker, pulse, lambda done, total: self.steps.append(done), print,
            lambda: False,
        )  # fmt: skip
        recipe = training(batch_size=8, num_steps=NUM_STEPS, save_every_s=0.5)
        return trainer.fit(self.rows, self.parent, recipe, out, kept)


def weights_of(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(directory / "model.safetensors"))


@pytest.mark.parametrize("number", [0, 1])
def test_a_lost_node_costs_the_steps_since_the_last_state(hub: Hub, two: Machines, tmp_path: Path, number: int) -> None:
    """Also the first one, where they meet. Losses and weights are those of a training that nobody disturbed."""
    fits, kept = Fits(hub, tmp_path), Kept(directory=tmp_path / "kept")
    whole = fits.fit(tmp_path / "whole" / "weights", None)
    wait_until(lambda: len(hub.nodes()) == 2, lambda: hub.problems)
    lost = hub.nodes()[number]
    kills = [node for node in two.nodes if node.node_id == lost.id]

    def kill() -> None:
        if kills and list(kept.directory.glob("checkpoint-*")):
            kill_node(two, node := kills.pop())
            two.remove(node)

    with pytest.raises(EngineError, match=rf"trainer-{number + 1}: (its node|it was lost on) {lost.name}"):
        fits.fit(tmp_path / "broken" / "weights", kept, kill)
    two.add()
    saved = max(int(path.name.partition("-")[2]) for path in kept.directory.glob("checkpoint-*"))
    again = fits.fit(tmp_path / "again" / "weights", kept)
    assert 0 < saved < fits.steps[0], "it began anew"
    assert again.losses == pytest.approx(whole.losses, abs=2e-6)
    assert again.held_out_loss == pytest.approx(whole.held_out_loss, abs=2e-6)
    theirs = weights_of(tmp_path / "whole" / "weights")
    for name, tensor in weights_of(tmp_path / "again" / "weights").items():
        assert (tensor - theirs[name]).abs().max() < 2e-6, name
