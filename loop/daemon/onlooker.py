"""Who is told what happens while rounds run: the heartbeat first, then a list of listeners, in turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from loop.system.heartbeat import Beating
from loop.words import safe

if TYPE_CHECKING:
    from store.records import DecisionRow, Round, RunState

UNITS = {"sampling": "completions", "evaluating": "completions", "training": "steps", "grading": "solutions"}


@dataclass(slots=True)
class StagePart:
    """A stage, or a part of one, from its beginning to its end."""

    round: int
    stage: str
    what: str
    done: int = 0
    total: int | None = None
    started: float = field(default_factory=time.monotonic)
    first: tuple[int, float] | None = (
        None  # the first `done` that was reported, and when: some may have been done before
    )

    def move(self, done: int, total: int) -> None:
        """`done` of `total` units are done by now."""
        self.first = self.first or (done, time.monotonic())
        self.done, self.total = done, total

    @property
    def name(self) -> str:
        """round 2 training: 35 completions"""
        where = f"round {self.round} " if self.round else ""
        return safe(f"{where}{self.stage}: {self.what}")

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def per_s(self) -> float | None:
        """Units per second, without those that were done before the part began; None before that is known."""
        if self.first is None or self.done <= self.first[0]:
            return None
        return (self.done - self.first[0]) / max(1e-9, time.monotonic() - self.first[1])

    @property
    def rate(self) -> str:
        """1.2 completions/s; nothing before that is known."""
        unit, speed = UNITS.get(self.stage), self.per_s
        if not unit or speed is None:
            return ""
        return f"{speed:.3g} {unit}/s" if speed < 100 else f"{speed:,.0f} {unit}/s"

    @property
    def left_s(self) -> float | None:
        """The seconds that are left at the present speed; None before that is known."""
        speed = self.per_s
        return (self.total - self.done) / speed if self.total and speed else None


class Onlookers:
    """Keeps the heartbeat and passes on what happens; the watch of every open run (its methods: `loop.workers.up.Watch`).

    A listener has any of these methods, and is told nothing of the rest:
    `state(state, reason, until)`: what the run does from now on, and when that changes by itself.
    `begun(part)`, `moved(part)`, `ended(part)`: a part of a stage.
    `round_ended(round, decision)`: a round was decided, or has failed (no decision).
    `note(text)`: something that the user should know.
    `beat()`: the loop moves; called about once a second while an engine works.
    `hide()`, `show()`: others print between the two.
    An OSError of a listener (a closed terminal, a full disk) is dropped: no listener ends a run.
    """

    def __init__(self, beating: Beating, *listeners: object, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called after each beat; what it raises ends what is under way (see `Stop.check`)."""
        self.beating, self.listeners, self.check = beating, list(listeners), check
        self.part: StagePart | None = None

    def _tell(self, event: str, *what: object) -> None:
        for listener in self.listeners:
            if (method := getattr(listener, event, None)) is not None:
                with contextlib.suppress(OSError):
                    method(*what)

    def stage(self, round: int, stage: str, what: str) -> None:
        self.end_part()
        self.part = StagePart(round, stage, what)
        self.beating.begin(round, stage, what)
        self._tell("begun", self.part)

    def progress(self, done: int, total: int) -> None:
        self.beating.progress(done, total)
        if self.part:
            self.part.move(done, total)
            self._tell("moved", self.part)

    def note(self, text: str) -> None:
        self._tell("note", safe(text))

    def warn(self, text: str) -> None:
        self.beating.warn(safe(text))
        if text:
            self.note(text)

    def nodes(self, nodes: list[dict[str, Any]]) -> None:
        self.beating.nodes(nodes)

    def pulse(self) -> None:
        self.beating.beat()
        self._tell("beat")
        self.check()

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        self.beating.say(state, reason, until.timestamp() if until else None)
        self._tell("state", state, reason, until)

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        self.end_part()
        self._tell("round_ended", round, decision)

    def end_part(self) -> None:
        part, self.part = self.part, None
        if part:
            self._tell("ended", part)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A block that prints by itself."""
        self.end_part()
        self._tell("hide")
        try:
            yield
        finally:
            self._tell("show")
