"""What befalls a daemon from outside, and the line that `loopctl status` then shows to people.

The disk and the clock go wrong through tests/faults/preload.c, which is preloaded into the daemon and into loopctl; other
tests of this kind are in test_daemon.py and test_worker.py.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import TESTS
from tests.support.daemons import STEADY, Daemon, daemon, decided, on_a_disk_of_its_own, steady
from tests.support.runs import dump, environment
from tests.support.waiting import HANG_S

__all__ = ["daemon"]

SOURCE = TESTS / "faults" / "preload.c"
TWO_HOURS_S = 7200
PATIENT = STEADY.replace("retry_wait_s = 0.0", "retry_wait_s = 2.0")
# A worker that starts on a busy machine has time enough; a worker that was stopped is ended after 30 s.
IMPATIENT = PATIENT.replace("retry_wait_s", "stall_timeout_s = 30.0\nretry_wait_s")


@pytest.fixture(scope="session")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("faults") / "preload.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(target), str(SOURCE)], check=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs a C compiler (cc) that works: {error}")
    return target


@pytest.fixture
def fault(daemon: Daemon, preload: Path, tmp_path: Path) -> Callable[[str, int], None]:
    """Set what is wrong: "clock" to seconds, "disk" to an errno; 0 for nothing."""

    def begin(what: str, number: int) -> None:
        partial = tmp_path / f"{what}.partial"
        partial.write_text(str(number))
        partial.rename(tmp_path / what)

    daemon.variables |= {
        "LD_PRELOAD": str(preload),
        "FAULTS_ROOT": str(daemon.run_dir),
        "FAULTS_CLOCK": str(tmp_path / "clock"),
        "FAULTS_DISK": str(tmp_path / "disk"),
    }
    return begin


def is_over(status: Any, stage: str) -> bool:
    """Whether that stage of the first round is over."""
    return decided(status) > 0 or status["round"] is None or status["round"]["stage"] != stage


# The disk


@steady
@pytest.mark.parametrize(
    ("number", "stage"),
    [
        pytest.param(errno.EROFS, "sampling", marks=pytest.mark.slow),
        pytest.param(errno.EROFS, "training", marks=pytest.mark.slow),
        pytest.param(errno.EROFS, "evaluating", marks=pytest.mark.slow),
        pytest.param(errno.EDQUOT, "sampling", marks=pytest.mark.slow),
        pytest.param(errno.EDQUOT, "training", marks=pytest.mark.slow),
        pytest.param(errno.ENOSPC, "evaluating", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_takes_nothing_pauses_it_and_it_goes_on_by_itself(
    daemon: Daemon, fault: Callable[[str, int], None], number: int, stage: str
) -> None:
    process = daemon.spawn_into(stage)
    fault("disk", number)
    daemon.go_on()
    wanted = f"paused nothing can be written to {daemon.run_dir}" if number == errno.EROFS else "paused no room: "
    shown = daemon.says(wanted)
    assert "by itself when there is room" in shown and "round 1" in shown
    assert process.poll() is None
    fault("disk", 0)
    status = daemon.until(lambda s: s["state"] == "running" and is_over(s, stage))
    assert status["rounds"]["failed"] == 0 and status["last_error"] is None
    daemon.finish()


@pytest.mark.slow
def test_a_run_on_a_file_system_that_is_read_only_can_be_looked_at(tmp_path: Path) -> None:
    with on_a_disk_of_its_own(tmp_path, STEADY) as daemon:
        daemon.kill(daemon.spawn_into("training"))
        daemon.go_on()
        for what in ("ro", "rw"):
            subprocess.run(["mount", "-o", f"remount,{what}", str(tmp_path / "small")], check=True)
            shown = daemon.ctl("status", code=3)
            assert "the process vanished" in shown and "continues round 1, " in shown
            if what == "ro":
                assert "needs you nothing can be written to" in " ".join(shown.split())
                assert "Read-only file system" in daemon.ctl("start", code=1)
        daemon.finish()


# The lock


@pytest.mark.parametrize(
    "content",
    [
        "dead",
        b"\xff no number \n" * 9,
        *(pytest.param(content, marks=pytest.mark.slow) for content in (b"", b"9" * 400, "mine")),
    ],
)
def test_what_a_lock_file_says_of_yesterday_is_in_nobodys_way(daemon: Daemon, content: str | bytes) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    words = {"dead": str(ended.pid).encode(), "mine": str(os.getpid()).encode()}
    daemon.run_dir.mkdir()
    lock = daemon.run_dir / "lock"
    lock.write_bytes(words[content] if isinstance(content, str) else content)
    assert "no run in" in daemon.ctl("status", code=3)
    daemon.stand_still("sampling")
    process = daemon.spawn()
    daemon.says("● small running round 1")
    assert int(lock.read_text()) == process.pid == daemon.status()["pid"]


def test_a_full_disk_does_not_keep_a_process_from_the_lock(daemon: Daemon, fault: Callable[[str, int], None]) -> None:
    code = "import sys; from pathlib import Path; from loop.system.lock import locked\nwith locked(Path(sys.argv[1])): pass"
    for number in (0, errno.ENOSPC):
        fault("disk", number)
        command = [sys.executable, "-P", "-c", code, str(daemon.run_dir)]
        done = subprocess.run(command, env=environment() | daemon.variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# The daemon sleeps


# Put before the daemon's own code: its clock for patience with workers runs ahead, as if nobody had run meanwhile.
SLEPT = """
if "loop.daemon" in sys.orig_argv:
    from types import SimpleNamespace
    from loop.workers import worker
    right, slept = time.monotonic, Path({slept!r})
    worker.time = SimpleNamespace(monotonic=lambda: right() + (float(slept.read_text()) if slept.exists() else 0.0))
"""


@steady
def test_a_daemon_that_was_stopped_says_so_and_loses_and_doubles_nothing(
    daemon: Daemon, fault: Callable[[str, int], None], tmp_path: Path
) -> None:
    daemon.stages.put_before(SLEPT.replace("{slept!r}", repr(str(tmp_path / "slept"))))
    process = daemon.spawn_into("training")
    process.send_signal(signal.SIGSTOP)
    for clock in ("clock", "slept"):
        fault(clock, TWO_HOURS_S)
    shown = daemon.says(f"needs you stalled: no sign of life from process {process.pid} for ")
    assert "the limit is 600 s; look into `loopctl logs`, or `loopctl restart --now`" in shown
    assert "stalled" in daemon.ctl("status", "--check", code=1)
    process.send_signal(signal.SIGCONT)
    daemon.until(lambda s: s["needs_you"] == [])
    daemon.go_on()
    status = daemon.until(lambda s: is_over(s, "training"))
    assert status["last_error"] is None, "a worker was ended because the daemon slept"
    assert "stalled" not in daemon.ctl("status")
    daemon.finish()
    stages = json.loads(daemon.ctl("round", "1", "--json"))["stages"]
    assert [len(stage["attempts"]) for stage in stages[:2]] == [1, 1]


# Workers


@pytest.mark.parametrize(
    ("daemon", "signum", "words"),
    [
        (PATIENT, signal.SIGKILL, "it was killed (out of memory?); lower training.micro_batch_size, or see "),
        pytest.param(PATIENT, signal.SIGSEGV, "it ended by signal 11; ", marks=pytest.mark.slow),
        pytest.param(IMPATIENT, signal.SIGSTOP, "it made no progress for 30 s", marks=pytest.mark.slow),
    ],
    indirect=["daemon"],
)
def test_a_worker_that_dies_or_stands_still_is_tried_again(daemon: Daemon, signum: signal.Signals, words: str) -> None:
    daemon.spawn_into("training")
    for worker in daemon.workers():
        worker.send_signal(signum)
    shown = daemon.says("error round 1, training, attempt 1 trainer: ")
    assert words in shown and "; tried again in 2 s" in shown
    daemon.go_on()
    status = daemon.until(lambda s: is_over(s, "training"))
    assert status["rounds"]["failed"] == 0 and "error" not in daemon.ctl("status")
    daemon.finish()


# Put before the worker's own code: its first fit goes wrong, the second stands still.
WRONG_FIT = """
import stat
if "loop.workers.child" in sys.orig_argv:
    right, here = fake.FakeTrainer.fit, Path({here!r})
    def wrong(self, *args):
        if (here / "pid").exists():
            return right(self, *args)
        (here / "pid").write_text(str(os.getpid()))
        {wrong}
    fake.FakeTrainer.fit = wrong
"""
FLOOD = """
        pipes = [fd for fd in range(3, 40) if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISFIFO(os.fstat(fd).st_mode)]
        while True:
            for fd in pipes:
                try:
                    os.write(fd, b"y" * 4096)
                except OSError:
                    pass
"""
FORK_AWAY = """
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        (here / "pid").write_text(str(os.getpid()))
        time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("daemon", [PATIENT], indirect=True)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (FLOOD, "it announced a message of 2038004089 bytes and was ended"),
        (FORK_AWAY, "it ended with exit code 0; its last words are in its log"),
    ],
)
def test_a_worker_that_floods_its_pipe_or_forks_away(daemon: Daemon, tmp_path: Path, wrong: str, words: str) -> None:
    daemon.stages.put_before(WRONG_FIT.replace("{here!r}", repr(str(tmp_path))).replace("{wrong}", wrong))
    daemon.stand_still("training")
    daemon.spawn()
    shown = daemon.says("error round 1, training, attempt 1 trainer: ")
    assert words in shown and "; tried again in 2 s" in shown
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid), "it is still there"
    daemon.go_on()
    daemon.until(lambda s: is_over(s, "training"))
    daemon.finish()


# Weights


def truncated(weights: Path) -> None:
    os.truncate(weights, weights.stat().st_size - 1)


def flipped(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)


def damage(daemon: Daemon, round: int, stage: str, how: Callable[[Path], None]) -> None:
    """Damage the weights of round 1 while nobody uses them: in a pause within that round and stage."""
    daemon.spawn_into("evaluating")
    if (round, stage) == (2, "sampling"):
        daemon.stand_still("sampling")
        daemon.in_stage("sampling")
    daemon.ctl("pause")
    daemon.go_on()
    daemon.says(f"paused paused by hand; `loopctl resume` continues the run round {round} · {stage}")
    how(daemon.run_dir / "checkpoints" / "round-0001" / "model.safetensors")
    daemon.ctl("resume")


WRONG = {truncated: "the size is ", flipped: "the content differs from the manifest (SHA-256) (set aside as "}


@steady
@pytest.mark.slow
@pytest.mark.parametrize("how", [truncated, flipped])
@pytest.mark.parametrize(
    ("round", "stage", "words"),
    [
        pytest.param(1, "evaluating", ("training is done again",), id="a candidate"),
        pytest.param(2, "sampling", ("the head falls back to the base", "head the base", "1 failed"), id="a head"),
    ],
)
def test_damaged_weights_are_trained_again_or_given_up(
    daemon: Daemon, how: Callable[[Path], None], round: int, stage: str, words: tuple[str, ...]
) -> None:
    damage(daemon, round, stage, how)
    shown = daemon.says(f"error round {round}, {stage}, attempt")
    assert all(text in shown for text in ("checkpoint of round 1 is damaged", WRONG[how], *words)), shown
    daemon.until(lambda s: s["rounds"]["kept"] >= round)
    assert "error" not in daemon.ctl("status")
    daemon.finish()


# The clock


def seconds_in(status: Any) -> list[float]:
    """What a status says of durations, but for the attempt's: that began when its row says."""
    round = status["round"] or {}
    durations = [status["uptime_s"], status["heartbeat_age_s"], round.get("eta_s")]
    return [seconds for seconds in durations if seconds is not None]


@pytest.mark.slow
@pytest.mark.parametrize("offsets", [(-TWO_HOURS_S, 0), (TWO_HOURS_S, 0)])
def test_a_clock_that_leaps_changes_nothing_of_a_round(
    tmp_path: Path, daemon: Daemon, fault: Callable[[str, int], None], offsets: tuple[int, int]
) -> None:
    daemon.stand_still("sampling")
    daemon.spawn()
    for stage, offset in zip(("sampling", "training"), offsets, strict=True):
        daemon.stand_still(stage)
        daemon.in_stage(stage)
        fault("clock", offset)
        for _ in range(2):
            status, shown = daemon.status(), daemon.ctl("status")
            assert all(seconds >= 0 for seconds in (*seconds_in(status), status["round"]["elapsed_s"] or 0)), status
            assert "running round 1 · " in " ".join(shown.split()) and "heartbeat" in shown
            assert "needs you" not in shown or "no sign of life from process" in shown
        status = daemon.until(lambda s: s["needs_you"] == [] and s["heartbeat_age_s"] < 60)
        assert all(0 <= seconds < TWO_HOURS_S / 2 for seconds in seconds_in(status)), status
    daemon.ctl("stop", "--now")
    daemon.go_on()
    assert daemon.spawn().wait(HANG_S) == 0 and daemon.status()["rounds"]["kept"] == 2 and daemon.findings() == []
    quiet = Daemon(tmp_path / "quiet")
    assert quiet.spawn().wait(HANG_S) == 0
    assert dump(daemon.run_dir) == dump(quiet.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("daemon", [STEADY + '\n[schedule]\nevery = "1h"\n'], indirect=True)
def test_a_schedule_lives_with_a_clock_that_leaps(daemon: Daemon, fault: Callable[[str, int], None]) -> None:
    def waits_an_hour(num_kept: int, offset_s: int) -> None:
        """Wait until that number of rounds is kept, and the next is due within an hour by that clock."""
        fault("clock", offset_s)

        def is_so(status: Any) -> bool:
            assert decided(status) <= num_kept
            if status["state"] != "idle" or not status["next_due"]:
                return False
            at, due = (datetime.fromisoformat(status[key]) for key in ("as_of", "next_due"))
            minutes = (due - at).total_seconds() / 60
            return decided(status) == num_kept and 30 < minutes <= 60

        daemon.until(is_so)
        assert "next 20" in " ".join(daemon.ctl("status").split())

    daemon.spawn()
    waits_an_hour(1, 0)
    waits_an_hour(1, -TWO_HOURS_S)  # an hour from now, not three
    waits_an_hour(1, 0)  # the start is right again
    waits_an_hour(2, TWO_HOURS_S)  # one round is due, not two
    waits_an_hour(2, 0)
