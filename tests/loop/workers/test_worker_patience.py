"""How long a worker is waited for: silence, progress, and the pulse that goes on meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from loop.engines.base import SamplingParams
from loop.errors import EngineError, StalledError
from loop.workers import worker as worker_module
from loop.workers.worker import RemoteSampler, Worker
from tests.support.workers import PARAMS, Enough, alive, counting, engine_of, requests, tree


def test_a_silent_worker_is_found_by_its_missing_heartbeat(start: Callable[..., Worker]) -> None:
    with pytest.raises(EngineError, match="nothing was heard from it for 1 s"):
        start("silent", heartbeat_timeout_s=1.0)


def test_a_beating_heart_is_not_progress(start: Callable[..., Worker]) -> None:
    sampler = RemoteSampler(start("hang", stall_timeout_s=1.5, heartbeat_timeout_s=1.4))
    with pytest.raises(EngineError, match=r"no progress for 1\.5 s"):
        list(sampler.generate(requests(1), PARAMS))


def test_computing_without_a_report_is_borne_longer_but_not_for_ever(start: Callable[..., Worker]) -> None:
    ended: list[str] = []
    sampler = RemoteSampler(start("spin", stall_timeout_s=0.5, stalled=lambda: ended.append("stalled")))
    with pytest.raises(StalledError, match=r"no progress in 2 s of computing and was ended; .*engine\.stall_timeout_s"):
        list(sampler.generate(requests(1), PARAMS))
    assert ended == ["stalled"]


@pytest.mark.parametrize("way", ["silent", "hang-init", "half-a-frame"])
def test_the_pulse_goes_on_while_nothing_comes_and_may_end_it(start: Callable[..., Worker], way: str) -> None:
    _, pulse = counting(4)
    with pytest.raises(Enough):
        start(way, pulse=pulse, stall_timeout_s=30.0)
    assert not [process for process in psutil.Process().children(recursive=True) if alive(process.pid)]


def test_what_the_pulse_raises_ends_a_call_cleanly(start: Callable[..., Worker]) -> None:
    worker = start("hang")
    pids = tree(worker)
    _, worker.pulse = counting(3)
    with pytest.raises(Enough):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
    assert worker.ended and not [pid for pid in pids if alive(pid)]


def test_the_pulse_goes_on_while_a_command_is_not_read(start: Callable[..., Worker]) -> None:
    worker = start("hang")
    os.kill(engine_of(worker), signal.SIGSTOP)
    _, worker.pulse = counting(3)
    with pytest.raises(Enough):
        list(RemoteSampler(worker).generate(requests(3000), PARAMS))
    assert worker.ended


def test_every_message_is_a_pulse(start: Callable[..., Worker]) -> None:
    beats, pulse = counting(-1)
    start("hundred-heartbeats", pulse=pulse)
    assert len(beats) >= 100


def test_progress_without_advance_does_not_count_for_ever(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where it goes back and forth. But a long completion may be in the making for so many reports."""
    monkeypatch.setattr(worker_module, "IDLE_REPORTS", 10)
    reports: list[int] = []
    sampler = RemoteSampler(start("repeats", stall_timeout_s=0.5, progress=lambda done, total: reports.append(done)))
    with pytest.raises(EngineError, match=r"no progress for 0\.5 s"):
        list(sampler.generate(requests(1), PARAMS))
    assert len(reports) > PARAMS.max_new_tokens


@pytest.mark.parametrize("way", ["repeats", "advances"])
def test_slow_progress_is_progress(start: Callable[..., Worker], way: str) -> None:
    began: list[float] = []

    def progress(done: int, total: int) -> None:
        began.append(time.monotonic())
        if began[-1] - began[0] > 2.5:
            raise Enough

    sampler = RemoteSampler(start(way, stall_timeout_s=1.0, progress=progress))
    with pytest.raises(Enough):
        list(sampler.generate(requests(1), SamplingParams(temperature=1.0, max_new_tokens=100_000)))


def test_time_in_which_the_daemon_itself_was_stopped_does_not_count(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start("hang", stall_timeout_s=30.0, heartbeat_timeout_s=20.0)
    beats, pulse = counting(8)
    monotonic, away = time.monotonic, 0.0
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: monotonic() + away)

    def long_pulse() -> None:
        nonlocal away
        pulse()
        if len(beats) == 3:
            away += 1000.0

    worker.pulse = long_pulse
    with pytest.raises(Enough):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
