"""Processes in the background: what is said of their start, and that stopping waits for their end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from loop.errors import LoopError
from loop.system.lock import holder
from loop.system.ourselves import start_in_background, stop_holder
from tests.support.waiting import HANG_S, wait_until

HOLDS = """
import signal, sys
from pathlib import Path
from loop.system.lock import locked

with locked(Path(sys.argv[1])):
    signal.sigwait({signal.SIGTERM})
"""


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-c", program, *arguments]


@pytest.mark.parametrize(
    ("program", "words", "exit_code"),
    [
        ("print('first'); raise SystemExit('no such model')", "no such model", 1),
        ("raise SystemExit(78)", "it ended at once with exit code 78", 78),
        ("import os; os.kill(os.getpid(), 9)", "it ended at once with exit code -9", 1),
    ],
)
def test_a_failed_start_says_the_last_line(tmp_path: Path, program: str, words: str, exit_code: int) -> None:
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    log.write_text("of the time before\n")
    with pytest.raises(LoopError) as failed:
        start_in_background(python(program), log, "the daemon", lambda pid: False, HANG_S)
    assert str(failed.value) == f"the daemon did not start: {words}; see {log}"
    assert failed.value.exit_code == exit_code
    assert log.read_text().startswith("of the time before\n")


def test_a_holder_is_started_waited_for_and_stopped(tmp_path: Path) -> None:
    words = python(HOLDS, str(tmp_path))
    pid, how = start_in_background(words, tmp_path / "log", "it", lambda pid: holder(tmp_path) == pid, HANG_S)
    assert how == "up" and os.getsid(pid) == pid
    assert stop_holder(tmp_path) == pid and holder(tmp_path) is None
    assert stop_holder(tmp_path) is None


def test_a_process_that_prepares_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a process that does not stop: it is asked in the given way, and the caller reports meanwhile."""
    assert start_in_background(python(""), tmp_path / "log", "it", lambda pid: False, HANG_S)[1] == "done"
    monkeypatch.setattr("loop.system.ourselves.QUIET_S", 0.0)
    pid, how = start_in_background(python(HOLDS, str(tmp_path)), tmp_path / "log", "it", lambda pid: False, 0.0)
    assert how == "preparing"
    wait_until(lambda: holder(tmp_path) == pid)
    asked: list[int] = []

    def say() -> None:
        if len(asked) == 1:
            asked.append(pid)
            os.kill(pid, 15)

    assert stop_holder(tmp_path, asked.append, say) == pid
    assert asked == [pid, pid]
