"""How long a worker is waited for: silence, progress, and the pulse meanwhile."""

from __future__ import annotations

import os
import signal
import time

import pytest

from loop.engines.base import SamplingParams
from loop.errors import EngineError, StalledError
from loop.workers import worker as worker_module
from loop.workers.worker import RemoteSampler
from tests.support.workers import PARAMS, Enough, Start, counting, engine_of, generate, nothing_left, requests


@pytest.mark.parametrize(
    ("way", "how", "message"),
    [
        ("silent", {"heartbeat_timeout_s": 1.0}, "nothing was heard from it for 1 s"),
        ("hang", {"stall_timeout_s": 1.5, "heartbeat_timeout_s": 1.4}, r"no progress for 1\.5 s"),
        ("spin", {"stall_timeout_s": 0.5}, r"no progress in 2 s of computing and was ended; .*engine\.stall_timeout_s"),
    ],
)
def test_silence_a_beating_heart_and_computing_without_a_report_end_a_worker(
    start: Start, way: str, how: dict[str, float], message: str
) -> None:
    """Each after its own time. For want of progress a worker is ended as stalled."""
    stalled: list[str] = []
    with pytest.raises(EngineError, match=message) as ended:
        generate(start(way, stalled=lambda: stalled.append(way), **how))
    assert isinstance(ended.value, StalledError) == ("no progress" in message) == (stalled == [way])


def test_what_a_worker_says_is_passed_on_and_what_it_waits_for_stands_in_the_error(start: Start) -> None:
    notes: list[str] = []
    with pytest.raises(
        StalledError, match=r"\(it did nothing\) and was ended; it waits for rank 1; if it is only slow, "
    ):
        generate(start("say-and-hang", stall_timeout_s=1.0, note=notes.append))
    assert notes == ["a note"]
    with pytest.raises(EngineError, match="it sent a message of unknown type 'note'"):
        start("note-nonsense")


@pytest.mark.parametrize("way", ["silent", "hang-init", "half-a-frame"])
def test_the_pulse_beats_while_nothing_comes_and_may_end_it(start: Start, way: str) -> None:
    _, pulse = counting(4)
    with pytest.raises(Enough):
        start(way, pulse=pulse, stall_timeout_s=30.0)
    assert nothing_left()


@pytest.mark.parametrize("num_bytes", [1, 200_000])
def test_what_the_pulse_raises_ends_a_call_cleanly(start: Start, num_bytes: int) -> None:
    """Also while a command is not read, which is too large for the pipe."""
    worker = start("hang")
    if num_bytes > 1:
        os.kill(engine_of(worker), signal.SIGSTOP)
    _, worker.pulse = counting(3)
    with pytest.raises(Enough):
        worker.call({"op": "hang", "with": "x" * num_bytes})
    assert worker.ended and nothing_left()


def test_every_message_is_a_pulse(start: Start) -> None:
    beats, pulse = counting(-1)
    start("hundred-heartbeats", pulse=pulse)
    assert len(beats) >= 100


def test_progress_without_advance_does_not_count_for_ever(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it goes back and forth. But a long completion may be in the making for a report per token."""
    monkeypatch.setattr(worker_module, "IDLE_REPORTS", 10)
    reports: list[int] = []
    with pytest.raises(EngineError, match=r"no progress for 0\.5 s"):
        generate(start("repeats", stall_timeout_s=0.5, progress=lambda done, total: reports.append(done)))
    assert len(reports) > PARAMS.max_new_tokens


@pytest.mark.parametrize("way", ["repeats", "advances"])
def test_slow_progress_is_progress(start: Start, way: str) -> None:
    began: list[float] = []

    def progress(done: int, total: int) -> None:
        began.append(time.monotonic())
        if began[-1] - began[0] > 2.5:
            raise Enough

    sampler = RemoteSampler(start(way, stall_timeout_s=1.0, progress=progress))
    with pytest.raises(Enough):
        list(sampler.generate(requests(1), SamplingParams(temperature=1.0, max_new_tokens=100_000)))


def test_time_in_which_the_daemon_itself_was_stopped_does_not_count(
    start: Start, monkeypatch: pytest.MonkeyPatch
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
        generate(worker)
