"""Round after round in the foreground: until the run has all its rounds, one fails, or someone says stop.

`loopctl run` and `loopd` share it. It decides nothing about a round (round.py) and draws nothing (the watch does).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from loop.round import run_round
from loop.session import Session
from store.records import Round, Run
from store.verify import write_high_water

INTERRUPTED = "interrupted; `loopctl run` goes on where it was"


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP. No failure: what was going on can be resumed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Stop:
    """Turns signals into an end. `at_once`: the first one raises Interrupted; else it waits for a safe point, where
    `check` raises, and the second one raises at once. One more ends the process on the spot: its workers die with it,
    and the store bears it.
    """

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self.signum: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.signum is not None:
            self.at_once = True
            raise Interrupted(self.signum)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum is not None and self.at_once:
            os._exit(128 + signum)
        first, self.signum = self.signum is None, signum
        if self.at_once or not first:
            self.at_once = True
            raise Interrupted(signum)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block SIGINT, SIGTERM and SIGHUP are ours; SIGHUP unless it is ignored (nohup)."""
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        before = {signum: signal.signal(signum, self._handle) for signum in (signal.SIGINT, signal.SIGTERM, *hangup)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def num_decided(run: Run) -> int:
    """How many rounds of the run were kept or rolled back."""
    return run.num_kept + run.num_rolled_back


def run_rounds(
    session: Session, more: int | None, check: Callable[[], None], after_round: Callable[[Round], None]
) -> Round | None:
    """Rounds until the run has `config.rounds` decided ones, or `more` of them; the last, None if all were done before.

    A round that was begun is finished in any case. A failed round ends it and is returned as such. `check` is called at every safe point. The ledger says what the run
    is doing, and afterwards how it ended.
    """
    ledger, run = session.ledger, session.run
    goal = num_decided(run) + more if more is not None else session.loaded.config.rounds
    if any(round.state not in ("kept", "rolled_back") for round in ledger.rounds(run.id)[-1:]):
        goal = max(goal, num_decided(run) + 1)
    last: Round | None = None
    try:
        while num_decided(session.run) < goal:
            ledger.set_run_state(run.id, "running")
            last = run_round(session, check)
            write_high_water(ledger.db, session.loaded.run_dir)
            after_round(last)
            if last.state == "failed":
                ledger.set_run_state(run.id, "failed", f"round {last.number}, {last.stage}: {last.error}")
                return last
            check()
        ledger.set_run_state(run.id, "idle", None)
    except KeyboardInterrupt:
        ledger.set_run_state(run.id, "stopped", INTERRUPTED)
        raise
    except Exception as error:
        ledger.set_run_state(run.id, "failed", " ".join(str(error).split()) or type(error).__name__)
        raise
    return last
