"""Who looks on while rounds run: keeps the heartbeat, follows the stages and their parts, shows them through a face."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from loop.words import safe

if TYPE_CHECKING:
    from loop.system.heartbeat import Beating

UNITS = {"sampling": "completions", "evaluating": "completions", "training": "steps", "grading": "solutions"}


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
