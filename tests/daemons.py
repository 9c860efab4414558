"""A daemon as a process, with loopctl beside it, for tests of what befalls it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rounds import KEEPING, environment, write_run

from store.db import open_database
from store.verify import verify_store

HANG_S = 60.0
LONGER = KEEPING.replace("per_round = 10", "per_round = 60").replace("batch_size = 8", "batch_size = 4")
ROOMY = LONGER + "\n[storage]\nmin_free_bytes = 0\n"
STEADY = ROOMY.replace("rounds = 2", "rounds = 0")


class Daemon:
    """A run directory, its daemon, and loopctl on it."""

    def __init__(self, directory: Path, config: str = ROOMY) -> None:
        self.config = write_run(directory, config)
        self.run_dir = directory / ".loop"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.variables: dict[str, str] = {}  # in the environment of the daemon, its workers and loopctl

    def spawn(self, step_s: float = 0.0, **variables: str) -> subprocess.Popen[bytes]:
        """A daemon whose batches and steps take so long, as a service manager would start it."""
        env = environment() | {"LOOP_FAKE_STEP_S": str(step_s)} | self.variables | variables
        with (self.config.parent / "journal").open("ab") as journal:
            command = [sys.executable, "-P", "-m", "loop.daemon", "--config", str(self.config)]
            process = subprocess.Popen(command, env=env, stderr=journal, cwd="/", start_new_session=True)
        self.processes.append(process)
        return process

    def ctl(self, *arguments: str, code: int | None = 0) -> str:
        """What loopctl printed."""
        done = self._loopctl(*arguments)
        assert code is None or done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def _loopctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "loop.cli.main", *arguments, "--config", str(self.config)]
        env = environment() | self.variables
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)

    def status(self) -> Any:
        return json.loads(self._loopctl("status", "--json").stdout)

    def says(self, wanted: str) -> str:
        """Wait until `loopctl status` says so to people; all that it says then."""
        deadline = time.monotonic() + HANG_S
        while True:
            said = self._loopctl("status").stdout
            if wanted in " ".join(said.split()):
                return said
            assert time.monotonic() < deadline, (wanted, said, self.journal()[-2000:])
            time.sleep(0.02)

    def until(self, holds: Callable[[Any], Any]) -> Any:
        """Wait until the status is so; that status."""
        deadline = time.monotonic() + HANG_S
        while True:
            status = self.status()
            if holds(status):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.05)

    def in_stage(self, stage: str) -> Any:
        return self.until(lambda s: s["round"] and s["round"]["stage"] == stage and s["round"]["done"])

    def workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            try:
                if "loop.worker" in (process.info["cmdline"] or []) and any(
                    str(self.run_dir) in file.path for file in process.open_files()
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def alone(self) -> bool:
        """Whether no worker is left, as soon as that is so."""
        deadline = time.monotonic() + 15
        while self.workers() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.workers()

    def finish(self) -> None:
        """Stop it, have it keep another round without delay, and find everything in order."""
        self.ctl("stop", "--now")
        process = self.spawn()
        before = decided(self.status())
        self.until(lambda s: decided(s) > before)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0 and self.findings() == []

    def findings(self) -> list[Any]:
        db = open_database(self.run_dir / "loop.db", read_only=True)
        try:
            return verify_store(db, self.run_dir).findings
        finally:
            db.close()

    def journal(self) -> str:
        return (self.config.parent / "journal").read_text()


def decided(status: Any) -> int:
    return int(status["rounds"]["kept"] + status["rounds"]["rolled_back"])


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    found = Daemon(tmp_path, getattr(request, "param", ROOMY))
    yield found
    for process in found.processes:
        if process.poll() is None:
            process.kill()
            process.wait()


steady = pytest.mark.parametrize("daemon", [STEADY], indirect=True)
