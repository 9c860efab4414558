"""How signals end a process: the first at a safe point, the second at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP. No failure: the stage that was interrupted can be resumed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Stop:
    """Turns signals into an end. `at_once`: the first signal raises Interrupted; else it waits for a safe point, at most
    `grace_s` seconds, and the second one raises at once. One more ends the process on the spot: its workers die with it,
    and the store survives that.
    """

    def __init__(self, *, at_once: bool, grace_s: float | None = None, wake: Callable[[], None] = lambda: None) -> None:
        self.at_once, self.grace_s, self.wake = at_once, grace_s, wake
        self.asked = False
        self._now = False
        self._signum = signal.SIGTERM
        self._deadline: float | None = None  # monotonic; set by the first signal
        self._raised = False

    @property
    def signum(self) -> int | None:
        """The last signal; None while there was none."""
        return self._signum if self._deadline is not None else None

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the last signal has ended."""
        return 128 + self._signum

    def ask(self) -> None:
        """Ask for an end at the next safe point, however long that takes. From any thread."""
        self.asked = True
        self.wake()

    def ask_now(self) -> None:
        """Ask for an end at once: Interrupted is raised in the main thread. From any thread."""
        self._now = True
        os.kill(os.getpid(), signal.SIGTERM)

    def check(self) -> None:
        """Raise Interrupted if an end at once was asked for, or the grace is over.

        It is raised again where it was raised before and got lost: code that stores its rows first may have ended otherwise.
        """
        if self._now or self._raised or (self._deadline is not None and time.monotonic() > self._deadline):
            self._raise()

    def _raise(self) -> None:
        self._raised = True
        raise Interrupted(self._signum)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self._raised:
            os._exit(128 + signum)
        first, self.asked, self._signum = self._deadline is None, True, signal.Signals(signum)
        self._deadline = time.monotonic() + (self.grace_s if self.grace_s is not None else float("inf"))
        self.wake()
        if self.at_once or self._now or not first:
            self._raise()

    @contextlib.contextmanager
    def listening(self, *, to_the_end: bool = False) -> Iterator[None]:
        """Handle SIGINT and SIGTERM within the block, and SIGHUP unless it is ignored (nohup).

        `to_the_end`: the process ends with the block, and a later signal can no longer change its exit code.
        """
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        before = {signum: signal.signal(signum, self._handle) for signum in (signal.SIGINT, signal.SIGTERM, *hangup)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_IGN if to_the_end else handler)
