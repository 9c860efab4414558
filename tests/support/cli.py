"""What the tests of loopctl share: a small run of the fake engine, made once, and ways of calling loopctl."""

import atexit
import contextlib
import functools
import json
import os
import shutil
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
from tests.support import ROOT
from tests.support.configurations import configuration

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


def write_configuration(directory: Path, config: str = CONFIG, num_problems: int = 12) -> Path:
    """loop.toml and its suite; the path of loop.toml."""
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
    """The command line of loopctl (or loopd) in a process of its own."""
    return [sys.executable, "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """For such a process: nothing that the terminal or the user has set plays a part."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOP_", "COLUMNS", "FORCE_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def process(directory: Path, *arguments: str, module: str = "loop.cli.main", **more: str) -> Said:
    """Run loopctl to its end in a process of its own."""
    done = subprocess.run(
        command(*arguments, module=module), cwd=directory, env=environment(**more), capture_output=True, text=True
    )
    return Said(done.returncode, done.stdout, done.stderr)


@functools.cache
def finished_run() -> tuple[Path, Said]:
    """A directory with two finished rounds, and what `loopctl run` said. Made once in a process; to be copied."""
    directory = Path(tempfile.mkdtemp(prefix="test-cli-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    write_configuration(directory)
    said = process(directory, "run")
    assert said.code == 0, said.err
    return directory, said


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory: a copy of the finished run, for this test alone."""
    directory = tmp_path / "finished"
    shutil.copytree(finished_run()[0], directory)
    monkeypatch.chdir(directory)
    monkeypatch.delenv("LOOP_CONFIG", raising=False)
    yield directory


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
    """This process holds the run."""
    with locked(directory / ".loop"):
        yield Beating(directory / ".loop")


@contextlib.contextmanager
def altered(directory: Path) -> Iterator[sqlite3.Connection]:
    """A run's store, open for changes that its triggers and foreign keys forbid."""
    conn = sqlite3.connect(directory / ".loop" / "loop.db", isolation_level=None)
    conn.execute("PRAGMA foreign_keys = OFF")
    for (trigger,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        conn.execute(f'DROP TRIGGER "{trigger}"')
    yield conn
    conn.close()
