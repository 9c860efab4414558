"""Workers as tests start and break them, and what is left of them. See bad_worker.py for those that misbehave."""

from __future__ import annotations

import sys
from collections.abc import Callable

import psutil

from loop.engines.base import Request, SamplingParams
from loop.workers.worker import Worker
from tests.support import SUPPORT
from tests.support.engines import settings

PARAMS = SamplingParams(temperature=1.0, max_new_tokens=100)


SETTINGS = settings(sampler="fake", trainer="fake")


def bad(*arguments: str) -> list[str]:
    return [sys.executable, "-P", str(SUPPORT / "bad_worker.py"), *arguments]


def requests(count: int) -> list[Request]:
    return [Request(id=f"r{i}", prefill=f"def f{i}():", seed=i) for i in range(count)]


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
