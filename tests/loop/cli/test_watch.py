"""`loopctl watch`: news in a pipe, lines as JSON, one picture on a terminal."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import alive, command, environment, finished
from tests.support.waiting import HANG_S

__all__ = ["finished"]


def _watching(directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command("watch", "--interval", "0.1", *arguments),
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until(process: "subprocess.Popen[str]", words: str) -> list[str]:
    assert process.stdout
    lines: list[str] = []
    for text in process.stdout:
        lines.append(text)
        if words in text:
            return lines
    raise AssertionError(f"it ended: {lines}")


def _interrupted(process: "subprocess.Popen[str]") -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=HANG_S)


def test_watch_in_a_pipe_prints_news_only(finished: Path) -> None:
    process = _watching(finished)
    _until(process, "next")
    time.sleep(0.5)
    with alive(finished) as beating:
        beating.say("idle", "waiting for it")
        lines = _until(process, "waiting for it")  # a report of the moment before may come first
        assert lines[0] == lines[-2] == "\n" and "idle   waiting for it" in lines[-1]
        _until(process, "next")
        time.sleep(0.5)  # for some looks that give nothing new
    lines = _until(process, "next")
    assert "waiting for it" not in "".join(lines), "it goes on when the process has ended"
    out, err = _interrupted(process)
    assert out == "" and err == "" and process.returncode == 3


def test_watch_as_json_gives_a_line_a_look(finished: Path) -> None:
    with alive(finished) as beating:
        beating.say("running")
        process = _watching(finished, "--json")
        assert process.stdout
        answers = [json.loads(process.stdout.readline()) for _ in range(3)]
        out, err = _interrupted(process)
    assert all(json.loads(text)["state"] == "running" for text in out.splitlines())
    assert [answer["state"] for answer in answers] == ["running"] * 3
    assert len({answer["as_of"] for answer in answers}) == 3
    assert err == "" and process.returncode == 0


def test_watch_on_a_terminal_draws_in_place(finished: Path) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    process = subprocess.Popen(
        command("watch", "--interval", "0.1"), cwd=finished, env=environment(TERM="xterm", COLUMNS="100"), stdout=child,
        stdin=child, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(child)
    said = b""
    while said.count(b"as of") < 3:
        said += os.read(parent, 1 << 16)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=HANG_S) == 3
    with contextlib.suppress(OSError):
        while more := os.read(parent, 1 << 16):
            said += more
    os.close(parent)
    assert process.stderr and process.stderr.read() == b""
    assert b"\x1b[1A" in said, "the cursor goes up again"
    assert said.rstrip().endswith(b"\x1b[?25h"), "and is seen at the end"


def test_watch_outlives_a_damaged_store(finished: Path) -> None:
    process = _watching(finished)
    _until(process, "next")
    database = (finished / ".loop" / "loop.db").read_bytes()
    for file in (finished / ".loop").glob("loop.db*"):
        file.unlink()
    (finished / ".loop" / "loop.db").write_text("this is no database" * 500)
    assert process.stderr and "not an SQLite database" in process.stderr.readline()
    (finished / ".loop" / "loop.db").write_bytes(database)
    _until(process, "next")
    _interrupted(process)
    assert process.returncode == 3


def test_watch_is_light() -> None:
    program = (
        "import sys, loop.cli.watch, loop.cli.logs; print([n for n in ('rich', 'sqlite_utils') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
