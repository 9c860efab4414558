"""`loopctl run` and `loopd`, on the fake engine, print what they should, end, and continue."""

import errno
import json
import re
import signal
import sys
from pathlib import Path

import pytest

from store.records import DECIDED
from tests.support.cli import Loopctl, Said, change, finish, finished_run, ledger_of, on_a_terminal, process, start
from tests.support.stages import Stages
from tests.support.waiting import HANG_S, wait_until


def test_what_run_prints() -> None:
    result = finished_run()[1]
    for words in ("round 1: ", "round 2: ", "▸ ones (select, T 0.9, top_p 0.95) decides", "candidate - head", "decision",
                  "improvement: ", "training  saw 16 of 16", "times ", "the head is", "loopctl samples --round 2"):  # fmt: skip
        assert words in result.out, words
    assert "\x1b" not in result.out + result.err
    lines = result.err.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines), "a pipe gets plain lines"
    assert any("round 1 sampling: 16 completions" in line for line in lines)
    assert any("done in" in line for line in lines)


def test_nothing_left_to_do(finished: Path, call: Loopctl) -> None:
    result = call("run")
    assert result.code == 0
    assert "all 2 rounds are done; raise rounds in loop.toml, or give --rounds N" in result.err
    assert "the head is" in result.out


def test_more_rounds_as_json(finished: Path, call: Loopctl) -> None:
    result = call("run", "--rounds", "1", "--json")
    assert result.code == 0
    assert [row["round"] for row in result.json["rounds"]] == [1, 2, 3]
    assert result.json["rounds"] == call("rounds", "--json").json
    assert result.json["head"]["checkpoint"]
    assert "round 3: " in result.err
    assert call("status", "--json").json["state"] == "idle"
    assert call("run", "--rounds", "0").code == 2


@pytest.mark.parametrize("kind", ["gone", "empty"])
def test_a_store_that_is_gone_is_not_begun_anew_over_its_checkpoints(finished: Path, call: Loopctl, kind: str) -> None:
    weights = {path: path.read_bytes() for path in (finished / ".loop" / "checkpoints").rglob("*") if path.is_file()}
    for path in (finished / ".loop").glob("loop.db*"):
        path.unlink()
    if kind == "empty":
        (finished / ".loop" / "loop.db").touch()
    result = call("run")
    words = "holds no run, but checkpoints/ beside it holds the weights of one; put a backup back"
    assert result.code == 1 and words in result.err
    assert weights and all(path.read_bytes() == content for path, content in weights.items())


def interrupted(directory: Path, *signals: signal.Signals, module: str = "loop.cli.main") -> Said:
    """Start a run, and send it signals once it evaluates."""
    arguments, stages = ["run"] if module == "loop.cli.main" else [], Stages(directory)
    stages.stand_still("evaluating")
    running = start(directory, *arguments, module=module, **stages.variables)
    stages.wait("evaluating")
    for number, signum in enumerate(signals):
        wait_until(lambda number=number: stages.num_heard() == number)
        running.send_signal(signum)
    if len(signals) == 1:
        stages.go_on()
    out, err = running.communicate(timeout=HANG_S)
    return Said(running.returncode, out, err)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_continues(signum: signal.Signals, here: Path, call: Loopctl) -> None:
    change(here, ("rounds = 2", "rounds = 1"))
    result = interrupted(here, signum)
    assert result.code == 128 + signum
    assert "interrupted; `loopctl run` goes on where it was" in result.err and "Traceback" not in result.err
    status = call("status", "--json").json
    assert status["state"] == "stopped" and "interrupted" in status["reason"] and status["pid"] is None
    assert status["round"]["number"] == 1 and status["round"]["stage"] == "evaluating"
    assert "continues round 1, evaluating" in call("status").out
    assert call("run").code == 0
    answer = call("round", "1", "--json").json
    assert answer["state"] in DECIDED
    assert [attempt["error"] for attempt in answer["stages"][2]["attempts"]] == [signum.name, None]
    assert call("verify").code == 0


def test_loopd_stops_at_a_safe_point(here: Path, call: Loopctl) -> None:
    result = interrupted(here, signal.SIGTERM, module="loop.daemon")
    assert result.code == 0 and result.out == ""
    entries = [json.loads(line) for line in result.err.splitlines()]
    assert all(entry.keys() >= {"time", "level", "run", "round", "stage", "message"} for entry in entries)
    assert "continues the run where it was left" in entries[-1]["message"]
    attempts = call("round", "1", "--json").json["stages"][-1]["attempts"]
    assert attempts[-1]["error"] in (None, "stopped"), "left between two batches, or between two stages"
    status = call("status", "--json").json
    assert status["state"] == "stopped" and status["round"]["number"] == 1


def test_a_second_signal_stops_loopd_at_once(here: Path, call: Loopctl) -> None:
    assert interrupted(here, signal.SIGTERM, signal.SIGTERM, module="loop.daemon").code == 0
    assert call("status", "--json").json["round"]["stage"] == "evaluating"


def test_a_signal_to_a_process_that_is_ending_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom loop.system.signals import Stop\n"
        "with Stop(at_once=False).listening(to_the_end=True): pass\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert finish([sys.executable, "-c", code], tmp_path).code == 0


def test_loopd_says_what_is_wrong(tmp_path: Path) -> None:
    result = process(tmp_path, module="loop.daemon")
    assert result.code == 78 and "loopctl init" in json.loads(result.err)["message"]


def test_a_failed_round(here: Path, call: Loopctl) -> None:
    change(here, ("[training]", "[collect]\nmin_lines = 50\n\n[training]"))
    result = call("run", "--json")
    assert result.code == 1 and result.out == ""
    assert "round 1 failed in sampling" in result.err and "loopctl run" in result.err
    status = call("status", "--json")
    assert status.code == 3 and status.json["state"] == "failed"
    assert status.json["rounds"]["failed"] == 1
    assert status.json["last_error"]["stage"] == "sampling" and status.json["last_error"]["attempt"] == 1
    assert "left out of training" in call("round", "1").out
    assert call("rounds").code == 0


def test_a_full_disk(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "loop.db")

    monkeypatch.setattr("loop.daemon.service.run_round", full)
    result = call("run", "--rounds", "1")
    assert result.code == 1 and "No space left on device" in result.err and "make room and run it again" in result.err


def test_a_terminal_gets_a_moving_line(finished: Path) -> None:
    with on_a_terminal(finished, "run", "--rounds", "1") as (running, shown):
        screen = b"".join(shown)
        assert running.wait() == 0
    assert b"\x1b[" in screen and b"round 3 training: 16 completions" in screen and "▸ ones".encode() in screen


def test_a_round_that_was_begun_is_finished_whatever_the_goal(finished: Path, call: Loopctl) -> None:
    with ledger_of(finished) as ledger:
        ledger.begin_round(ledger.run().id)
    assert "continues round 3, sampling" in call("status").out
    assert call("run").code == 0
    assert call("rounds", "--json").json[2]["state"] in DECIDED
