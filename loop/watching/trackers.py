"""Experiment trackers (trackio, Weights & Biases, MLflow): what is configured, and the process that tells each after a round.

Each is told by a process of its own (`loop.watching.tracking`), which reads the store and brings the tracker up to date with it. So a
library that hangs, crashes or is missing is a line in the log, never in a round's way; and after a restart the next one
sends what is not there yet. Nothing here imports a tracker.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loop.config.settings import Watching
from loop.system.guarded import end_guarded, start_guarded
from loop.system.ourselves import environment

PACKAGES = {"trackio": ("trackio",), "wandb": ("wandb",), "mlflow": ("mlflow-skinny", "mlflow")}
EXTRA = "pip install 'ssd-loop[trackers]'"
TIMEOUT_S = 300.0  # for one tracker to take all rounds that it lacks
END_S = 60.0  # for all of them, when the run ends by itself; when it is stopped, so long:
STOP_S = 5.0
LOOK_S = 0.1
ERROR_LENGTH = 300


def missing(names: Sequence[str]) -> list[str]:
    """Those whose library is not installed. By the installed packages: wandb leaves directories of its own name about."""
    return [name for name in dict.fromkeys(names) if not any(map(_is_installed, PACKAGES[name]))]


def missing_in_words(names: Sequence[str]) -> str | None:
    """What is missing and how to get it; None if nothing is."""
    lacking = missing(names)
    if not lacking:
        return None
    are = "is" if len(lacking) == 1 else "are"
    return f"watching.trackers: {', '.join(lacking)} {are} not installed, so nothing is sent there; {EXTRA}"


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def tracking_command(name: str, run_dir: Path, project: str, *, anew: bool = False) -> list[str]:
    """The command line that brings one tracker up to date. `anew`: also where it seems to be."""
    return [
        sys.executable,
        "-P",
        "-m",
        "loop.watching.tracking",
        name,
        str(run_dir),
        project,
        *(["--anew"] if anew else []),
    ]


class Trackers:
    """One thread that brings one tracker after another up to date, whenever a round has ended since.

    `say(level, text)` is called from it for what goes wrong. `clock` gives seconds.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_dir: Path,
        project: str,
        say: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names, self.run_dir, self.project, self.say, self.clock = names, run_dir, project, say, clock
        self._news = threading.Condition()
        self._behind = False
        self._closing = False
        self._give_up_at = float("inf")  # by the clock
        # It lives as long as the process unless it is closed: a child's death signal comes when this thread ends.
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """There may be something new in the store. Returns at once, from any thread."""
        with self._news:
            self._behind = True
            self._news.notify()

    def close(self, timeout_s: float = END_S) -> None:
        """Let what is being told be told for that long; the next start sends the rest. Safe to repeat."""
        with self._news:
            self._closing = True
            self._give_up_at = min(self._give_up_at, self.clock() + timeout_s)
            self._news.notify()
        self._thread.join()  # it ends by itself: whatever it waits for is given up by then

    def _work(self) -> None:
        while self._next():
            for name in self.names:
                if self.clock() >= self._give_up_at:
                    return
                try:
                    self._tell(name)
                except Exception as error:  # never a reason to stop telling
                    self.say("warning", f"watching.trackers: {name}: {type(error).__name__}")

    def _next(self) -> bool:
        with self._news:
            while not self._behind and not self._closing:
                self._news.wait()
            behind, self._behind = self._behind, False
            return behind

    def _tell(self, name: str) -> None:
        log = self.run_dir / "logs" / f"tracker-{name}.log"  # of the last time only
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            process, token = start_guarded(
                tracking_command(name, self.run_dir, self.project),
                environment=environment(),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                cwd=self.run_dir,
            )
        deadline = self.clock() + TIMEOUT_S
        try:
            while process.poll() is None and self.clock() < min(deadline, self._give_up_at):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
            in_time = process.poll() is not None
        finally:
            end_guarded(process, token)
        if not in_time:
            self.say("warning", f"watching.trackers: {name} took too long and was ended; {LATER}")
        elif process.returncode:
            self.say(
                "warning", f"watching.trackers: {name}: {last_line(log) or f'exit code {process.returncode}'}; {LATER}"
            )


LATER = "the next round sends what it lacks, or `loopctl track`"


def last_line(log: Path) -> str:
    """What a process said last, in one line."""
    with contextlib.suppress(OSError):
        lines = log.read_bytes()[-10_000:].decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        line = "".join(one for one in " ".join(said.split()) if one.isprintable())
        return line if len(line) <= ERROR_LENGTH else line[: ERROR_LENGTH - 3] + "..."
    return ""


@contextlib.contextmanager
def trackers_of(
    settings: Watching,
    name: str,
    run_dir: Path,
    say: Callable[[str, str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Trackers | None]:
    """The trackers of a configuration while the block lasts; None if it has none. What is missing is said once.

    `stopped`: whether somebody waits for the end.
    """
    if words := missing_in_words(settings.trackers):
        say("warning", words)
    there = [tracker for tracker in dict.fromkeys(settings.trackers) if tracker not in missing(settings.trackers)]
    if not there:
        yield None
        return
    trackers = Trackers(there, run_dir, settings.project or name, say)
    trackers.look()  # whatever was not told before the last end
    patience_s = 0.0
    try:
        yield trackers
        patience_s = STOP_S if stopped() else END_S
    finally:
        trackers.close(patience_s)
