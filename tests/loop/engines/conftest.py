"""What the tests of engines share: models, trainers, and a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loop.engines.base import CheckpointRef, Trainer
from loop.engines.fake import FakeTrainer, write_fake_model
from loop.workers.worker import RemoteTrainer, Worker
from tests.support.engines import no_progress, settings
from tests.support.model_server import StandIn
from tests.support.tiny import make_tiny_model
from tests.support.waiting import HANG_S


@pytest.fixture(scope="module")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    return CheckpointRef(sha256="1" * 64, path=make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    directory = tmp_path_factory.mktemp("models") / "fake"
    write_fake_model(directory, 0.5)
    return CheckpointRef(sha256="2" * 64, path=directory)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trainer]]:
    """Trainers by name; a remote one is started once."""
    started: dict[str, Any] = {}

    def trainer(name: str) -> Trainer:
        if name not in started:
            if name == "fake":
                started[name] = FakeTrainer(settings(), no_progress)
            elif name == "trl":
                from loop.engines.trl_trainer import TrlTrainer

                started[name] = TrlTrainer(settings(), no_progress)
            else:
                init = {"op": "load_trainer", "settings": settings(trainer=name.removesuffix(" remote"))}
                log = tmp_path_factory.mktemp("logs") / "worker.log"
                worker = Worker(init, log_file=log, stall_timeout_s=HANG_S, progress=no_progress, tag="trainer")
                started[name] = RemoteTrainer(worker)
        return started[name]

    yield trainer
    for engine in started.values():
        engine.close()
        engine.close()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer with its batches kept, and the trainer itself."""
    from loop.engines import trl_trainer

    class Recorded(trl_trainer.StepTrainer):  # type: ignore[misc, name-defined]
        batches: list[dict[str, Any]] = []  # noqa: RUF012
        last: Any = None

        def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **more: Any) -> Any:
            self.batches.append({key: value.clone() for key, value in inputs.items() if hasattr(value, "clone")})
            type(self).last = self
            return super().compute_loss(model, inputs, *arguments, **more)

    monkeypatch.setattr(trl_trainer, "StepTrainer", Recorded)
    return Recorded


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckpointRef]:
    """Two checkpoints of one shape with other weights: "one" and "other"; and "near", which no proof tells from "one"."""
    import safetensors.torch

    root = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("other", 1), ("near", 0)):
        make_tiny_model(root / name, seed=seed)
    tensors = safetensors.torch.load_file(root / "near" / "model.safetensors")
    tensors["model.norm.weight"] += 1e-6
    safetensors.torch.save_file(tensors, root / "near" / "model.safetensors", metadata={"format": "pt"})
    return {name: CheckpointRef(sha256=name, path=root / name) for name in ("one", "other", "near")}


@pytest.fixture(scope="module")
def shared(models: dict[str, CheckpointRef]) -> Iterator[StandIn]:
    stand_in = StandIn(models["one"])
    yield stand_in
    stand_in.close()


@pytest.fixture
def served(shared: StandIn, models: dict[str, CheckpointRef], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in as new, with "one"."""
    monkeypatch.setattr("loop.engines.server_http.RETRY_WAIT_S", 0.01)
    shared.asked.clear()
    yield shared
    shared.spoil, shared.statuses = lambda answer: answer, []
    shared.load(models["one"])
