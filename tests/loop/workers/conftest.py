"""What the tests of workers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import CheckpointRef
from loop.engines.fake import write_fake_model
from loop.workers.worker import Worker
from tests.support.workers import SETTINGS, alive, bad, tree


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker; by default a good one with the fake sampler. All are ended after the test."""
    write_fake_model(tmp_path / "model", 0.5)
    checkpoint = CheckpointRef(sha256="0" * 64, path=tmp_path / "model")
    started: list[Worker] = []

    def begin(*bad_way: str, **more: Any) -> Worker:
        init = {"op": "load_sampler", "checkpoint": checkpoint, "settings": SETTINGS}
        keywords = {
            "log_file": tmp_path / "logs" / "worker.log",
            "stall_timeout_s": 60.0,
            "progress": lambda done, total: None,
            "tag": "sampler",
        } | more
        if bad_way:
            keywords["command"] = bad(*bad_way)
        started.append(Worker(keywords.pop("init", init), **keywords))
        return started[-1]

    yield begin
    for worker in started:
        pids = tree(worker) if worker.process.poll() is None else []
        worker.end()
        assert not [pid for pid in pids if alive(pid)]
