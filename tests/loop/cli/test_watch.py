"""`loopctl watch` prints news in a pipe, lines as JSON, and draws one picture on a terminal."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.cli import alive, finish, interrupt, on_a_terminal, start
from tests.support.waiting import HANG_S


def _until(process: "subprocess.Popen[str]", words: str) -> list[str]:
    assert process.stdout
    lines: list[str] = []
    for text in process.stdout:
        lines.append(text)
        if words in text:
            return lines
    raise AssertionError(f"it ended: {lines}")


def test_watch_in_a_pipe_prints_news_only(finished: Path) -> None:
    process = start(finished, "watch", "--interval", "0.1")
    _until(process, "next")
    time.sleep(0.5)
    with alive(finished) as beating:
        beating.say("idle", "waiting for it")
        lines = _until(process, "waiting for it")  # a report of the moment before may come first
        assert lines[0] == lines[-2] == "\n" and "idle   waiting for it" in lines[-1]
        _until(process, "next")
        time.sleep(0.5)  # for some looks that give nothing new
        beating.say("running")
        _until(process, "next")
        beating.nodes([{"name": "b", "engines": 0, "doing": "lost", "tokens_per_s": None, "lost": "it was killed"}])
        beating.begin(3, "sampling", "of no round that is open")  # written at once, and no news here
        lines = _until(process, "nodes")
        assert "b: lost: it was killed" in lines[-1]
        beating.say("idle", "waiting for it")
        _until(process, "next")
    lines = _until(process, "next")
    assert "waiting for it" not in "".join(lines), "watch continues when the process has ended"
    result = interrupt(process)
    assert (result.code, result.out, result.err) == (3, "", "")


def test_watch_as_json_gives_a_line_a_look(finished: Path) -> None:
    with alive(finished) as beating:
        beating.say("running")
        process = start(finished, "watch", "--interval", "0.1", "--json")
        assert process.stdout
        answers = [json.loads(process.stdout.readline()) for _ in range(3)]
        result = interrupt(process)
    assert all(json.loads(text)["state"] == "running" for text in result.out.splitlines())
    assert [answer["state"] for answer in answers] == ["running"] * 3
    assert len({answer["as_of"] for answer in answers}) == 3
    assert result.err == "" and result.code == 0


def test_watch_on_a_terminal_draws_in_place(finished: Path) -> None:
    picture = b""
    arguments = ("watch", "--interval", "0.1")
    with on_a_terminal(finished, *arguments, stderr=subprocess.PIPE, COLUMNS="100") as (process, shown):
        while picture.count(b"as of") < 3:
            picture += next(shown)
        process.send_signal(signal.SIGINT)
        picture += b"".join(shown)
        assert process.wait(timeout=HANG_S) == 3
        assert process.stderr and process.stderr.read() == b""
    assert b"\x1b[1A" in picture, "the cursor goes up again"
    assert picture.rstrip().endswith(b"\x1b[?25h"), "and is seen at the end"


def test_watch_outlives_a_damaged_store(finished: Path) -> None:
    process = start(finished, "watch", "--interval", "0.1")
    _until(process, "next")
    database = (finished / ".loop" / "loop.db").read_bytes()
    for file in (finished / ".loop").glob("loop.db*"):
        file.unlink()
    (finished / ".loop" / "loop.db").write_text("this is no database" * 500)
    assert process.stderr and "not an SQLite database; it was left alone; restore a backup" in process.stderr.readline()
    (finished / ".loop" / "loop.db").write_bytes(database)
    _until(process, "next")
    assert interrupt(process).code == 3


def test_watch_is_light(tmp_path: Path) -> None:
    program = (
        "import sys, loop.cli.watch, loop.cli.logs; print([n for n in ('rich', 'sqlite_utils') if n in sys.modules])"
    )
    assert finish([sys.executable, "-c", program], tmp_path).out.strip() == "[]"
