"""Workers as tests start and break them, and what is left of them. See bad_worker.py for those that misbehave."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from loop.engines.base import CheckpointRef, Generated, Request, SamplingParams
from loop.engines.fake import write_fake_model
from loop.workers.up import Engines
from loop.workers.worker import RemoteSampler, Worker
from tests.support import SUPPORT
from tests.support.engines import settings

Start = Callable[..., Worker]
Begin = Callable[..., Engines]
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=100)
SETTINGS = settings(sampler="fake", trainer="fake")


def bad(*arguments: str) -> list[str]:
    return [sys.executable, "-P", str(SUPPORT / "bad_worker.py"), *arguments]


def requests(count: int) -> list[Request]:
    return [Request(id=f"r{i}", prefill=f"def f{i}():", seed=i) for i in range(count)]


def generate(worker: Worker, count: int = 1) -> list[list[Generated]]:
    """What it answers to `count` requests."""
    return list(RemoteSampler(worker).generate(requests(count), PARAMS))


def fake_model(path: Path, skill: float = 0.5, sha256: str = "0" * 64) -> CheckpointRef:
    write_fake_model(path, skill)
    return CheckpointRef(sha256=sha256, path=path)


def nothing_left() -> bool:
    """Whether no process that descends from this one lives."""
    return not [child for child in psutil.Process().children(recursive=True) if alive(child.pid)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tree(worker: Worker) -> list[int]:
    guard = psutil.Process(worker.process.pid)
    return [guard.pid, *(process.pid for process in guard.children(recursive=True))]


def engine_of(worker: Worker) -> int:
    return psutil.Process(worker.process.pid).children()[0].pid


class Enough(Exception):
    pass


def counting(limit: int) -> tuple[list[int], Callable[[], None]]:
    """A pulse that raises at its `limit`th beat."""
    beats: list[int] = []

    def pulse() -> None:
        beats.append(len(beats))
        if len(beats) == limit:
            raise Enough

    return beats, pulse
