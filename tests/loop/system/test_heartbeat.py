"""The heartbeat: one file of one size, written in place and read whole."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loop.system.heartbeat import HEARTBEAT, SIZE_BYTES, Beating, read_heartbeat
from tests.support.waiting import wait_until


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
    beat = read_heartbeat(tmp_path)
    assert beat and beat.reason and beat.reason.startswith("日本語" * 10)
    assert (beat.state, beat.next_due_at, beat.pid) == ("paused", 1e9, os.getpid())
    assert (beat.round, beat.stage, beat.part) == (0, "", ""), "nothing goes on while it is paused"


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
    beat = read_heartbeat(tmp_path / "not" / "there")
    assert beat and beat.state == "running", "the one before"


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
    beat = read_heartbeat(tmp_path)
    timer.join()
    assert beat is None or beat.round == 2
    beat = read_heartbeat(tmp_path)
    assert beat and beat.round == 2
    (tmp_path / HEARTBEAT).write_bytes(later.replace(b'"written"', b'"of_a_later_version": 1, "written"'))
    assert read_heartbeat(tmp_path), "what a later version adds is passed over"
    no_beat = b'{"write": 1, "written": 1, "pid": 3}'
    for damaged in (b"", b"\0" * SIZE_BYTES, b"[]", b"null", b"{}", no_beat, b"x" * 9000):
        (tmp_path / HEARTBEAT).write_bytes(damaged)
        assert read_heartbeat(tmp_path) is None
    Beating(tmp_path).begin(1, "sampling", "here")  # which cuts the longer file of before
    beat = read_heartbeat(tmp_path)
    assert beat and beat.part == "here" and beat.state == "running" and beat.reason is None


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
            beat = wait_until(lambda: read_heartbeat(tmp_path))  # None where writes came in between, again and again
            assert beat.stage == beat.part and beat.round == len(beat.part)
    finally:
        ended.set()
        writer.join()
