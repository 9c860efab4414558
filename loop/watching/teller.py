"""A thread that tells others one thing after another, so that nobody whom it tells can hold up a round."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from loop.system import trees

T = TypeVar("T")
Clock = Callable[[], float]  # gives seconds
Say = Callable[[str, str], None]  # called with a level and a line for the log


class Teller(Generic[T]):
    """Tells its listeners one thing after another until `close`. `say` is called for what goes wrong, from this thread too."""

    def __init__(self, name: str, say: Say, clock: Clock) -> None:
        self.say, self.clock = say, clock
        self._waiting: deque[T] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._give_up_at = float("inf")  # by the clock
        # The thread must live until `close`: a command gets its death signal when the thread that started it ends.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def listeners(self) -> Iterator[tuple[str, Callable[[T], None]]]:
        """Whom to tell: a name for the log, and a function that may raise anything."""
        raise NotImplementedError

    def close(self, timeout_s: float) -> None:
        """Tell what waits for at most that long; then end the command that runs and drop the rest.

        No process of a command is left when this returns. Safe to repeat.
        """
        with self._news:
            self._closing = True
            self._give_up_at = min(self._give_up_at, self.clock() + timeout_s)
            self._news.notify()
        self._thread.join(
            timeout_s + 3 * trees.END_TIMEOUT_S
        )  # a guard's end takes two of these, and what it left a third

    def patience(self, timeout_s: float) -> Callable[[], bool]:
        """Tells whether that time has passed since this call, or everything is given up at the end."""
        deadline = self.clock() + timeout_s
        return lambda: self.clock() >= min(deadline, self._give_up_at)

    def _work(self) -> None:
        while (told := self._next()) is not None:
            for name, tell in self.listeners():
                if self.clock() >= self._give_up_at:
                    return
                try:
                    tell(told)
                except Exception as error:  # the thread outlives whatever goes wrong with one of them
                    self.say("warning", f"watching.{name}: {reason(error)}")

    def _next(self) -> T | None:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closing)
            return self._waiting.popleft() if self._waiting and self.clock() < self._give_up_at else None


def reason(error: object) -> str:
    """What went wrong, without a library's own message, which may hold a URL."""
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
