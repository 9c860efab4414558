"""The thread that has each configured tracker brought up to date after a round.

Each tracker gets a process of its own (`loop.watching.tracker_process`), which reads the store and sends what the tracker
lacks. So a library that hangs or crashes is a line in the log, never in a round's way; and after a restart the next
process sends what is still missing.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loop.config.machine import Watching
from loop.system.guarded import run_guarded
from loop.system.ourselves import environment
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
    return [
        sys.executable,
        "-P",
        "-m",
        "loop.watching.tracker_process",
        name,
        str(run_dir),
        project,
        *(["--anew"] if anew else []),
    ]


class TrackerThread:
    """Brings one tracker after another up to date, whenever a round has ended since the last time.

    `say(level, text)` is called from this thread for what goes wrong. `clock` gives seconds.
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

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        """See `loop.daemon.onlooker.Onlookers`."""
        if decision:
            self.look()

    def look(self) -> None:
        """Notice that a round may have ended. Returns at once, from any thread."""
        with self._news:
            self._behind = True
            self._news.notify()

    def close(self, timeout_s: float = END_S) -> None:
        """Give the process under way that long; the next start sends the rest. Safe to repeat."""
        with self._news:
            self._closing = True
            self._give_up_at = min(self._give_up_at, self.clock() + timeout_s)
            self._news.notify()
        self._thread.join()  # bounded: the thread gives up whatever it waits for by then

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
        log = self.run_dir / "logs" / f"tracker-{name}.log"  # written anew each time
        log.parent.mkdir(parents=True, exist_ok=True)
        deadline = self.clock() + TIMEOUT_S
        with log.open("wb") as stderr:
            code = run_guarded(
                tracking_command(name, self.run_dir, self.project),
                lambda: self.clock() >= min(deadline, self._give_up_at),
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
    settings: Watching,
    name: str,
    run_dir: Path,
    say: Callable[[str, str], None],
    stopped: Callable[[], bool] = lambda: False,
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
