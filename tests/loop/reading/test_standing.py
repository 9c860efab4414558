"""The heartbeat, and what `status` and `watch` make of it and of the ledger."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.cli.paper import cells, folded
from loop.reading import standing
from loop.system.heartbeat import HEARTBEAT, SIZE_BYTES, Beating, read_heartbeat
from loop.system.lock import locked
from store.db import open_database, transaction
from store.ledger import Ledger
from store.records import Round, Run
from tests.support.cli import Loopctl, call, command, environment, finished
from tests.support.waiting import HANG_S, wait_until

__all__ = ["call", "finished"]


# The heartbeat


def test_a_heartbeat_has_one_size_and_one_file(tmp_path: Path) -> None:
    beating = Beating(tmp_path)
    assert not list(tmp_path.iterdir()), "made by the first word, not by the constructor"
    beating.say("running")
    inode = (tmp_path / HEARTBEAT).stat().st_ino
    beating.begin(3, "training", "16 completions")
    beating.say("paused", "日本語" * 5000, 1e9)
    assert [path.name for path in tmp_path.iterdir()] == [HEARTBEAT]
    assert (tmp_path / HEARTBEAT).stat().st_size == SIZE_BYTES == 4096
    assert (tmp_path / HEARTBEAT).stat().st_ino == inode, "written in place"
    found = read_heartbeat(tmp_path)
    assert found and found.reason and found.reason.startswith("日本語" * 10)
    assert (found.state, found.next_due_at, found.pid) == ("paused", 1e9, os.getpid())
    assert (found.round, found.stage, found.part) == (0, "", ""), "nothing goes on while it is paused"


def test_a_longer_file_of_before_is_cut(tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT).write_text("x" * 9000)
    assert read_heartbeat(tmp_path) is None
    Beating(tmp_path).begin(1, "sampling", "here")
    found = read_heartbeat(tmp_path)
    assert found and found.part == "here" and found.state == "running" and found.reason is None


def test_news_are_written_at_once_and_beats_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("loop.system.heartbeat.time.monotonic", lambda: clock[0])
    beating = Beating(tmp_path)

    def written() -> Any:
        return json.loads((tmp_path / HEARTBEAT).read_text())

    beating.begin(1, "sampling", "a")
    number = written()["written"]
    beating.progress(1, 10)
    beating.beat()
    assert written()["written"] == number and written()["done"] is None
    clock[0] += 0.99
    beating.beat()
    assert written()["written"] == number
    clock[0] += 0.02
    beating.beat()
    assert written()["written"] == number + 1 and written()["done"] == 1
    beating.beat()
    beating.say("idle", None, 5.0)
    assert written()["written"] == number + 2 and written()["next_due_at"] == 5.0
    clock[0] += 2
    beating.progress(2, 10)
    assert written()["written"] == number + 3 and written()["state"] == "idle"


def test_durations_outlive_a_clock_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beating, right = Beating(tmp_path), time.time
    beating.begin(1, "training", "16 completions")
    for leap in (-7200, 7200):
        monkeypatch.setattr("loop.system.heartbeat.time.time", lambda leap=leap: right() + leap)
        beat = beating.now
        assert 0 <= beat.at - beat.part_started_at < 60 and 0 <= beat.at - beat.started_at < 60


def test_what_cannot_be_written_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beating = Beating(tmp_path / "not" / "there")
    beating.say("running")
    (tmp_path / "not" / "there").mkdir(parents=True)
    beating.say("running")
    assert read_heartbeat(tmp_path / "not" / "there")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loop.system.heartbeat.os.pwrite", full)
    beating.say("paused")
    found = read_heartbeat(tmp_path / "not" / "there")
    assert found and found.state == "running", "the one before"


def test_a_torn_heartbeat_is_none_and_is_read_again(tmp_path: Path) -> None:
    beating = Beating(tmp_path)
    beating.begin(1, "sampling", "a")
    whole = (tmp_path / HEARTBEAT).read_bytes()
    beating.begin(2, "sampling", "b")
    later = (tmp_path / HEARTBEAT).read_bytes()
    torn = later[: later.index(b'"round"')] + whole[whole.index(b'"round"') :]
    (tmp_path / HEARTBEAT).write_bytes(torn.rstrip().ljust(SIZE_BYTES))
    assert json.loads((tmp_path / HEARTBEAT).read_bytes())["round"] == 1, "it can be parsed, and is a lie"
    assert read_heartbeat(tmp_path) is None
    timer = threading.Timer(0.004, (tmp_path / HEARTBEAT).write_bytes, [later])
    timer.start()
    found = read_heartbeat(tmp_path)
    timer.join()
    assert found is None or found.round == 2
    found = read_heartbeat(tmp_path)
    assert found and found.round == 2
    (tmp_path / HEARTBEAT).write_bytes(later.replace(b'"written"', b'"of_a_later_version": 1, "written"'))
    assert read_heartbeat(tmp_path), "what a later version adds is passed over"
    for damaged in (b"", b"\0" * SIZE_BYTES, b"[]", b"null", b"{}", b'{"write": 1, "written": 1, "pid": 3}'):
        (tmp_path / HEARTBEAT).write_bytes(damaged)
        assert read_heartbeat(tmp_path) is None


def test_readers_see_whole_heartbeats(tmp_path: Path) -> None:
    beating = Beating(tmp_path)
    beating.begin(1, "a", "a")
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            for name in ("a", "b" * 500):
                beating.begin(len(name), name, name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2000):
            found = wait_until(lambda: read_heartbeat(tmp_path))  # None where writes came in between, again and again
            assert found.stage == found.part and found.round == len(found.part)
    finally:
        ended.set()
        writer.join()


# What status makes of a living process


@contextlib.contextmanager
def alive(directory: Path) -> Iterator[Beating]:
    """This process holds the run."""
    with locked(directory / ".loop"):
        yield Beating(directory / ".loop")


@contextlib.contextmanager
def ledger(directory: Path) -> Iterator[tuple[Ledger, Run]]:
    """The run's ledger, for writing."""
    db = open_database(directory / ".loop" / "loop.db")
    try:
        run = Ledger(db).run()
        assert run
        yield Ledger(db), run
    finally:
        db.close()


def line(text: str, label: str) -> str:
    """What stands beside a label."""
    found = re.search(rf"^  {label} +(.*(?:\n {{12}}.*)*)", text, re.MULTILINE)
    return re.sub(r"\n +", " ", found[1]) if found else ""


def set_rounds(directory: Path, number: int) -> None:
    path = directory / "loop.toml"
    path.write_text(path.read_text().replace("rounds = 2\n", f"rounds = {number}\n"))


def test_running(finished: Path, call: Loopctl) -> None:
    set_rounds(finished, 5)
    with alive(finished) as beating:
        assert call("status", "--json").json["reason"] == standing.STARTING
        beating.say("running")
        answer = call("status", "--json")
        assert answer.code == 0
        assert (answer.json["state"], answer.json["reason"], answer.json["paused_by"]) == ("running", None, None)
        assert 0 <= answer.json["heartbeat_age_s"] < HANG_S and 0 <= answer.json["uptime_s"] < HANG_S
        assert line(call("status").out, "next").startswith("at once (continuous) · 3 rounds to go        up ")
        set_rounds_to_none = (finished / "loop.toml").read_text().replace("rounds = 5\n", "rounds = 0\n")
        (finished / "loop.toml").write_text(set_rounds_to_none)
        assert line(call("status").out, "next").startswith("at once (continuous) · no end set")
        with (finished / "loop.toml").open("a") as file:
            file.write('[schedule]\nevery = "6h"\n')
        with ledger(finished) as (book, run):
            book.begin_round(run.id)
        assert line(call("status").out, "next").startswith("6h after the start of this round · no end set")


def test_the_last_round(finished: Path, call: Loopctl) -> None:
    set_rounds(finished, 3)
    with ledger(finished) as (book, run):
        round = book.begin_round(run.id)
        book.begin_attempt(round, "sampling", {})
    with alive(finished) as beating:
        beating.say("running")
        beating.begin(3, "sampling", "16 completions")
        beating._last_write = 0
        beating.progress(4, 16)
        said = call("status").out
        assert "round 3 · sampling: 16 completions 25%" in said.splitlines()[0]
        assert line(said, "next").startswith("nothing after this round")
        now = call("status", "--json").json["round"]
        assert (now["done"], now["total"], now["attempt"]) == (4, 16, 1) and now["elapsed_s"] >= 0


def test_idle_until_the_next_round_is_due(finished: Path, call: Loopctl) -> None:
    set_rounds(finished, 5)
    due = 1_900_000_000.0
    with alive(finished) as beating:
        beating.say("idle", None, due)
        said = call("status", "--json")
        assert said.code == 0, "it is at work, and only waits"
        assert said.json["state"] == "idle" and said.json["next_due"] == "2030-03-17T17:46:40.000000Z"
        assert said.json["paused_by"] is None
        assert re.match(r"2030-03-17 17:46 UTC, in [\d ]+ d \d+ h · 3 rounds to go", line(call("status").out, "next"))
        assert call("status", "--check").code == 0


@pytest.mark.parametrize(
    ("held", "reason", "due", "by", "words", "code"),
    [
        ("user", "paused by hand; `loopctl resume` goes on", None, "user", "`loopctl resume`", 0),
        (
            "failure",
            "round 3 failed in training: no; `loopctl resume` tries it again",
            None,
            "failure",
            "`loopctl resume` tries it again",
            1,
        ),
        (
            None,
            "outside schedule.windows; it goes on by itself",
            1_900_000_000.0,
            "schedule",
            "2030-03-17 17:46 UTC",
            0,
        ),
        (None, "disk short: 1 MB free", None, "disk", "by itself when there is room; `loopctl gc --dry-run`", 1),
    ],
)
def test_paused(
    finished: Path, call: Loopctl, held: Any, reason: str, due: float | None, by: str, words: str, code: int
) -> None:
    with ledger(finished) as (book, run):
        if held:
            book.hold_run(run.id, held, reason)
    with alive(finished) as beating:
        beating.say("paused", reason, due)
        said = call("status", "--json")
        assert said.code == 0 and said.json["state"] == "paused" and said.json["reason"] == reason
        assert said.json["paused_by"] == by
        text = call("status").out
        assert f"paused   {reason}" in text.splitlines()[0]
        assert words in line(text, "next")
        checked = call("status", "--check")
        assert checked.code == code
        assert (reason in checked.err) == bool(code)
        assert bool(said.json["needs_you"]) == bool(code)
        assert line(text, "needs you") == "", "the title says it"


def test_what_was_asked_shows_before_it_is_done(finished: Path, call: Loopctl) -> None:
    with alive(finished) as beating, ledger(finished) as (book, run):
        beating.say("running")
        book.hold_run(run.id, "user", "paused by hand")
        answer = call("status", "--json").json
        assert (answer["state"], answer["reason"]) == ("running", "pausing at the next safe point")
        book.release_run(run.id)
        with transaction(book.db):
            book._set_control(replace(book.control(run.id), wanted_head=0))
        assert call("status", "--json").json["reason"] == "the head moves to the base at the next safe point"


def test_a_process_that_hangs(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    with alive(finished) as beating:
        monkeypatch.setattr("loop.system.heartbeat.time.time", lambda: 1000.0)
        beating.say("running")
        monkeypatch.undo()
        monkeypatch.chdir(finished)
        said = call("status", "--check")
        assert said.code == 1 and f"stalled: no sign of life from process {os.getpid()} for " in said.err
        text = call("status")
        assert text.code == 0 and "stalled" in line(text.out, "needs you")


def test_a_disk_that_is_nearly_full(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("status", "--check").code == 3
    monkeypatch.setattr("loop.reading.standing._free_bytes", lambda _: 1_000_000)
    said = call("status", "--check")
    assert said.code == 1 and "disk low: 1,000,000 bytes free" in said.err
    assert "disk low" in line(call("status").out, "needs you")


# And without one


@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_process_that_was_killed(finished: Path, call: Loopctl, state: Any) -> None:
    with ledger(finished) as (book, run):
        book.set_run_state(run.id, state)
    answer = call("status", "--json")
    assert answer.code == 3
    assert (answer.json["state"], answer.json["reason"]) == ("stopped", standing.VANISHED)
    assert answer.json["pid"] is answer.json["heartbeat_age_s"] is answer.json["next_due"] is None


def test_a_process_that_was_killed_while_it_waited(finished: Path, call: Loopctl) -> None:
    Beating(finished / ".loop").say("idle", None, time.time() + 3600)
    with ledger(finished) as (book, run):
        book.set_run_state(run.id, "idle")
    assert call("status", "--json").json["state"] == "stopped"
    Beating(finished / ".loop").say("idle", None, None)
    answer = call("status", "--json").json
    assert (answer["state"], answer["next_due"]) == ("idle", None), "that one had nothing left to do"


def test_the_heartbeat_of_another_process_says_nothing(finished: Path, call: Loopctl) -> None:
    beating = Beating(finished / ".loop")
    beating.say("paused", "yesterday", 1.9e9)
    path = finished / ".loop" / HEARTBEAT
    path.write_bytes(path.read_bytes().replace(f'"pid": {os.getpid()}'.encode(), b'"pid": 1', 1))
    with locked(finished / ".loop"):
        answer = call("status", "--json").json
        assert (answer["state"], answer["reason"], answer["next_due"]) == ("running", standing.STARTING, None)
        assert answer["uptime_s"] is None


def test_what_to_do_where_nothing_runs(finished: Path, call: Loopctl) -> None:
    assert "all 2 rounds are done" in line(call("status").out, "next")
    set_rounds(finished, 4)
    assert line(call("status").out, "next") == "`loopctl start` or `loopctl run` (2 rounds to go)"
    with ledger(finished) as (book, run):
        book.set_run_state(run.id, "idle", "schedule.until (2020-01-01) has passed")
        assert "[schedule]" in line(call("status").out, "next")
        round = book.begin_round(run.id)
        assert line(call("status").out, "next") == "`loopctl start` or `loopctl run` goes on with round 3, sampling"
        book.fail_round(round, "no")
        book.hold_run(run.id, "failure", "round 3 failed in sampling: no")
        book.set_run_state(run.id, "stopped", "stopped")
    said = call("status", "--json").json
    assert said["reason"] == "round 3 failed in sampling: no" and said["paused_by"] == "failure"
    assert line(call("status").out, "next") == "`loopctl resume`, then `loopctl start`"
    assert call("status", "--check").code == 1


def test_an_error_is_shown_while_it_matters(finished: Path, call: Loopctl) -> None:
    set_rounds(finished, 4)
    with ledger(finished) as (book, run):
        round = book.begin_round(run.id)
        attempt = book.begin_attempt(round, "sampling", {})
        book.fail_attempt(round, "sampling", attempt, "the worker\x1b[2J died", "it is tried again")
        error = call("status", "--json").json["last_error"]
        assert error["error"].startswith("the worker") and error["current"] is True
        said = line(call("status").out, "error")
        assert said == r"round 3, sampling, attempt 1   the worker\x1b[2J died; it is tried again"
        attempt = book.begin_attempt(round, "sampling", {})
        assert line(call("status").out, "error"), "it is being tried again"
        round = book.finish_stage(round, "sampling", attempt, {}, next_state="training", selections=[])
        assert line(call("status").out, "error") == "", "overcome"
        assert call("status", "--json").json["last_error"]["current"] is False
        attempt = book.begin_attempt(round, "training", {})
        book.fail_attempt(round, "training", attempt, "out of luck", "the round fails")
        failed = book.fail_round(round, "out of luck")
        book.set_run_state(run.id, "failed", "round 3, training: no memory")
        assert "the round fails" in line(call("status").out, "error")
        book.set_run_state(run.id, "failed", f"round 3, training: {failed.error}")
        assert line(call("status").out, "error") == "", "the title says it"


# How much it reads


def _many_rounds(book: Ledger, run: Run, num: int) -> Round:
    """Failed rounds are the quickest to make."""
    with transaction(book.db):
        for _ in range(num):
            round = book.begin_round(run.id)
            attempt = book.begin_attempt(round, "sampling", {})
            book.fail_attempt(round, "sampling", attempt, "no", "the round fails")
            round = book.fail_round(round, "no")
    return round


def test_every_read_is_by_a_key(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger(finished) as (book, run):
        _many_rounds(book, run, 30)
    statements: list[tuple[str, Any]] = []
    monkeypatch.setattr("store.db.Reading.execute", _recorded(statements))
    standing.status(finished / ".loop", "small")
    assert len(statements) < 30
    db = open_database(finished / ".loop" / "loop.db", read_only=True)
    for sql, parameters in statements:
        for row in db.conn.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall():
            allowed = ("SCAN runs", "SCAN CONSTANT ROW", "SCAN schema_migrations")
            if re.match(r"SCAN events.*", row[3]) and "max(seq)" in sql:
                continue  # the newest by its key
            assert not row[3].startswith("SCAN ") or row[3] in allowed, (sql, row[3])
            assert "TEMP B-TREE" not in row[3], (sql, row[3])
    db.close()


def _recorded(statements: list[tuple[str, Any]]) -> Any:
    def execute(self: Any, sql: str, parameters: Any = ()) -> Any:
        statements.append((sql, parameters))
        return self.conn.execute(sql, parameters)

    return execute


def test_the_trend_ends_with_the_newest_round(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = standing.status(finished / ".loop", "small")
    assert [point["round"] for point in answer["trend"]] == [1, 2]
    assert answer["trend"][1]["pass@1"] == answer["last_decision"]["metrics"]["pass@1"]
    monkeypatch.setattr(standing, "MOST_POINTS", 1)
    assert [point["round"] for point in standing.status(finished / ".loop", "small")["trend"]] == [2]


def test_the_size_of_checkpoints_has_a_bound(finished: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    there = sum(p.stat().st_size for p in (finished / ".loop" / "checkpoints").rglob("*") if p.is_file())
    assert call("status", "--json").json["disk"]["checkpoints_bytes"] == there > 0
    monkeypatch.setattr(standing, "MOST_FILES", 2)
    assert call("status", "--json").json["disk"]["checkpoints_bytes"] is None
    assert "checkpoints -" in call("status").out


# How it looks


def test_lines_are_folded_at_spaces_and_within_long_words() -> None:
    assert list(folded("one two three", 7)) == ["one two", "three"]
    assert list(folded("one two three", 8)) == ["one two", "three"]
    assert list(folded("abcdefgh ij", 3)) == ["abc", "def", "gh", "ij"]
    assert list(folded("日本語日本語", 5)) == ["日本", "語日", "本語"]
    assert list(folded("", 5)) == []
    for text in ("a " * 200, "日" * 77 + " x", "word " * 50 + "y" * 300):
        for width in (20, 21, 33):
            lines = list(folded(text, width))
            assert all(cells(one) <= width for one in lines)
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_colours_only_on_a_terminal(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in call("status").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1msmall\x1b[0m" in call("status").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in call("status").out
    monkeypatch.setenv("COLUMNS", "50")
    said = call("status").out.splitlines()
    assert len(said) > 8 and all(len(one) <= 50 for one in said[1:])


# Watch


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
