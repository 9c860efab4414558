"""Workers that report nothing: one that does nothing, one that computes for ever, and one that rarely gets a core."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from loop.workers.liveness import BUSY_FACTOR, StallWatch, Used, used_by

LIMIT_S, SILENCE_S = 600.0, 120.0


@dataclass
class Machine:
    """A fake clock, and a worker that in each second runs and waits for a core for some part of it."""

    ran: float = 0.0
    waited: float | None = 0.0
    reads: int = 0
    gpu_busy: bool = False
    runnable: bool = False
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.patience = StallWatch(LIMIT_S, SILENCE_S, lambda: self.now_s, self.used, lambda: self.gpu_busy)

    def used(self) -> Used:
        waited_s = None if self.waited is None else self.waited * self.now_s
        return Used(self.ran * self.now_s, waited_s, int(self.reads * self.now_s), self.runnable)

    def lives(self, seconds: float, heard: bool = True) -> str | None:
        """What is said of the worker in this time, at its end or when it is too much."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 1.0
            if heard:
                self.patience.heard()
            self.patience.look()
            if self.patience.is_silent:
                return "silent"
            if why := self.patience.exhausted:
                return why
        return None


def test_a_stopped_worker_is_silent_and_a_beating_heart_is_not_work() -> None:
    stopped = Machine()
    assert stopped.lives(1000.0, heard=False) == "silent" and stopped.now_s <= SILENCE_S + 10
    beating = Machine(ran=0.001)
    assert beating.lives(10_000.0) == "it made no progress for 600 s (it did nothing)"
    assert LIMIT_S <= beating.now_s <= LIMIT_S + 20


@pytest.mark.parametrize("cores", [1.0, 16.0])
@pytest.mark.parametrize("heard", [True, False])
def test_a_spinning_worker_ends_however_many_cores_it_takes(cores: float, heard: bool) -> None:
    """One that holds Python's lock beats no more, but is at work all the same: it gets as long as one that beats."""
    spinning = Machine(ran=cores)
    assert spinning.lives(100_000.0, heard) == "it made no progress in 2400 s of computing"
    assert BUSY_FACTOR * LIMIT_S <= spinning.now_s <= BUSY_FACTOR * LIMIT_S + 20


@pytest.mark.parametrize("share", [0.2, 0.02, 0.002])
def test_a_starved_worker_gets_as_much_more_time_as_it_is_starved(share: float) -> None:
    starved = Machine(ran=share, waited=1 - share)
    assert starved.lives(0.9 * BUSY_FACTOR * LIMIT_S / share, heard=False) is None
    assert starved.lives(0.2 * BUSY_FACTOR * LIMIT_S / share) is not None


@pytest.mark.parametrize(
    ("how", "is_starved"),
    [
        ({"runnable": True}, True),  # it waits all the time: the kernel adds a wait to its count when it is over
        ({"runnable": True, "waited": None}, True),
        ({"ran": 0.02, "waited": None}, True),  # where the kernel does not count the waiting, a little work is a sign
        ({"ran": 0.001, "waited": None}, False),
        ({"ran": 0.05}, False),  # it polls beside an idle core
    ],
)
def test_who_is_starved(how: dict, is_starved: bool) -> None:
    verdict = Machine(**how).lives(50_000.0, heard=not is_starved)
    assert verdict is None if is_starved else "did nothing" in str(verdict)


@pytest.mark.parametrize("elsewhere", [{"reads": 1000}, {"gpu_busy": True}])
def test_a_disk_and_a_gpu_work_too_but_not_for_ever(elsewhere: dict) -> None:
    machine = Machine(**elsewhere)
    assert machine.lives(2000.0, heard=False) is None
    assert "of computing" in str(machine.lives(1000.0))


def test_progress_begins_all_counting_again() -> None:
    machine = Machine(ran=0.5)
    for _ in range(5):
        assert machine.lives(0.9 * LIMIT_S) is None
        machine.patience.advanced()


@pytest.fixture
def spinner() -> Iterator[int]:
    """A process whose child spins."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    yield process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_what_a_tree_uses_is_read_from_the_kernel(spinner: int) -> None:
    while used_by(spinner).ran_s < 0.5:
        pass  # two processes that spin on what cores there are: both run or wait
    used = used_by(spinner)
    assert used.waited_s is None or used.waited_s >= 0.0
    assert used.is_runnable
    os.killpg(spinner, signal.SIGSTOP)
    while (stopped := used_by(spinner)).is_runnable:
        pass  # the signal takes effect when the process gets a core
    assert used_by(spinner).ran_s == stopped.ran_s
    assert used_by(2**22 + 1) == Used(0.0, None)
