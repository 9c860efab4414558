"""Round after round: when the next one may begin, what stands in its way, and how it all ends.

`loopctl run` and `loopd` share it. It decides nothing about a round (round.py) and draws nothing (the watch does). Between
two rounds, and at every safe point within one, it looks at what people have asked for, the schedule and the disk. The
clock is an argument, so that tests wait for nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from loop.daemon import space
from loop.daemon.commands import BY_HAND
from loop.daemon.schedule import Schedule
from loop.errors import NoRoom
from loop.round import run_round
from loop.run.session import Session
from loop.system.disk import is_no_room
from loop.system.signals import Interrupted, Stop
from policies.patience import NO_ROOM
from policies.schedule import History, why_stop
from policies.schedule import Stop as StopPolicy
from store.errors import StoreError
from store.garbage import collect, plan_collection
from store.records import DecisionRow, Round, Run, RunState
from store.verify import write_high_water

TICK_S = 2.0  # seconds between two looks while waiting
LONG_WAIT_S = 5.0  # an engine is not kept up for longer than this
MOST_VANISHED = 5  # attempts in a row that ended without a word; then the run waits for a person


BY_ITSELF = "it goes on by itself when there is room; `loopctl gc --dry-run` shows what may go"
STOPPED = "`loopctl start` or `loopctl run` goes on where it was"
INTERRUPTED = "interrupted; `loopctl start` or `loopctl run` goes on where it was"


class LeaveRound(BaseException):
    """Raised at a safe point: what is going on is left as it is and goes on later. No failure."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why nothing is going on, and when it will if nobody does anything; `until` None: when the reason is gone."""

    state: RunState
    reason: str | None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended. `failed` is the round that did."""

    state: RunState
    reason: str | None
    failed: Round | None = None


class Surroundings(Protocol):
    """What a service tells, and how it waits."""

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        """What the run is doing, as often as it changes."""

    def beat(self) -> None:
        """The loop moves. Called all the time."""

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        """A round was kept, rolled back or failed."""

    def wait(self, seconds: float) -> None:
        """Return after that time, or earlier if something has happened."""


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def num_decided(run: Run) -> int:
    """How many rounds of the run were kept or rolled back."""
    return run.num_kept + run.num_rolled_back


class Service:
    """Rounds of one open session until something ends them."""

    def __init__(
        self,
        session: Session,
        stop: Stop,
        around: Surroundings,
        *,
        schedule: Schedule | None = None,
        stops: Sequence[StopPolicy] = (),
        more: int | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Without a schedule, as in the foreground, rounds follow each other at once, and a failed one or a lack of room
        ends it; with one, the run waits for a person or for room. `more`: so many rounds instead of those of the
        configuration.
        """
        self.session, self.stop, self.around = session, stop, around
        self.schedule, self.stops, self.clock = schedule, stops, clock
        self.goal = self._goal(more)
        self._said: tuple[RunState, str | None, datetime | None] | None = None
        self._no_room: tuple[str, float] | None = None  # why, and when (monotonic) it is tried again
        self._num_no_room = 0
        session.check_orders, session.wait = self.guide, self.pause

    # The loop

    def run(self) -> Ending:
        """Rounds until something ends them. The ledger says what the run is doing, and afterwards how it ended."""
        ending = Ending("failed", "ended by a mistake of its own")
        try:
            self.collect_garbage()  # the process before may have been killed after its last decision
            while True:
                found = self._ending()
                if found is not None:
                    ending = found
                    return ending
                try:
                    if (obstacle := self._obstacle()) is not None:
                        self._wait_for(obstacle)
                    elif (failed := self._one_round()) is not None:
                        ending = Ending("failed", f"round {failed.number}, {failed.stage}: {failed.error}", failed)
                        return ending
                except (NoRoom, StoreError, OSError) as error:
                    if not is_no_room(error):
                        raise
                    self._out_of_room(error)
        except Interrupted:
            ending = Ending("stopped", INTERRUPTED)
            raise
        except Exception as error:
            ending = Ending("failed", " ".join(str(error).split()) or type(error).__name__)
            raise
        finally:
            self._say(ending.state, ending.reason)

    def _one_round(self) -> Round | None:
        """Begin or go on with a round. The round if it failed and that ends it all."""
        session = self.session
        self._say("running")
        try:
            round = run_round(session)
        except LeaveRound:
            session.engines.close()
            return None
        self._num_no_room = 0
        return self._after(round)

    def _after(self, round: Round) -> Round | None:
        session, ledger = self.session, self.session.ledger
        with contextlib.suppress(OSError):
            write_high_water(ledger.db, session.loaded.run_dir)
        decision = ledger.decision(round.run_id, round.number)
        self.around.round_ended(round, decision)
        if round.state == "failed":
            if session.run.head_checkpoint != round.parent_checkpoint:
                return None  # the head fell back, or was moved by hand: the next round begins there
            if self.schedule is None:
                return round
            remedy = f"`loopctl round {round.number}` shows its attempts, `loopctl resume` tries it again"
            ledger.hold_run(
                round.run_id, "failure", f"round {round.number} failed in {round.stage}: {round.error}; {remedy}"
            )
            return None
        self.collect_garbage()
        return None

    def collect_garbage(self) -> None:
        """Let the checkpoints go that the configuration does not keep. What cannot be removed now can be later."""
        session, storage = self.session, self.session.loaded.config.storage
        with contextlib.suppress(StoreError, OSError):
            plan = plan_collection(
                session.ledger,
                session.run,
                session.loaded.run_dir,
                session.loaded.config.decide.suite,
                keep_last=storage.keep_last,
                max_total_bytes=storage.max_total_bytes,
            )
            if plan.doomed or plan.leftovers:
                collect(session.ledger, session.loaded.run_dir, plan)

    # What ends it, and what stands in the way

    def is_over(self) -> bool:
        """Whether there is nothing to do, as things stand now."""
        return self._ending() is not None

    def _goal(self, more: int | None) -> int | None:
        run, rounds = self.session.run, self.session.loaded.config.rounds
        goal = num_decided(run) + more if more is not None else rounds or None
        last = self.session.ledger.last_round(run.id)
        if goal is not None and last and last.state not in ("kept", "rolled_back") and self._goes_on(run, last):
            goal = max(goal, num_decided(run) + 1)
        return goal

    def _goes_on(self, run: Run, last: Round) -> bool:
        return last.state != "failed" or run.head_checkpoint == last.parent_checkpoint

    def _ending(self) -> Ending | None:
        if self.stop.asked:
            self.stop.check()
            return Ending("stopped", STOPPED)
        run = self.session.run
        if self.goal is not None and num_decided(run) >= self.goal:
            return Ending("idle", None)
        if self.schedule is not None and self.schedule.is_over(self.clock()):
            return Ending("idle", f"schedule.until ({self.schedule.settings.until}) has passed")
        if not self.stops or self.session.ledger.open_round(run.id):
            return None
        why = why_stop(self.stops, self._history(run))
        return Ending("idle", f"schedule.stop: {why}") if why else None

    def _history(self, run: Run) -> History:
        config = self.session.loaded.config
        decisions = self.session.ledger.last_verdicts(run.id, 1000)
        decides = (config.decide.suite, config.decide.split)
        rate = None
        for evaluation in self.session.corpus.evaluations(run.id, run.head_checkpoint):
            if (evaluation.suite_name, evaluation.split) == decides and evaluation.metrics:
                rate = evaluation.metrics["pass@1"]  # the last: that of a head, which its selection has not flattered
        num_hours = self.session.ledger.hours_of_work(run.id)
        return History(verdicts=tuple(decisions), head_pass_rate=rate, num_hours=num_hours)

    def _obstacle(self) -> Obstacle | None:
        session, now = self.session, self.clock()
        run = session.run
        control = session.ledger.control(run.id)
        waits = self._no_room is not None and time.monotonic() < self._no_room[1]  # nothing can be written meanwhile
        if control.wanted_head is not None and not waits:
            session.ledger.move_head(run.id, control.wanted_head, "by hand")
            run = session.run
        last = session.ledger.last_round(run.id)
        if control.held_by is None and last is not None and not waits:
            self._hold_if_it_keeps_vanishing(last)
            control = session.ledger.control(run.id)
        if control.held_by is not None:
            return Obstacle("paused", control.hold_reason or BY_HAND)
        if (closed := self._closed(now)) is not None:
            return closed
        under_way = last if last and last.state not in ("kept", "rolled_back") and self._goes_on(run, last) else None
        if self.schedule is not None and under_way is None:
            due = self.schedule.due_at(_parsed(last.started_at) if last else None, now)
            if due > now:
                return Obstacle("idle", None, due)
        if waits and self._no_room is not None:
            return Obstacle("paused", self._no_room[0])
        self._no_room = None
        short = space.shortage(session, under_way)
        if short is not None and self.schedule is None:
            raise NoRoom(short)
        return Obstacle("paused", f"{short}; {BY_ITSELF}") if short else None

    def _closed(self, now: datetime) -> Obstacle | None:
        if self.schedule is None or self.schedule.is_open(now):
            return None
        opens = self.schedule.opens_at(now)
        return Obstacle("paused", "outside schedule.windows; it goes on by itself", opens)

    def _hold_if_it_keeps_vanishing(self, round: Round) -> None:
        """A process that is killed again and again in one stage must not spin for weeks."""
        ledger = self.session.ledger
        if round.state != round.stage:
            return
        attempts = ledger.attempts(round.run_id, round.number, round.stage)
        tail = 0
        while tail < len(attempts) and attempts[-1 - tail].finished_at is None:
            tail += 1
        if tail and tail % MOST_VANISHED == 0 and not ledger.was_released_since_an_attempt(round.run_id):
            reason = (
                f"round {round.number}: the process vanished {tail} times in {round.stage} (killed? out of memory? power?); "
                "look into the system's log, lower engine.batch_size or training.micro_batch_size, then `loopctl resume`"
            )
            ledger.hold_run(round.run_id, "failure", reason)

    def _out_of_room(self, error: Exception) -> None:
        self.session.engines.close()
        if self.schedule is None:
            raise NoRoom(f"{error}; make room and run it again: it goes on where it was") from error
        self._num_no_room += 1
        wait_s = NO_ROOM.wait_s(self._num_no_room) or 0.0
        self._no_room = (f"no room: {error}; {BY_ITSELF}", time.monotonic() + wait_s)

    # At a safe point, and while it waits

    def guide(self, round: Round | None) -> None:
        """See `Session.check_orders`: leave the round if something else comes first."""
        self.around.beat()
        self.stop.check()
        if self.stop.asked:
            raise LeaveRound("stopped")
        control = self.session.ledger.control(self.session.run_id)
        if control.held_by is not None:
            raise LeaveRound(control.hold_reason or BY_HAND)
        if control.wanted_head is not None:
            raise LeaveRound("the head moves")
        if self.schedule is None:
            return
        now = self.clock()
        if self.schedule.is_over(now):
            raise LeaveRound("schedule.until has passed")
        if (closed := self._closed(now)) is not None:
            raise LeaveRound(closed.reason or "")
        if round is not None and (short := space.shortage(self.session, round)):
            raise LeaveRound(short)

    def pulse(self) -> None:
        """About once a second while an engine works: the loop moves, and an end at once is heard."""
        self.around.beat()
        self.stop.check()

    def pause(self, seconds: float) -> None:
        """Wait between two attempts, open to all that may happen meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.guide(None)
            self.around.wait(min(left, TICK_S))

    def _wait_for(self, obstacle: Obstacle) -> None:
        self._say(obstacle.state, obstacle.reason, obstacle.until)
        left = (obstacle.until - self.clock()) if obstacle.until else timedelta(days=1)
        if left.total_seconds() > LONG_WAIT_S:
            self.session.engines.close()
        self.around.beat()
        self.around.wait(max(0.01, min(left.total_seconds(), TICK_S)))

    def _say(self, state: RunState, reason: str | None = None, until: datetime | None = None) -> None:
        if (state, reason, until) == self._said:
            return
        self._said = (state, reason, until)
        self.around.state(state, reason, until)
        with contextlib.suppress(StoreError, OSError):  # what went wrong before matters more
            self.session.ledger.set_run_state(self.session.run_id, state, reason)


def _parsed(at: str) -> datetime:
    return datetime.fromisoformat(at)
