"""What the tests of workers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loop.config.settings import Engine, Training
from loop.workers.up import Engines
from loop.workers.worker import Worker
from tests.support.engines import no_progress
from tests.support.workers import SETTINGS, Begin, Start, alive, bad, fake_model, nothing_left, tree


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a worker; by default a good one with the fake sampler. All are ended after the test, and leave nothing."""
    load = {"op": "load_sampler", "checkpoint": fake_model(tmp_path / "model"), "settings": SETTINGS}
    started: list[tuple[Worker, list[int]]] = []

    def begin(*bad_way: str, init: dict[str, Any] = load, **more: Any) -> Worker:
        if bad_way:
            more["command"] = bad(*bad_way)
        log = tmp_path / "logs" / "worker.log"
        worker = Worker(
            init, **{"log_file": log, "stall_timeout_s": 60.0, "progress": no_progress, "tag": "sampler"} | more
        )
        started.append((worker, tree(worker)))
        return worker

    yield begin
    for worker, pids in started:
        worker.end()
        assert not [pid for pid in pids if alive(pid)]


class Listener:
    """A watch that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done: int, total: int) -> None:
        pass


@pytest.fixture
def watch() -> Listener:
    return Listener()


@pytest.fixture
def begin(tmp_path: Path, watch: Listener) -> Iterator[Begin]:
    """Open engines, by default fakes on the CPU, that tell `watch`. All are closed after the test, and leave nothing."""
    made: list[Engines] = []

    def begin(**changed: Any) -> Engines:
        engine = Engine.model_validate({"sampler": "fake", "trainer": "fake", "device": "cpu"} | changed)
        config: Any = SimpleNamespace(
            config=SimpleNamespace(engine=engine, training=Training(), cluster=None), run_dir=tmp_path
        )
        made.append(Engines(config, watch))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    for engines in made:
        engines.close()
    assert nothing_left()
