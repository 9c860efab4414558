"""`loopctl run` and `loopd` with the fake engine: what they print, how they end, and how they go on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loop.system.lock import locked
from store.db import open_database
from store.ledger import Ledger
from tests.support.cli import (
    CONFIG,
    Loopctl,
    Said,
    call,
    command,
    environment,
    finished,
    finished_run,
    process,
    write_configuration,
)
from tests.support.stages import Stages
from tests.support.waiting import HANG_S, wait_until

__all__ = ["call", "finished"]


def test_what_run_prints() -> None:
    said = finished_run()[1]
    for words in ("round 1: ", "round 2: ", "▸ ones (select, T 0.9, top_p 0.95) decides", "candidate - head", "decision",
                  "improvement: ", "training  saw 16 of 16", "times ", "the head is", "loopctl samples --round 2"):  # fmt: skip
        assert words in said.out, words
    assert "\x1b" not in said.out + said.err
    lines = said.err.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines), "a pipe gets plain lines"
    assert any("round 1 sampling: 16 completions" in line for line in lines)
    assert any("done in" in line for line in lines)


def test_nothing_left_to_do(finished: Path, call: Loopctl) -> None:
    said = call("run")
    assert said.code == 0
    assert "all 2 rounds are done; raise rounds in loop.toml, or give --rounds N" in said.err
    assert "the head is" in said.out


def test_more_rounds_as_json(finished: Path, call: Loopctl) -> None:
    said = call("run", "--rounds", "1", "--json")
    assert said.code == 0
    assert [row["round"] for row in said.json["rounds"]] == [1, 2, 3]
    assert said.json["rounds"] == call("rounds", "--json").json
    assert said.json["head"]["checkpoint"]
    assert "round 3: " in said.err
    assert call("status", "--json").json["state"] == "idle"
    assert call("run", "--rounds", "0").code == 2


def test_another_process_holds_the_run(finished: Path) -> None:
    with locked(finished / ".loop"):
        said = process(finished, "run", "--rounds", "1")
    assert said.code == 75 and str(os.getpid()) in said.err and said.out == ""


def test_another_configuration(finished: Path, call: Loopctl) -> None:
    config = finished / "loop.toml"
    config.write_text(config.read_text().replace("seed = 3", "seed = 4"))
    said = call("run")
    assert said.code == 78 and "seed is 4 here and 3 in the run directory" in said.err


@pytest.mark.parametrize("kind", ["gone", "empty"])
def test_a_store_that_is_gone_is_not_begun_anew_over_its_checkpoints(finished: Path, call: Loopctl, kind: str) -> None:
    weights = {path: path.read_bytes() for path in (finished / ".loop" / "checkpoints").rglob("*") if path.is_file()}
    for path in (finished / ".loop").glob("loop.db*"):
        path.unlink()
    if kind == "empty":
        (finished / ".loop" / "loop.db").touch()
    said = call("run")
    assert (
        said.code == 1
        and "holds no run, but checkpoints/ beside it holds the weights of one; put a backup back" in said.err
    )
    assert weights and all(path.read_bytes() == content for path, content in weights.items())


def interrupted(directory: Path, *signals: signal.Signals, module: str = "loop.cli.main") -> Said:
    """Start a run, and send it signals once it evaluates."""
    arguments, stages = ["run"] if module == "loop.cli.main" else [], Stages(directory)
    stages.stand_still("evaluating")
    running = subprocess.Popen(
        command(*arguments, module=module),
        cwd=directory,
        env=environment(**stages.variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stages.wait("evaluating")
    for number, signum in enumerate(signals):
        wait_until(lambda number=number: stages.num_heard() == number)
        running.send_signal(signum)
    if len(signals) == 1:
        stages.go_on()
    out, err = running.communicate(timeout=HANG_S)
    return Said(running.returncode, out, err)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on(
    signum: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl
) -> None:
    monkeypatch.chdir(write_configuration(tmp_path, CONFIG.replace("rounds = 2", "rounds = 1")).parent)
    said = interrupted(tmp_path, signum)
    assert said.code == 128 + signum
    assert "interrupted; `loopctl run` goes on where it was" in said.err and "Traceback" not in said.err
    status = call("status", "--json").json
    assert status["state"] == "stopped" and "interrupted" in status["reason"] and status["pid"] is None
    assert status["round"]["number"] == 1 and status["round"]["stage"] == "evaluating"
    assert "continues round 1, evaluating" in call("status").out
    assert call("run").code == 0
    answer = call("round", "1", "--json").json
    assert answer["state"] in ("kept", "rolled_back")
    assert [attempt["error"] for attempt in answer["stages"][2]["attempts"]] == [signum.name, None]
    assert call("verify").code == 0


def test_loopd_stops_at_a_safe_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(write_configuration(tmp_path).parent)
    said = interrupted(tmp_path, signal.SIGTERM, module="loop.daemon")
    assert said.code == 0 and said.out == ""
    entries = [json.loads(line) for line in said.err.splitlines()]
    assert all(entry.keys() >= {"time", "level", "run", "round", "stage", "message"} for entry in entries)
    assert "continues the run where it was left" in entries[-1]["message"]
    attempts = call("round", "1", "--json").json["stages"][-1]["attempts"]
    assert attempts[-1]["error"] in (None, "stopped"), "left between two batches, or between two stages"
    status = call("status", "--json").json
    assert status["state"] == "stopped" and status["round"]["number"] == 1


def test_a_second_signal_stops_loopd_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(write_configuration(tmp_path).parent)
    said = interrupted(tmp_path, signal.SIGTERM, signal.SIGTERM, module="loop.daemon")
    assert said.code == 0
    assert call("status", "--json").json["round"]["stage"] == "evaluating"


def test_a_signal_to_a_process_that_is_ending_changes_nothing() -> None:
    code = (
        "import os, signal\nfrom loop.system.signals import Stop\n"
        "with Stop(at_once=False).listening(to_the_end=True): pass\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0


def test_loopd_says_what_is_wrong(tmp_path: Path) -> None:
    said = process(tmp_path, module="loop.daemon")
    assert said.code == 78 and "loopctl init" in json.loads(said.err)["message"]


def test_a_failed_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    config = CONFIG.replace("[training]", "[collect]\nmin_lines = 50\n\n[training]")
    monkeypatch.chdir(write_configuration(tmp_path, config).parent)
    said = call("run", "--json")
    assert said.code == 1 and said.out == ""
    assert "round 1 failed in sampling" in said.err and "loopctl run" in said.err
    status = call("status", "--json")
    assert status.code == 3 and status.json["state"] == "failed"
    assert status.json["rounds"]["failed"] == 1
    assert status.json["last_error"]["stage"] == "sampling" and status.json["last_error"]["attempt"] == 1
    assert "left out of training" in call("round", "1").out
    assert call("rounds").code == 0


def test_a_full_disk(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "loop.db")

    monkeypatch.setattr("loop.daemon.service.run_round", full)
    said = call("run", "--rounds", "1")
    assert said.code == 1 and "No space left on device" in said.err and "make room and run it again" in said.err


def test_a_terminal_gets_a_moving_line(tmp_path: Path) -> None:
    shutil.copytree(finished_run()[0], tmp_path / "run")
    import pty

    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        command("run", "--rounds", "1"),
        cwd=tmp_path / "run",
        env=environment(TERM="xterm"),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert running.wait() == 0
    assert b"\x1b[" in seen and b"round 3 training: 16 completions" in seen and "▸ ones".encode() in seen


def test_a_round_that_was_begun_is_finished_whatever_the_goal(finished: Path, call: Loopctl) -> None:
    db = open_database(finished / ".loop" / "loop.db")
    ledger = Ledger(db)
    run = ledger.run()
    assert run is not None
    ledger.begin_round(run.id)
    db.close()
    assert "continues round 3, sampling" in call("status").out
    assert call("run").code == 0
    assert call("rounds", "--json").json[2]["state"] in ("kept", "rolled_back")
