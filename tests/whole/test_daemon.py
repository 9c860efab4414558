"""The daemon as a process: started, commanded, stopped, killed, damaged, starved; and what `status` then says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from store.db import open_database
from store.verify import verify_store
from tests.support.daemons import ROOMY, STEADY, Daemon, daemon, decided, on_a_disk_of_its_own, steady
from tests.support.runs import environment
from tests.support.waiting import HANG_S, wait_until

__all__ = ["daemon"]


def test_start_runs_all_rounds_and_stop_and_start_say_what_is(daemon: Daemon) -> None:
    assert "started (process" in daemon.ctl("start")
    status = daemon.until(lambda s: s["pid"] is None and s["rounds"].get("kept") == 2)
    assert status["state"] == "idle" and status["rounds"]["kept"] == 2 and status["paused_by"] is None
    assert daemon.ctl("stop") == "not running\n"
    assert "has nothing to do" in daemon.ctl("start")
    assert daemon.findings() == [] and daemon.alone() and not (daemon.run_dir / "control.sock").exists()
    shutil.rmtree(daemon.run_dir / "checkpoints" / "round-0001")
    for dry in ([], ["--dry-run"]):
        assert "put it back, or choose another" in daemon.ctl("rollback", "--to", "1", *dry, code=1)
    assert daemon.status()["head"]["round"] == 2


@steady
def test_commands_are_answered_in_the_middle_of_training_and_may_be_given_twice(daemon: Daemon) -> None:
    daemon.spawn_into("training")
    assert "pausing at the next safe point of round 1, training" in daemon.ctl("pause")
    assert "already running" in daemon.ctl("start")
    assert daemon.ctl("pause") == "already paused\n"
    daemon.go_on()
    paused = daemon.until(lambda s: s["state"] == "paused")
    assert paused["reason"] == "paused by hand; `loopctl resume` continues the run" and paused["round"]["number"] == 1
    assert daemon.alone(), "a paused run holds no model"
    assert "started (process" in daemon.ctl("restart", "--now")
    assert daemon.until(lambda s: s["state"] == "paused")["paused_by"] == "user", "a pause survives a restart"
    assert daemon.ctl("resume") == "the run continues\n" and daemon.ctl("resume") == "not paused\n"
    daemon.until(lambda s: s["rounds"]["kept"] >= 1)
    assert "the head move" in daemon.ctl("rollback", "--to", "base")
    assert daemon.ctl("pin", "1") == "pinned round 1\n" and "already pinned" in daemon.ctl("pin", "1")
    assert re.search("would|nothing to remove", daemon.ctl("gc", "--dry-run"))
    assert "stopped\n" in daemon.ctl("stop", "--now")
    daemon.until(lambda s: s["pid"] is None)
    assert daemon.findings() == []


@steady
@pytest.mark.parametrize(
    "stage",
    [pytest.param("sampling", marks=pytest.mark.slow), "training", pytest.param("evaluating", marks=pytest.mark.slow)],
)
def test_sigterm_ends_it_in_every_stage_and_leaves_a_round_that_goes_on(stage: str, daemon: Daemon) -> None:
    process = daemon.spawn_into(stage)
    process.send_signal(signal.SIGTERM)
    daemon.go_on()
    assert process.wait(HANG_S) == 0
    status = daemon.status()
    assert decided(status) == 0, "it did not wait for the end of the round"
    assert status["state"] == "stopped" and "continues the run where it was left" in status["reason"]
    assert daemon.alone() and daemon.findings() == []
    daemon.spawn()
    daemon.until(lambda s: s["rounds"]["kept"] >= 2)


@steady
def test_kill_9_leaves_no_orphan_and_the_next_one_goes_on(daemon: Daemon) -> None:
    process = daemon.spawn_into("training")
    assert daemon.workers()
    daemon.kill(process)
    daemon.go_on()
    status = daemon.status()
    assert status["state"] == "stopped" and "the process vanished" in status["reason"] and status["pid"] is None
    assert (daemon.run_dir / "control.sock").exists() and (daemon.run_dir / "lock").exists()
    assert "no longer" not in daemon.ctl("pause"), "a stale socket is in nobody's way"
    daemon.ctl("resume")
    again = daemon.spawn()
    daemon.until(lambda s: s["rounds"]["kept"] >= 1)
    daemon.end(again)


@steady
def test_a_second_daemon_is_refused_and_harms_nothing(daemon: Daemon) -> None:
    first = daemon.spawn_into("sampling")
    second = daemon.spawn()
    assert second.wait(HANG_S) == 75
    assert f"process {first.pid} holds this run" in daemon.journal()
    assert "pausing" in daemon.ctl("pause") or "paused" in daemon.ctl("pause")
    assert first.poll() is None and daemon.status()["pid"] == first.pid


@pytest.mark.slow
@steady
def test_readers_in_a_tight_loop_see_no_lock_and_stop_nothing(daemon: Daemon) -> None:
    daemon.spawn()
    daemon.until(lambda s: s["rounds"]["kept"] >= 1)
    command = [sys.executable, "-P", "-m", "loop.cli.main", "status", "--config", str(daemon.config)]
    for _ in range(3):
        readers = [subprocess.Popen(command, env=environment(), stdout=-3, stderr=-1) for _ in range(10)]
        for reader in readers:
            _, errors = reader.communicate(timeout=HANG_S)
            assert reader.returncode == 0 and errors == b"", errors
    before = decided(daemon.status())
    daemon.until(lambda s: decided(s) > before)


@pytest.mark.parametrize(
    "daemon", [ROOMY.replace("[training]", "[collect]\nmin_lines = 50\n[training]")], indirect=True
)
def test_a_failed_stage_pauses_the_run_with_reason_and_remedy(daemon: Daemon) -> None:
    process = daemon.spawn()
    status = daemon.until(lambda s: s["state"] == "paused")
    assert "round 1 failed in sampling: all 60 completions were left out of training" in status["reason"]
    assert "`loopctl resume` tries it again" in status["reason"] and status["paused_by"] == "failure"
    assert "failed" in daemon.ctl("status", "--check", code=1)
    began, cpu = time.monotonic(), psutil.Process(process.pid).cpu_times()
    time.sleep(3)
    after = psutil.Process(process.pid).cpu_times()
    assert after.user - cpu.user < (time.monotonic() - began) / 3, "it spins"


def test_a_full_disk_pauses_it_and_it_goes_on_by_itself(tmp_path: Path) -> None:
    with on_a_disk_of_its_own(tmp_path, ROOMY, "-o", "size=24m") as daemon:
        ballast = tmp_path / "small" / "ballast"
        ballast.write_bytes(bytes(23_000_000))
        daemon.spawn()
        status = daemon.until(lambda s: s["state"] == "paused" or s["rounds"].get("kept") == 2)
        assert status["state"] == "paused", "the ballast is too light for this test"
        assert "room" in status["reason"] or "disk" in status["reason"]
        ballast.unlink()
        daemon.until(lambda s: s["rounds"]["kept"] == 2)
        assert daemon.findings() == []


@pytest.mark.slow
@steady
def test_a_torn_wal_loses_only_what_was_not_acknowledged(daemon: Daemon) -> None:
    process = daemon.spawn()
    daemon.until(lambda s: s["rounds"]["kept"] >= 1)
    daemon.kill(process)
    with (daemon.run_dir / "loop.db-wal").open("ab") as file:
        file.write(os.urandom(2000))
    last = daemon.spawn()
    daemon.until(lambda s: decided(s) >= 3)
    daemon.end(last)


@steady
def test_a_deleted_checkpoint_directory_makes_the_head_fall_back_loudly(daemon: Daemon) -> None:
    process = daemon.spawn()
    daemon.until(lambda s: s["rounds"]["kept"] >= 2)
    daemon.stand_still("sampling")  # from the head, which is needed again
    daemon.in_stage("sampling")
    daemon.kill(process)
    daemon.go_on()
    before = daemon.status()
    shutil.rmtree(before["head"]["path"])
    daemon.spawn()
    wait_until(lambda: "the head falls back to" in daemon.journal(), daemon.journal)
    daemon.until(lambda s: s["rounds"]["kept"] > before["rounds"]["kept"])


def test_it_tells_systemd(daemon: Daemon) -> None:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = f"\0loopd-test-{os.getpid()}-{time.monotonic_ns()}"
    heard.bind(address)
    heard.settimeout(HANG_S)
    process = daemon.spawn(NOTIFY_SOCKET="@" + address[1:], WATCHDOG_USEC="300000")
    messages = []
    while "STOPPING=1" not in messages:
        messages.append(heard.recv(4096).decode())
    assert process.wait(HANG_S) == 0
    assert messages.index("READY=1") < messages.index("WATCHDOG=1") < messages.index("STOPPING=1")
    assert any(message.startswith("STATUS=running") for message in messages)
    heard.close()


def test_the_unit_passes_systemd_analyze(daemon: Daemon) -> None:
    unit = daemon.config.parent / "loopd.service"
    unit.write_text(daemon.ctl("service"))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "loopd.service" in line]
    assert ours == [], done.stderr


HOOK = "cat >> {tmp_path}/heard; echo >> {tmp_path}/heard; while test ! -e {tmp_path}/go; do sleep 0.02; done"


@pytest.mark.parametrize(
    "daemon", [f'{STEADY}[watching]\ncommand = ["sh", "-c", "{HOOK}"]\ntimeout_s = {HANG_S}\n'], indirect=True
)
def test_a_hook_hears_of_decisions_and_holds_up_nothing(daemon: Daemon, tmp_path: Path) -> None:
    process = daemon.spawn()
    daemon.until(lambda s: decided(s) >= 2)
    heard = tmp_path / "heard"

    def told() -> list[Any]:
        lines = heard.read_text().split("\n") if heard.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [(event["event"], event["round"], event["verdict"]) for event in events]

    wait_until(told)
    assert told() == [("decision", 1, "keep")], "it still takes its time over the first"
    (tmp_path / "go").touch()
    wait_until(lambda: len(told()) >= 2)
    assert told()[:2] == [("decision", 1, "keep"), ("decision", 2, "keep")]
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == 0


def test_a_configuration_that_was_broken_meanwhile(daemon: Daemon) -> None:
    """What runs can be commanded whatever became of its file; nothing is stopped that could not be started again."""
    daemon.spawn_into("training")
    good = daemon.config.read_text()
    daemon.config.write_text(good + "\n[nonsense]\n")
    assert "paus" in daemon.ctl("pause") and "continues" in daemon.ctl("resume")
    assert "nonsense: unknown" in daemon.ctl("restart", code=78)
    daemon.config.write_text(good.replace("ones.jsonl", "none.jsonl"))
    assert "none.jsonl: no such file" in daemon.ctl("restart", code=78)
    assert daemon.status()["state"] == "running"
    daemon.config.write_text(good + "\n[nonsense]\n")
    assert "stopped\n" in daemon.ctl("stop", "--now")
    assert "nonsense: unknown" in daemon.ctl("pause", code=78), "with nobody to ask it is needed"


@pytest.mark.slow
def test_backup_while_it_runs_is_a_whole_store(daemon: Daemon, tmp_path: Path) -> None:
    daemon.spawn()
    daemon.until(lambda s: s["rounds"]["kept"] >= 1)
    target = tmp_path / "copy.db"
    assert "copy.db" in daemon.ctl("backup", str(target))
    assert "already exists" in daemon.ctl("backup", str(target), code=1)
    assert "is a directory; name a file" in daemon.ctl("backup", str(tmp_path), code=1)
    assert "no such directory; make it first" in daemon.ctl("backup", str(tmp_path / "none" / "copy.db"), code=1)
    assert "name a file" in daemon.ctl("backup", "-", code=2)
    with contextlib.closing(open_database(target, read_only=True)) as db:
        kinds = {finding.kind for finding in verify_store(db, daemon.run_dir).findings}
    assert kinds <= {"checkpoint", "high water"}


def test_doctor_tries_what_can_only_be_known_by_doing_it(daemon: Daemon) -> None:
    assert daemon.spawn().wait(HANG_S) == 0
    shown = daemon.ctl("doctor", "--deep")
    for name in ("sync", "database", "socket", "model", "store"):
        assert f"ok    {name}" in shown, shown
    weights = next((daemon.run_dir / "checkpoints").glob("round-*")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    assert "fail  store" in daemon.ctl("doctor", "--deep", code=1)
