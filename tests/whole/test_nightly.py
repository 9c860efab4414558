"""tests/nightly.py on scripted parts: what it counts, that it continues, and that a part which hangs ends with its children."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import nightly
from tests.nightly import Row, run

NO_LIMIT_S = float("inf")


@pytest.fixture(autouse=True)
def on_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nightly, "machine", lambda: "2 cores")


def python(program: str) -> str:
    return shlex.join([sys.executable, "-c", program])


@pytest.mark.parametrize(
    ("command", "counts", "note", "log"),
    [
        (python("print('figures')"), (1, 0), "", "figures\n"),
        (python("raise SystemExit('no')"), (0, 1), "exit code 1", "no\n"),
        ("/no-such-program", (0, 1), "cannot be started: [Errno 2] No such file or directory: '/no-such-program'", ""),
    ],
    ids=["good", "bad", "missing"],
)
def test_by_the_exit_code(command: str, counts: tuple[int, int], note: str, log: str, tmp_path: Path) -> None:
    row = run("part", command, tmp_path, NO_LIMIT_S)
    assert ((row.passed, row.failed), row.note, (tmp_path / "part.log").read_text()) == (counts, note, log)


def is_there(pid: int) -> bool:
    """Whether it runs. One that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# Tells its process id and waits.
CHILD = "import os, sys, time; open(sys.argv[1] + '.new', 'w').write(str(os.getpid())); os.rename(sys.argv[1] + '.new', sys.argv[1]); time.sleep(3600)"


@pytest.mark.parametrize("hangs", [True, False])
def test_a_child_in_a_session_of_its_own_ends_with_its_part(hangs: bool, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    child = [sys.executable, "-c", f"import os; os.setsid(); {CHILD}", str(told)]
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

    def interrupt() -> float:
        if told.exists():
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        run("part", f"{python(CHILD)} {told}", tmp_path, NO_LIMIT_S, interrupt)
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
    command = f"{sys.executable} -m pytest -p no:cacheprovider --junitxml {{results}} -c /dev/null {tmp_path}"
    cases = {
        "": (2, 2, "1 skipped"),
        "/nothing-here": (0, 1, "exit code 4"),  # not the results of before
        " -k skipped": (0, 1, "no test ran; 1 skipped"),
    }
    for more, expected in cases.items():
        row = run("tests", command + more, tmp_path, NO_LIMIT_S)
        assert (row.passed, row.failed, row.note) == expected


def test_it_goes_on_and_ends_with_a_table(tmp_path: Path) -> None:
    parts = [("bad", python("raise SystemExit(3)")), ("good", python("pass"))]
    rows = nightly.run_all(parts, tmp_path, NO_LIMIT_S)
    assert [(row.name, row.passed, row.failed) for row in rows] == [("bad", 0, 1), ("good", 1, 0)]
    written = (tmp_path / "table.md").read_text()
    assert written.startswith(time.strftime("%Y-")) and ", 2 cores\n\n| what |" in written
    assert "| bad | 0 | 1 | 0.0 | exit code 3 |" in written and "| all | 1 | 1 |" in written
    assert nightly.plain([Row("a", 10, 0, 60.0)]).splitlines()[1].split() == ["a", "10", "0", "1.0"]


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    other = python(f"raise SystemExit({code})")
    parts = (("setup", python("pass")), ("other", other, "nothing"), ("left-out", "nothing"))
    monkeypatch.setattr(nightly, "PARTS", [nightly.Part(*part) for part in parts])
    monkeypatch.setattr(nightly, "PLACE", tmp_path)
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
