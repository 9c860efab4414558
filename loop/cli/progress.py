"""Shows live progress on standard error: one moving line on a terminal, plain lines in a pipe.

Both are listeners of `loop.daemon.onlooker.Onlookers`, so nothing that goes wrong here ends the run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.daemon.onlooker import Onlookers, StagePart
from loop.system.heartbeat import Beating
from loop.words import clock, duration, warn

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


QUIET_S = 30.0  # between two lines of progress in a pipe


class Plain:
    """Prints lines with the time of day, for pipes and log files."""

    def __init__(self) -> None:
        self._last_line = 0.0

    def note(self, text: str) -> None:
        self._last_line = time.monotonic()
        warn(f"{clock()} {text}")

    def begun(self, part: StagePart) -> None:
        self.note(part.name)

    def moved(self, part: StagePart) -> None:
        if time.monotonic() - self._last_line >= QUIET_S:
            left = f"{duration(part.left_s)} left" if part.left_s is not None else ""
            how_far = ", ".join(filter(None, [f"{part.done}/{part.total}", part.rate, left]))
            self.note(f"{part.name}: {how_far} after {duration(part.elapsed_s)}")

    def ended(self, part: StagePart) -> None:
        self.note(f"{part.name}: done in {duration(part.elapsed_s)}")


class Live:
    """Shows one moving line, and a line that stays as each part ends."""

    def __init__(self, progress: Progress) -> None:
        self.bar = progress
        self.hide, self.show = progress.stop, progress.start
        self._task: TaskID | None = None

    def begun(self, part: StagePart) -> None:
        self._task = self.bar.add_task(part.name, total=None, rate="")

    def moved(self, part: StagePart) -> None:
        if self._task is not None:
            self.bar.update(self._task, completed=part.done, total=part.total, rate=part.rate)

    def ended(self, part: StagePart) -> None:
        if self._task is not None:
            self.bar.remove_task(self._task)
            self._task = None
        speed = f"  {part.rate}" if part.rate and part.done == part.total else ""
        self.note(f"{part.name}  {duration(part.elapsed_s)}{speed}", "dim")

    def note(self, text: str, style: str = "yellow") -> None:
        self.bar.console.print(text, style=style)


@contextlib.contextmanager
def onlookers(run_dir: Path, check: Callable[[], None] = lambda: None) -> Iterator[Onlookers]:
    """Keep the heartbeat of a run, and show the progress that suits standard error."""
    if not sys.stderr.isatty():
        yield Onlookers(Beating(run_dir), Plain(), check=check)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with Progress(*columns, console=console, refresh_per_second=2, transient=True, redirect_stdout=False) as bar:
        yield Onlookers(Beating(run_dir), Live(bar), check=check)
