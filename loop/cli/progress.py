"""Live progress on standard error: one moving line on a terminal, plain lines in a pipe.

Both are a `loop.run.session.Watch`. Nothing that goes wrong here (a closed terminal, a full disk) ends the run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from loop.words import clock, duration, safe

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from loop.system.heartbeat import Beating

UNITS = {"sampling": "completions", "evaluating": "completions", "training": "steps", "grading": "solutions"}
QUIET_S = 30.0  # between two lines of progress in a pipe


@dataclass(slots=True)
class Part:
    """A stage, or a part of one, that is going on."""

    round: int
    stage: str
    what: str
    done: int = 0
    total: int | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """round 2 training: 35 completions"""
        where = f"round {self.round} " if self.round else ""
        return safe(f"{where}{self.stage}: {self.what}")

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> str:
        """1.2 completions/s; nothing before anything is done."""
        unit = UNITS.get(self.stage)
        if not unit or not self.done or self.elapsed_s <= 0:
            return ""
        speed = self.done / self.elapsed_s
        return f"{speed:.3g} {unit}/s" if speed < 100 else f"{speed:,.0f} {unit}/s"

    @property
    def left_s(self) -> float | None:
        """The time left if it goes on like this."""
        if not self.done or not self.total:
            return None
        return self.elapsed_s / self.done * (self.total - self.done)


class Face(Protocol):
    """How parts are shown."""

    def begun(self, part: Part) -> None: ...
    def moved(self, part: Part) -> None: ...
    def ended(self, part: Part) -> None: ...
    def said(self, text: str) -> None: ...
    def hidden(self) -> AbstractContextManager[None]:
        """Within the block nothing moves, so that others can print."""
        ...


class Onlooker:
    """The watch of `loopctl run` and `loopd`: keeps the heartbeat, follows the parts, shows them through a face."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.beating: Beating | None = None
        self.part: Part | None = None
        self.on_pulse: Callable[[], None] = lambda: None

    def pulse(self) -> None:
        """See `loop.run.session.Watch`."""
        if self.beating:
            self.beating.beat()
        self.on_pulse()

    def stage(self, round: int, stage: str, what: str) -> None:
        """See `loop.run.session.Watch`."""
        self.end_part()
        self.part = Part(round, stage, what)
        if self.beating:
            self.beating.begin(round, stage, what)
        with contextlib.suppress(OSError):
            self.face.begun(self.part)

    def progress(self, done: int, total: int) -> None:
        """See `loop.run.session.Watch`."""
        if self.beating:
            self.beating.progress(done, total)
        if self.part:
            self.part.done, self.part.total = done, total
            with contextlib.suppress(OSError):
                self.face.moved(self.part)

    def note(self, text: str) -> None:
        """See `loop.run.session.Watch`."""
        with contextlib.suppress(OSError):
            self.face.said(safe(text))

    def end_part(self) -> None:
        """The part that was going on is over."""
        part, self.part = self.part, None
        if part:
            with contextlib.suppress(OSError):
                self.face.ended(part)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A block that prints by itself."""
        self.end_part()
        with self.face.hidden():
            yield


class Plain:
    """Lines with the time of day, for pipes and log files."""

    def __init__(self) -> None:
        self._last_line = 0.0

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        print(f"{clock()} {text}", file=sys.stderr, flush=True)

    def begun(self, part: Part) -> None:
        self._line(part.name)

    def moved(self, part: Part) -> None:
        if time.monotonic() - self._last_line >= QUIET_S:
            left = f"{duration(part.left_s)} left" if part.left_s is not None else ""
            known = ", ".join(filter(None, [f"{part.done}/{part.total}", part.rate, left]))
            self._line(f"{part.name}: {known} after {duration(part.elapsed_s)}")

    def ended(self, part: Part) -> None:
        self._line(f"{part.name}: done in {duration(part.elapsed_s)}")

    def said(self, text: str) -> None:
        self._line(text)

    def hidden(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


class Live:
    """One moving line, and a line that stays as each part ends."""

    def __init__(self, progress: Progress) -> None:
        self.bar = progress
        self._task: TaskID | None = None

    def begun(self, part: Part) -> None:
        self._task = self.bar.add_task(part.name, total=None, rate="")

    def moved(self, part: Part) -> None:
        if self._task is not None:
            self.bar.update(self._task, completed=part.done, total=part.total, rate=part.rate)

    def ended(self, part: Part) -> None:
        if self._task is not None:
            self.bar.remove_task(self._task)
            self._task = None
        speed = f"  {part.rate}" if part.rate and part.done == part.total else ""
        self._print(f"{part.name}  {duration(part.elapsed_s)}{speed}", "dim")

    def said(self, text: str) -> None:
        self._print(text, "yellow")

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        self.bar.stop()
        try:
            yield
        finally:
            self.bar.start()

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self.bar.console.print(Text(text, style=style))


@contextlib.contextmanager
def onlooker() -> Iterator[Onlooker]:
    """The watch that suits standard error."""
    if not sys.stderr.isatty():
        yield Onlooker(Plain())
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeftColumn

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeLeftColumn(),
    ]
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with Progress(*columns, console=console, refresh_per_second=2, transient=True, redirect_stdout=False) as bar:
        yield Onlooker(Live(bar))
