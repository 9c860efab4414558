"""tests/nightly.py on scripted parts: what it counts, that it goes on, and that a part which hangs is gone with its children."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from tests import nightly
from tests.nightly import Row, run

NO_LIMIT_S = float("inf")


def python(program: str) -> str:
    return shlex.join([sys.executable, "-c", program])


def test_by_the_exit_code(tmp_path: Path) -> None:
    row = run("good", python("print('figures')"), tmp_path, NO_LIMIT_S)
    assert (row.passed, row.failed, row.note) == (1, 0, "")
    assert (tmp_path / "good.log").read_text() == "figures\n"
    row = run("bad", python("raise SystemExit('no')"), tmp_path, NO_LIMIT_S)
    assert (row.passed, row.failed, row.note) == (0, 1, "exit code 1")
    assert (tmp_path / "bad.log").read_text() == "no\n"


def test_what_cannot_be_started(tmp_path: Path) -> None:
    row = run("missing", str(tmp_path / "no-such-program"), tmp_path, NO_LIMIT_S)
    assert (row.passed, row.failed) == (0, 1) and "No such file" in row.note


def is_there(pid: int) -> bool:
    """Whether it runs. One that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


CHILD = "import os, sys, time; os.setsid(); open(sys.argv[1], 'w').write(str(os.getpid())); os.rename(sys.argv[1], sys.argv[2]); time.sleep(3600)"


@pytest.mark.parametrize("hangs", [True, False])
def test_a_child_in_a_session_of_its_own_ends_with_its_part(hangs: bool, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    child = [sys.executable, "-c", CHILD, str(tmp_path / "partial"), str(told)]
    wait = "while True: time.sleep(1)" if hangs else f"while not os.path.exists({str(told)!r}): time.sleep(0.01)"
    program = f"import os, subprocess, time\nchild = subprocess.Popen({child!r})\n{wait}"

    def clock() -> float:  # the limit passes when the child is there, however long that takes
        return 100.0 if told.exists() else 0.0

    row = run("part", python(program), tmp_path, 50.0 if hangs else NO_LIMIT_S, clock)
    assert (row.passed, row.failed, row.seconds) == ((0, 1, 100.0) if hangs else (1, 0, 100.0))
    assert row.note == ("ended after 0.8 min" if hangs else "left 1 processes behind, which were ended")
    assert not is_there(int(told.read_text()))


def test_an_interrupted_part_ends_too(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    program = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(3600)"

    def interrupt() -> float:
        if told.exists() and told.read_text():
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        run("part", python(program), tmp_path, NO_LIMIT_S, interrupt)
    assert not is_there(int(told.read_text()))


TESTS = """
import pytest
def test_good(): pass
def test_good_too(): pass
def test_bad(): assert False
@pytest.fixture
def broken(): raise OSError
def test_error(broken): pass
@pytest.mark.skip
def test_skipped(): pass
"""


def test_by_pytests_own_counts(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = (
        f"{shlex.quote(sys.executable)} -m pytest -p no:cacheprovider --junitxml {{results}} -c /dev/null {tmp_path}"
    )
    row = run("tests", command, tmp_path, NO_LIMIT_S)
    assert (row.passed, row.failed, row.note) == (2, 2, "1 skipped")
    row = run("tests", f"{command}/nothing-here", tmp_path, NO_LIMIT_S)  # not the results of before
    assert (row.passed, row.failed, row.note) == (0, 1, "exit code 4")
    row = run("tests", f"{command} -k skipped", tmp_path, NO_LIMIT_S)
    assert (row.passed, row.failed, row.note) == (0, 1, "no test ran; 1 skipped")


def test_it_goes_on_and_ends_with_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nightly, "machine", lambda: "2 cores")
    parts = [("bad", python("raise SystemExit(3)")), ("good", python("pass"))]
    rows = nightly.run_all(parts, tmp_path, NO_LIMIT_S)
    assert [(row.name, row.passed, row.failed) for row in rows] == [("bad", 0, 1), ("good", 1, 0)]
    written = (tmp_path / "table.md").read_text()
    assert written.startswith(time.strftime("%Y-")) and ", 2 cores\n\n| what |" in written
    assert "| bad | 0 | 1 | 0.0 | exit code 3 |" in written and "| all | 1 | 1 |" in written
    assert nightly.plain([Row("a", 10, 0, 60.0)]).splitlines()[1].split() == ["a", "10", "0", "1.0"]


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        nightly.Part("setup", python("pass")),
        nightly.Part("other", python(f"raise SystemExit({code})"), "nothing"),
    ]
    monkeypatch.setattr(nightly, "PARTS", (*parts, nightly.Part("left-out", "nothing")))
    monkeypatch.setattr(nightly, "PLACE", tmp_path)
    monkeypatch.setattr(nightly, "machine", lambda: "2 cores")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["nightly.py", "--only", "other"])
    with pytest.raises(SystemExit) as ended:
        nightly.main()
    assert ended.value.code == code
    assert "left-out" not in capsys.readouterr().out
    assert os.path.exists(tmp_path / "setup.log")


def test_every_bench_has_a_part() -> None:
    """But what measures nothing by itself, and the table, whose parts they are."""
    from tests.bench.test_benches import COMMANDS

    named = {part.name.removeprefix("bench-") for part in nightly.PARTS if part.name.startswith("bench-")}
    assert named == set(COMMANDS) | {"vllm"}
