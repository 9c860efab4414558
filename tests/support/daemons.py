"""A daemon as a process, with loopctl beside it, for tests of what befalls it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.runs import KEEPING, environment, findings, patient_loopctl, workers_of, write_run
from tests.support.stages import Stages
from tests.support.waiting import HANG_S, wait_until

LONGER = KEEPING.replace("per_round = 10", "per_round = 60").replace("batch_size = 8", "batch_size = 4")
ROOMY = LONGER + "\n[storage]\nmin_free_bytes = 0\n"
STEADY = ROOMY.replace("rounds = 2", "rounds = 0")


class Daemon:
    """A run directory, its daemon, and loopctl on it."""

    def __init__(self, directory: Path, config: str = ROOMY) -> None:
        self.config = write_run(directory, config)
        self.run_dir = directory / ".loop"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stages = Stages(directory)
        self.stand_still, self.go_on = self.stages.stand_still, self.stages.go_on
        self.variables = dict(self.stages.variables)  # in the environment of the daemon, its workers and loopctl

    def spawn(self, **variables: str) -> subprocess.Popen[bytes]:
        """A daemon, as a service manager would start it; the one before is gone."""
        self.stages.forget()
        env = environment() | self.variables | variables
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
        return patient_loopctl(*arguments, "--config", self.config, **self.variables)

    def status(self) -> Any:
        return json.loads(self._loopctl("status", "--json").stdout)

    def says(self, wanted: str) -> str:
        """Wait until `loopctl status` says so to people; all that it says then, with single spaces."""
        return str(self._look(lambda: " ".join(self._loopctl("status").stdout.split()), lambda s: wanted in s, wanted))

    def until(self, holds: Callable[[Any], Any]) -> Any:
        """Wait until the status is so; that status."""
        return self._look(self.status, holds)

    def _look(self, look: Callable[[], Any], holds: Callable[[Any], Any], *wanted: str) -> Any:
        seen: Any = None

        def is_so() -> Any:
            nonlocal seen
            seen = look()
            return holds(seen)

        wait_until(is_so, lambda: (*wanted, seen, self.journal()[-2000:]))
        return seen

    def in_stage(self, stage: str) -> Any:
        """Wait until that stage stands still and the status says so; that status."""
        self.stages.wait(stage)
        return self.until(lambda s: s["round"] and s["round"]["stage"] == stage and s["round"]["done"])

    def spawn_into(self, stage: str) -> subprocess.Popen[bytes]:
        """A daemon that stands still in that stage."""
        self.stand_still(stage)
        process = self.spawn()
        self.in_stage(stage)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL of the daemon alone; its workers are gone soon after."""
        process.kill()
        process.wait()
        assert self.alone(), "a worker outlived the daemon"

    def kill_all(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def workers(self) -> list[psutil.Process]:
        return workers_of(self.run_dir)

    def alone(self) -> bool:
        """True as soon as no worker is left."""
        return bool(wait_until(lambda: not self.workers(), lambda: f"left: {self.workers()}"))

    def finish(self) -> None:
        """Stop it, have it keep another round without delay, and find everything in order."""
        self.ctl("stop", "--now")
        process = self.spawn()
        before = decided(self.status())
        self.until(lambda s: decided(s) > before)
        self.end(process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Stop it as a service manager does, and find everything in order."""
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
        complaints = self.findings()
        assert complaints == [], complaints

    def findings(self) -> list[str]:
        return findings(self.run_dir)

    def journal(self) -> str:
        return (self.config.parent / "journal").read_text()


def decided(status: Any) -> int:
    return sum(status["rounds"][outcome] for outcome in ("kept", "carried", "rolled_back"))


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Its configuration may be given as a parameter, in which {tmp_path} stands for the test's directory."""
    daemon = Daemon(tmp_path, getattr(request, "param", ROOMY).replace("{tmp_path}", str(tmp_path)))
    yield daemon
    daemon.kill_all()


@contextlib.contextmanager
def on_a_disk_of_its_own(directory: Path, config: str, *options: str) -> Iterator[Daemon]:
    """A daemon whose run lies on a file system of its own, in `directory`/small; the test is skipped where none can be mounted."""
    place = directory / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    daemon = Daemon(directory / "run", f'run_dir = "{place}/.loop"\n{config}')
    daemon.run_dir = place / ".loop"
    try:
        yield daemon
    finally:
        daemon.kill_all()
        assert daemon.alone()
        subprocess.run(["umount", "-l", str(place)], check=False)


steady = pytest.mark.parametrize("daemon", [STEADY], indirect=True)
