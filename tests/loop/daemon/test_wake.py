"""What wakes the daemon's loop: threads and signal handlers, any number of times."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator

import pytest

from loop.daemon.control import Wake
from tests.support.waiting import HANG_S, wait_until


@pytest.fixture
def wake() -> Iterator[Wake]:
    wake = Wake()
    yield wake
    wake.close()


def test_it_wakes_once_for_any_number_of_times(wake: Wake) -> None:
    for _ in range(200_000):  # far more than a pipe holds
        wake.wake()
    assert wake.wait(HANG_S)
    assert not wake.wait(0.01)
    wake.wake()
    wake.drain()
    wake.drain()
    assert not wake.wait(0.0) and not wake.wait(-1.0)


def test_a_thread_wakes_it(wake: Wake) -> None:
    timer = threading.Timer(0.1, wake.wake)
    timer.start()
    assert wake.wait(1e12)
    timer.join()


def test_a_signal_wakes_it(wake: Wake) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: wake.wake())
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        assert wake.wait(HANG_S)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_means_something_else_does_not(wake: Wake) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signum, _: seen.append(signum))
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    timer.start()

    def is_seen() -> bool:
        assert not wake.wait(0.5)
        return bool(seen)

    try:
        wait_until(is_seen)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_it_needs_no_descriptor(wake: Wake) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))  # 0 is taken
    try:
        wake.wake()
        assert wake.wait(0.1) and not wake.wait(0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_nobody_is_woken_after_the_end() -> None:
    wake = Wake()
    wake.close()
    wake.close()
    wake.wake()
    assert not wake.wait(0.01)
