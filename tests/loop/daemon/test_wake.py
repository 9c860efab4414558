"""What wakes the daemon's loop: threads and signal handlers, any number of times."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from loop.daemon.control import Wake
from tests.support.waiting import HANG_S, descriptors_below


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


@contextlib.contextmanager
def signalled(handle: Callable[[], object]) -> Iterator[None]:
    """A signal comes in a moment, and calls this."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handle())
    timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1])
    timer.start()
    yield
    timer.join()
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_wakes_it_and_another_that_means_something_else_does_not(wake: Wake) -> None:
    with signalled(wake.wake):
        assert wake.wait(HANG_S)
    seen = threading.Event()
    with signalled(seen.set):
        while not seen.is_set():
            assert not wake.wait(0.5)


def test_it_needs_no_descriptor(wake: Wake) -> None:
    with descriptors_below(1):  # 0 is taken
        wake.wake()
        assert wake.wait(0.1) and not wake.wait(0.0)


def test_nobody_is_woken_after_the_end(wake: Wake) -> None:
    wake.close()
    wake.close()
    wake.wake()
    assert not wake.wait(0.01)
