"""What the tests of engines share: models, trainers, and a server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import CheckpointRef, Trainer
from loop.engines.fake import FakeSampler, write_fake_model
from loop.workers.child import build_trainer
from loop.workers.pool import Pool, Start
from loop.workers.worker import RemoteTrainer, Worker
from tests.support.engines import Models, in_process, make_models, no_progress, remote, settings
from tests.support.model_server import StandIn, server_sampler
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
    write_fake_model(directory, 0.4)
    return CheckpointRef(sha256="2" * 64, path=directory)


def pool_of(checkpoint: CheckpointRef, logs: Path) -> Pool:
    def start_of(number: int) -> Start:
        return lambda checkpoint, pulse: remote(checkpoint, "fake", logs / f"sampler-{number}.log")

    starts = [start_of(number) for number in (1, 2)]
    return Pool(starts, checkpoint, progress=no_progress, pulse=lambda: None, note=pytest.fail)


@pytest.fixture(scope="module", params=["fake", "fake remote", "pool of fakes", "transformers", "transformers remote"])
def pair(
    request: pytest.FixtureRequest, fake: CheckpointRef, tiny: CheckpointRef, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any]]:
    """The sampler and prober under test, with batches of 4, and another of the same checkpoint in process, of 7."""
    log = tmp_path_factory.mktemp("logs") / "worker.log"
    samplers: dict[str, Any] = {
        "fake": lambda: FakeSampler(fake, settings(), no_progress),
        "fake remote": lambda: remote(fake, "fake", log),
        "pool of fakes": lambda: pool_of(fake, log.parent),
        "transformers": lambda: in_process(tiny),
        "transformers remote": lambda: remote(tiny, "transformers", log),
    }
    sampler = samplers[request.param]()
    other = FakeSampler(fake, settings(batch_size=7), no_progress)
    yield sampler, other if "fake" in request.param else in_process(tiny, batch_size=7)
    sampler.close()
    sampler.close()


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trainer]]:
    """Trainers by name; a remote one is started once."""
    started: dict[str, Any] = {}

    def trainer(name: str) -> Trainer:
        if name not in started:
            if "remote" in name:
                init = {"op": "load_trainer", "settings": settings(trainer=name.removesuffix(" remote"))}
                log = tmp_path_factory.mktemp("logs") / "worker.log"
                worker = Worker(init, log_file=log, stall_timeout_s=HANG_S, progress=no_progress, tag="trainer")
                started[name] = RemoteTrainer(worker)
            else:
                started[name] = build_trainer(settings(trainer=name), no_progress)
        return started[name]

    yield trainer
    for engine in started.values():
        engine.close()
        engine.close()


@pytest.fixture
def trl(trainers: Callable[[str], Trainer]) -> Trainer:
    return trainers("trl")


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
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def shared(models: Models) -> Iterator[StandIn]:
    stand_in = StandIn(models["one"])
    yield stand_in
    stand_in.close()


@pytest.fixture
def served(shared: StandIn, models: Models, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in as new, with "one"."""
    monkeypatch.setattr("loop.engines.server_http.RETRY_WAIT_S", 0.01)
    shared.asked.clear()
    yield shared
    shared.spoil, shared.statuses = lambda answer: answer, []
    shared.load(models["one"])


@pytest.fixture
def start(served: StandIn, models: Models) -> Iterator[Callable[..., Any]]:
    """Start a sampler over the stand-in, by default with "one"; all are closed after the test."""
    with contextlib.ExitStack() as stack:

        def begin(name: str = "one", **changed: Any) -> Any:
            sampler = server_sampler(models[name], served.url, **changed)
            stack.callback(sampler.close)
            return sampler

        yield begin
