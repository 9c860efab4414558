"""The heartbeat: one file of one size, written in place and read whole."""

import contextlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from loop.system.heartbeat import HEARTBEAT, SIZE_BYTES, Beating, read_heartbeat
from tests.support.waiting import Clock, wait_until


def test_a_heartbeat_has_one_size_and_one_file(tmp_path: Path) -> None:
    beating = Beating(tmp_path)
    assert not list(tmp_path.iterdir()), "made by the first word, not by the constructor"
    beating.say("running")
    inode = (tmp_path / HEARTBEAT).stat().st_ino
    beating.begin(3, "training", "16 completions")
    beating.say("paused", "日本語" * 5000, 1e9)
    assert [path.name for path in tmp_path.iterdir()] == [HEARTBEAT]
    assert (tmp_path / HEARTBEAT).stat().st_size == SIZE_BYTES
    assert (tmp_path / HEARTBEAT).stat().st_ino == inode, "written in place"
    beat = read_heartbeat(tmp_path)
    assert beat and beat.reason and beat.reason.startswith("日本語" * 10)
    assert (beat.state, beat.next_due_at, beat.pid) == ("paused", 1e9, os.getpid())
    assert (beat.round, beat.stage, beat.part) == (0, "", ""), "nothing is under way while it is paused"


def test_news_are_written_at_once_and_beats_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("loop.system.heartbeat.time.monotonic", clock)
    beating = Beating(tmp_path)
    beating.begin(1, "sampling", "a")

    def written(*keys: str) -> Any:
        content = json.loads((tmp_path / HEARTBEAT).read_text())
        return [content[key] for key in ("written", *keys)]

    (number,) = written()
    beating.progress(1, 10)
    beating.beat()
    assert written("done") == [number, None]
    for wait_s, expected in ((0.99, [number, None]), (0.02, [number + 1, 1]), (0.0, [number + 1, 1])):
        clock.now_s += wait_s
        beating.beat()
        assert written("done") == expected
    beating.say("idle", None, 5.0)
    assert written("next_due_at") == [number + 2, 5.0]
    clock.now_s += 2
    beating.progress(2, 10)
    assert written("state") == [number + 3, "idle"]


def test_nodes_are_told_while_the_run_runs_and_too_many_are_cut(tmp_path: Path) -> None:
    beating = Beating(tmp_path)

    def told(num: int) -> list[dict[str, Any]] | None:
        beating.nodes([{"name": f"node-{number}", "lost": "x" * 80} for number in range(num)])
        beating.begin(1, "sampling", "16 completions")
        beat = read_heartbeat(tmp_path)
        assert beat and beat.part == "16 completions"
        return beat.nodes

    assert [told(num) and len(told(num) or []) for num in (0, 2, 100)] == [None, 2, 100]
    assert 50 < len(told(10_000) or []) < 10_000
    beating.say("idle")
    beat = read_heartbeat(tmp_path)
    assert beat and beat.nodes is None


def test_durations_outlive_a_clock_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beating, right = Beating(tmp_path), time.time
    beating.begin(1, "training", "16 completions")
    for leap in (-7200, 7200):
        monkeypatch.setattr("loop.system.heartbeat.time.time", lambda leap=leap: right() + leap)
        beat = beating.now
        assert 0 <= beat.at - beat.part_started_at < 60 and 0 <= beat.at - beat.started_at < 60


def test_what_cannot_be_written_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "made" / "later"
    beating = Beating(directory)
    beating.say("running")
    directory.mkdir(parents=True)
    beating.say("running")
    assert read_heartbeat(directory)
    monkeypatch.setattr("loop.system.heartbeat.os.pwrite", Mock(side_effect=OSError(28, "No space left on device")))
    beating.say("paused")
    beat = read_heartbeat(directory)
    assert beat and beat.state == "running", "that of before"


def test_a_torn_heartbeat_is_none_and_is_read_again(tmp_path: Path) -> None:
    beating, file = Beating(tmp_path), tmp_path / HEARTBEAT
    beating.begin(1, "sampling", "a")
    whole = file.read_bytes()
    beating.begin(2, "sampling", "b")
    later = file.read_bytes()
    torn = later[: later.index(b'"round"')] + whole[whole.index(b'"round"') :]
    file.write_bytes(torn.rstrip().ljust(SIZE_BYTES))
    assert json.loads(file.read_bytes())["round"] == 1, "it can be parsed, and is a lie"
    assert read_heartbeat(tmp_path) is None
    timer = threading.Timer(0.004, file.write_bytes, [later])
    timer.start()
    beat = read_heartbeat(tmp_path)
    timer.join()
    assert beat is None or beat.round == 2
    beat = read_heartbeat(tmp_path)
    assert beat and beat.round == 2
    file.write_bytes(later.replace(b'"written"', b'"of_a_later_version": 1, "written"'))
    assert read_heartbeat(tmp_path), "what a later version adds is passed over"
    no_beat = b'{"write": 1, "written": 1, "pid": 3}'
    for damaged in (b"", b"\0" * SIZE_BYTES, b"[]", b"null", b"{}", no_beat, b"x" * 9000):
        file.write_bytes(damaged)
        assert read_heartbeat(tmp_path) is None
    Beating(tmp_path).begin(1, "sampling", "here")  # which cuts the longer file of before
    beat = read_heartbeat(tmp_path)
    assert beat and (beat.part, beat.state, beat.reason) == ("here", "running", None)


def test_readers_see_whole_heartbeats(tmp_path: Path) -> None:
    beating = Beating(tmp_path)
    beating.begin(1, "a", "a")
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            for name in ("a", "b" * 500):
                beating.begin(len(name), name, name)

    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        stack.callback(ended.set)
        pool.submit(write)
        for _ in range(2000):
            beat = wait_until(lambda: read_heartbeat(tmp_path))  # None where writes came in between, again and again
            assert beat.stage == beat.part and beat.round == len(beat.part)
