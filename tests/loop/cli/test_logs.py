"""`loopctl logs` shows the newest lines over rotated files, as words or JSON, and what comes after."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Loopctl, interrupt, one_line, start


def entry(number: int, **more: Any) -> str:
    """Make one line of the log."""
    at = f"2026-01-01T08:06:{number % 60:02}.123456Z"
    usual = {"time": at, "level": "info", "run": "small", "round": None, "stage": None, "message": f"line {number}"}
    return json.dumps(usual | more) + "\n"


@pytest.fixture
def log(finished: Path) -> Path:
    """Name a log that does not exist yet."""
    path = finished / ".loop" / "logs" / "loopd.log"
    path.parent.mkdir(exist_ok=True)
    for old in path.parent.glob("loopd.log*"):
        old.unlink()
    return path


def test_there_is_no_log(log: Path, call: Loopctl) -> None:
    one_line(call("logs"), 3, "loopctl start")


def test_a_line_in_words(log: Path, call: Loopctl) -> None:
    log.write_text(
        entry(1)
        + entry(2, level="warning", round=3, stage="training", message="it\x1b[2J failed\nagain")
        + entry(3, round=3, stage="training", message="training: 16 completions", duration_s=1.5)
        + entry(4, level="error", message=None, stage=["odd"], round={"odd": 1}, time=5)
        + "{}\n"
    )
    result = call("logs")
    assert result.code == 0 and result.err == ""
    assert result.out.splitlines() == [
        "2026-01-01 08:06:01  line 1",
        r"2026-01-01 08:06:02  warning  round 3, training: it\x1b[2J failed\nagain",
        "2026-01-01 08:06:03  round 3: training: 16 completions",
        "5  error  round {'odd': 1}, ['odd']: ",
        "-  ",
    ]


def test_damaged_lines_are_shown_as_they_are(log: Path, call: Loopctl) -> None:
    log.write_bytes(
        entry(1).encode() + b'{"time": "2026-\x1b[31m\xff\n\n[1]\n' + b"[" * 100_000 + b"\n" + entry(2).encode()
    )
    lines = call("logs").out.splitlines()
    assert lines[0].endswith("line 1") and lines[-1].endswith("line 2") and len(lines) == 5
    assert lines[1] == '{"time": "2026-\\x1b[31m�' and lines[2] == "[1]"
    answers = [json.loads(line) for line in call("logs", "--json").out.splitlines()]
    assert answers[0] == json.loads(entry(1)) and answers[2] == {"damaged": "[1]"}
    assert "\x1b" not in call("logs", "--json").out


def test_as_json_the_lines_are_as_they_were(log: Path, call: Loopctl) -> None:
    log.write_text("".join(entry(number, duration_s=number / 2) for number in range(5)))
    assert [json.loads(line) for line in call("logs", "--json", "-n", "2").out.splitlines()] == [
        json.loads(entry(number, duration_s=number / 2)) for number in (3, 4)
    ]


def test_the_newest_lines_over_all_files(log: Path, call: Loopctl) -> None:
    numbers = iter(range(30))
    for name, num in (("loopd.log.2", 10), ("loopd.log.1", 12), ("loopd.log", 8)):
        (log.parent / name).write_text("".join(entry(next(numbers)) for _ in range(num)))
    with log.open("a") as file:
        file.write('{"time": "this line is being written')
    for wanted in (0, 1, 7, 8, 9, 20, 21, 29, 30, 31):
        shown = [line.split()[-1] for line in call("logs", "-n", str(wanted)).out.splitlines()]
        assert shown == [str(number) for number in range(30)][max(0, 30 - wanted) :], wanted
    assert len(call("logs").out.splitlines()) == 20
    log.unlink()
    assert call("logs", "-n", "1").out.endswith("line 21\n"), "in the middle of a rotation"
    assert call("logs", "-n", "-1").code == 2


def _next(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().rstrip("\n").rpartition("line ")[2]


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_follow_across_rotation_and_truncation(finished: Path, log: Path) -> None:
    log.write_text(entry(1) + entry(2) + entry(3)[:20])
    process = start(finished, "logs", "-f", "-n", "1")
    assert _next(process) == "2"
    _append(log, entry(3)[20:])
    assert _next(process) == "3", "a line that was half there"
    _append(log, entry(4))
    log.rename(log.with_name("loopd.log.1"))
    _append(log.with_name("loopd.log.1"), entry(5))
    assert [_next(process), _next(process)] == ["4", "5"], "for a moment there is none"
    log.write_text(entry(6) + entry(60))
    assert [_next(process), _next(process)] == ["6", "60"]
    log.write_text(entry(7))
    assert _next(process) == "7", "emptied and begun again"
    _append(log, entry(8))
    assert _next(process) == "8"
    result = interrupt(process)
    assert (result.out, result.err, result.code) == ("", "", 0)


def test_follow_waits_for_a_log(finished: Path, log: Path) -> None:
    process = start(finished, "logs", "-f", "--json")
    assert process.stderr and "no log in" in process.stderr.readline()
    log.write_text(entry(1))
    assert process.stdout and json.loads(process.stdout.readline())["message"] == "line 1"
    assert interrupt(process).code == 0
