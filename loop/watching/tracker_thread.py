"""The thread that has each configured tracker brought up to date after a round.

Each tracker gets a process of its own (`loop.watching.tracker_process`), which reads the store and sends what the tracker
lacks. So a library that hangs or crashes is a line in the log, never in a round's way; and after a restart the next
process sends what is still missing.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loop.config.machine import Watching
from loop.system.guarded import run_guarded
from loop.system.ourselves import environment
from loop.watching.teller import Clock, Say, Teller
from loop.watching.trackers import missing, missing_in_words
from loop.words import one_line
from store.records import DecisionRow, Round

TIMEOUT_S = 300.0  # for one tracker to take all rounds that it lacks
END_S = 60.0  # for all trackers together, when the run ends by itself
STOP_S = 5.0  # the same, when somebody stops the run
ERROR_LENGTH = 300  # characters
LATER = "the next round sends what it lacks, or `loopctl track`"


def tracking_command(name: str, run_dir: Path, project: str, *, anew: bool = False) -> list[str]:
    """The command line that brings one tracker up to date. `anew`: even if a note says that it is."""
    options = ["--anew"] if anew else []
    return [sys.executable, "-P", "-m", "loop.watching.tracker_process", name, str(run_dir), project, *options]


class TrackerThread(Teller[bool]):
    """Brings one tracker after another up to date, whenever a round has ended since the last time."""

    def __init__(
        self, names: Sequence[str], run_dir: Path, project: str, say: Say, clock: Clock = time.monotonic
    ) -> None:
        self.names, self.run_dir, self.project = names, run_dir, project
        super().__init__("trackers", say, clock)

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        """See `loop.daemon.onlooker.Onlookers`."""
        if decision:
            self.look()

    def look(self) -> None:
        """Notice that a round may have ended. Returns at once, from any thread."""
        with self._news:
            if not self._waiting:
                self._waiting.append(True)
            self._news.notify()

    def listeners(self) -> Iterator[tuple[str, Callable[[bool], None]]]:
        """A process for each tracker."""
        for name in self.names:
            yield f"trackers: {name}", functools.partial(self._tell, name)

    def _tell(self, name: str, _: bool) -> None:
        log = self.run_dir / "logs" / f"tracker-{name}.log"  # written anew each time
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            code = run_guarded(
                tracking_command(name, self.run_dir, self.project),
                self.patience(TIMEOUT_S),
                environment=environment(),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                cwd=self.run_dir,
            )
        if code is None:
            self.say("warning", f"watching.trackers: {name} took too long and was ended; {LATER}")
        elif code:
            self.say("warning", f"watching.trackers: {name}: {last_line(log) or f'exit code {code}'}; {LATER}")


def last_line(log: Path) -> str:
    """The last line that a process wrote, printable and at most `ERROR_LENGTH` characters; empty if it wrote none."""
    with contextlib.suppress(OSError):
        lines = log.read_bytes()[-10_000:].decode(errors="replace").split("\n")
        return one_line(next((line for line in reversed(lines) if line.strip()), ""), ERROR_LENGTH)
    return ""


@contextlib.contextmanager
def trackers_of(
    settings: Watching, name: str, run_dir: Path, say: Say, stopped: Callable[[], bool] = lambda: False
) -> Iterator[TrackerThread | None]:
    """The thread of a configuration while the block lasts; None if it has no tracker. One line names what is missing.

    `name` is the run's. `stopped`: whether somebody waits for the end.
    """
    if words := missing_in_words(settings.trackers):
        say("warning", words)
    lacking = missing(settings.trackers)
    installed = [tracker for tracker in dict.fromkeys(settings.trackers) if tracker not in lacking]
    if not installed:
        yield None
        return
    thread = TrackerThread(installed, run_dir, settings.project or name, say)
    thread.look()  # whatever was not told before the last end
    patience_s = 0.0
    try:
        yield thread
        patience_s = STOP_S if stopped() else END_S
    finally:
        thread.close(patience_s)
