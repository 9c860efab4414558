"""Waiting for what another thread or process does. Only a true hang reaches the limit, however slow or busy the machine is."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HANG_S = 600.0


def wait_until(holds: Callable[[], Any], what: Callable[[], object] = lambda: "it never came") -> Any:
    """What `holds` returns as soon as that is true; if it never is, an AssertionError that says `what`."""
    deadline = time.monotonic() + HANG_S
    while not (found := holds()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)
    return found


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def descriptors_below(number: int) -> Iterator[None]:
    """In this block the process gets no new descriptor of this number or a higher one."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def pid_in(file: Path, but: int = 0) -> int:
    """The process that a file names, once it names one, and not that one."""

    def named() -> int:
        text = file.read_text() if file.exists() else ""
        return int(text) if text.endswith("\n") and int(text) != but else 0

    return int(wait_until(named))


def returns(call: Callable[[], Any]) -> None:
    """It returns while all stands still that it might wait for."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive(), "it waits"


class Log(list[str]):
    """The warnings that a log was told."""

    def __call__(self, level: str, text: str) -> None:
        assert level == "warning" and "\n" not in text
        self.append(text)


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s
