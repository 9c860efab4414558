"""The tests of loopctl share a small run of the fake engine, made once, and ways of calling loopctl."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loop.cli.main import loopctl, run
from loop.system.heartbeat import Beating
from loop.system.lock import locked
from store.db import open_database
from store.ledger import Ledger
from tests.support import ROOT
from tests.support.configurations import configuration
from tests.support.waiting import HANG_S

CONFIG = configuration(
    prompts={"per_round": 16},
    training={"batch_size": 4, "micro_batch_size": 4},
    suites=[
        {"name": "greedy", "source": "ones.jsonl", "greedy": True},
        {
            "name": "ones",
            "source": "ones.jsonl",
            "temperature": 0.9,
            "top_p": 0.95,
            "num_samples": 2,
            "pass_at": [1, 2],
        },
    ],
    diagnosis=None,
    engine={"batch_size": None},
)


@dataclass
class Said:
    """What a call of loopctl did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Loopctl = Callable[..., Said]


def one_line(result: Said, code: int, *words: str) -> None:
    """Check that it ended with this code and one line on standard error, with all these words in this order."""
    assert result.code == code, result
    assert result.out == "" and result.err.count("\n") == 1 and result.err.isascii(), result
    place = 0
    for word in words:
        assert word in result.err[place:], (word, result.err)
        place = result.err.index(word, place) + len(word)


def write_configuration(directory: Path, config: str = CONFIG, num_problems: int = 12) -> Path:
    """Write loop.toml and its suite; return the path of loop.toml."""
    directory.mkdir(parents=True, exist_ok=True)
    problems = [
        {
            "task_id": f"ones/{number}",
            "text": f"Return one, version {number}.",
            "signature": f"def one_{number}():",
            "test_list": [f"assert one_{number}() == 1"],
            "difficulty": ["easy", "hard"][number % 2],
        }
        for number in range(num_problems)
    ]
    (directory / "ones.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    (directory / "loop.toml").write_text(config)
    return directory / "loop.toml"


def command(*arguments: str, module: str = "loop.cli.main") -> list[str]:
    """Return the command line of loopctl (or loopd) in a process of its own."""
    return [sys.executable, "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of such a process, without what the terminal or the user has set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOP_", "COLUMNS", "FORCE_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def process(directory: Path, *arguments: str, module: str = "loop.cli.main", **more: str) -> Said:
    """Run loopctl to its end in a process of its own."""
    return finish(command(*arguments, module=module), directory, env=environment(**more))


def finish(words: list[str], directory: Path, **settings: Any) -> Said:
    """Run a command line to its end; `settings` as subprocess takes them."""
    settings = {"env": environment(), **settings}
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, **settings)
    return Said(done.returncode, done.stdout, done.stderr)


def start(directory: Path, *arguments: str, module: str = "loop.cli.main", **more: str) -> subprocess.Popen[str]:
    """Start loopctl in a process of its own; the caller reads what it prints."""
    words, pipe = command(*arguments, module=module), subprocess.PIPE
    return subprocess.Popen(words, cwd=directory, env=environment(**more), stdout=pipe, stderr=pipe, text=True)


def interrupt(running: subprocess.Popen[str]) -> Said:
    """Press Ctrl-C, and wait for the end."""
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=HANG_S)
    return Said(running.returncode, out, err)


@contextlib.contextmanager
def on_a_terminal(
    directory: Path, *arguments: str, stderr: int | None = None, **more: str
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[bytes]]]:
    """Start loopctl on a terminal of its own, with standard error unless `stderr` names another place: the process, and what
    the terminal shows.
    """
    ours, theirs = pty.openpty()
    stderr, env = theirs if stderr is None else stderr, environment(TERM="xterm", **more)
    running = subprocess.Popen(command(*arguments), cwd=directory, env=env, stdin=theirs, stdout=theirs, stderr=stderr)
    os.close(theirs)

    def shown() -> Iterator[bytes]:
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(ours, 1 << 16):
                yield chunk

    yield running, shown()
    os.close(ours)


@functools.cache
def finished_run(config: str = CONFIG) -> tuple[Path, Said]:
    """Make a run and finish its rounds, once; return its directory, for copies, and what `loopctl run` printed."""
    directory = Path(tempfile.mkdtemp(prefix="test-cli-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    write_configuration(directory, config)
    result = process(directory, "run")
    assert result.code == 0, result.err
    return directory, result


def standing_in(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this the current directory, and let no variable name another configuration."""
    monkeypatch.chdir(directory)
    monkeypatch.delenv("LOOP_CONFIG", raising=False)
    return directory


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a copy of the finished run, for this test alone, the current directory."""
    return standing_in(shutil.copytree(finished_run()[0], tmp_path / "finished"), monkeypatch)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a directory with a good configuration and no run the current one."""
    return standing_in(write_configuration(tmp_path).parent, monkeypatch)


def change(directory: Path, *changes: tuple[str, str]) -> None:
    """Replace text in loop.toml."""
    path = directory / "loop.toml"
    text = path.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Loopctl:
    """Calls loopctl in this process."""

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        code = run(list(arguments), loopctl, "loopctl")
        return Said(code, *capsys.readouterr())

    return call


@contextlib.contextmanager
def alive(directory: Path) -> Iterator[Beating]:
    """Hold the run in this process."""
    with locked(directory / ".loop"):
        yield Beating(directory / ".loop")


@contextlib.contextmanager
def ledger_of(directory: Path) -> Iterator[Ledger]:
    """Open the ledger of a run's store for writing."""
    with contextlib.closing(open_database(directory / ".loop" / "loop.db")) as db:
        yield Ledger(db)


@contextlib.contextmanager
def altered(directory: Path) -> Iterator[sqlite3.Connection]:
    """Open a run's store for changes that its triggers and foreign keys forbid."""
    with contextlib.closing(sqlite3.connect(directory / ".loop" / "loop.db", isolation_level=None)) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        for (trigger,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            conn.execute(f'DROP TRIGGER "{trigger}"')
        yield conn
