"""Round after round: when the next one may begin, what stands in its way, and how the service ends.

`loopctl run` and `loopd` share it. It decides nothing about a round (round.py does) and draws nothing (the onlookers do).
Between two rounds, and at every safe point within one, it looks at what people have asked for, the schedule and the disk.
The clock is an argument, so that tests wait for nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from loop.daemon import space
from loop.daemon.commands import BY_HAND, planned_collection
from loop.daemon.onlooker import Onlookers
from loop.daemon.schedule import Schedule
from loop.errors import NoRoom
from loop.round import run_round
from loop.run.session import LeaveRound, Session
from loop.system.disk import is_no_room
from loop.system.signals import Interrupted, Stop
from policies.retries import NO_ROOM
from policies.stopping import MOST_VERDICTS, History, StopRule, why_stop
from store.errors import StoreError
from store.garbage import collect
from store.records import DECIDED, Round, Run, RunState
from store.verify import write_high_water

TICK_S = 2.0  # seconds between two looks while waiting
LONG_WAIT_S = 5.0  # the engines are closed before a wait that is longer than this
MOST_VANISHED = 5  # attempts in a row that ended with their process; then the run waits for a person

BY_ITSELF = "the run continues by itself when there is room; `loopctl gc --dry-run` shows what may go"
STOPPED = "`loopctl start` or `loopctl run` continues the run where it was left"
INTERRUPTED = f"interrupted; {STOPPED}"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why no round may begin, and the moment at which this ends by itself; None: when the reason is gone."""

    state: RunState
    reason: str | None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How the service ended. `failed` is the round whose failure ended it."""

    state: RunState
    reason: str | None
    failed: Round | None = None


class Service:
    """Rounds of one open session until something ends them."""

    def __init__(
        self,
        session: Session,
        stop: Stop,
        watch: Onlookers,
        wait: Callable[[float], object],
        *,
        schedule: Schedule | None = None,
        stops: Sequence[StopRule] = (),
        more: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """With a schedule the run waits for a person after a failed round, and for room on a full disk. Without one, as in the
        foreground, rounds follow each other at once, and either of the two ends the service. `wait` returns after that many
        seconds, or earlier if something has happened. `more`: the number of rounds, in place of the configuration's.
        """
        self.session, self.stop, self.watch, self.wait = session, stop, watch, wait
        self.schedule, self.stops, self.clock = schedule, stops, clock
        run = session.run
        self.goal = run.num_decided + more if more is not None else session.loaded.config.rounds or None
        if self.goal is not None and self._under_way(run, session.ledger.last_round(run.id)):
            self.goal = max(self.goal, run.num_decided + 1)
        session.goal = self.goal
        self._last_state: tuple[RunState, str | None, datetime | None] | None = None
        self._no_room: tuple[str, float] | None = None  # the reason, and the monotonic time of the next try
        self._num_no_room = 0
        self._short: str | None = None  # why a round does not begin for want of room, as it was first said
        session.check_orders, session.wait = self.guide, self.pause

    # The loop

    def run(self) -> Ending:
        """Repeat `tick` until the service ends. The ledger holds what the run is doing, and afterwards how it ended."""
        ending = Ending("failed", "ended by a mistake of its own")
        try:
            self.collect_garbage()  # the process before may have been killed after its last decision
            while (reached := self.tick()) is None:
                pass
            ending = reached
            return ending
        except Interrupted:
            ending = Ending("stopped", INTERRUPTED)
            raise
        except Exception as error:
            ending = Ending("failed", " ".join(str(error).split()) or type(error).__name__)
            raise
        finally:
            self._set_state(ending.state, ending.reason)

    def tick(self) -> Ending | None:
        """Look at everything once, then do a round or wait a moment. Returns how the service ended; None: call it again."""
        if (ending := self.ending()) is not None:
            return ending
        try:
            if (obstacle := self._obstacle()) is not None:
                self._wait_for(obstacle)
            else:
                return self._one_round()
        except (NoRoom, StoreError, OSError) as error:
            if not is_no_room(error):
                raise
            self.session.engines.close()
            if self.schedule is None:
                raise NoRoom(f"{error}; make room and run it again: it continues where it was left") from error
            self._num_no_room += 1
            wait_s = NO_ROOM.wait_s(self._num_no_room)
            assert wait_s is not None, "a lack of room has no last try"
            self._no_room = (f"no room: {error}; {BY_ITSELF}", time.monotonic() + wait_s)
        return None

    def _one_round(self) -> Ending | None:
        """Begin or continue a round. Returns how the service ended if the round failed and that ends it."""
        session, ledger = self.session, self.session.ledger
        self._set_state("running")
        try:
            round = run_round(session)
        except LeaveRound:
            session.engines.close()
            return None
        self._num_no_room = 0
        with contextlib.suppress(OSError):
            write_high_water(ledger.db, session.loaded.run_dir)
        self.watch.round_ended(round, ledger.decision(round.run_id, round.number))
        if round.state != "failed":
            self.collect_garbage()
        elif session.run.tip_checkpoint == round.parent_checkpoint:  # else the next round begins from another tip
            if self.schedule is None:
                return Ending("failed", f"round {round.number}, {round.stage}: {round.error}", round)
            remedy = f"`loopctl round {round.number}` shows its attempts, `loopctl resume` tries it again"
            why = f"round {round.number} failed in {round.stage}: {round.error}; {remedy}"
            ledger.hold_run(round.run_id, "failure", why)
        return None

    def collect_garbage(self) -> None:
        """Remove the checkpoints that the configuration does not keep; what cannot be removed now can be later."""
        session = self.session
        with contextlib.suppress(StoreError, OSError):
            plan = planned_collection(session.ledger, session.run, session.loaded.run_dir, session.loaded.config)
            if plan.doomed or plan.leftovers:
                collect(session.ledger, session.loaded.run_dir, plan)

    # What ends it, and what stands in the way

    def _under_way(self, run: Run, last: Round | None) -> Round | None:
        """The last round, if it is to be continued: undecided, and not failed before the tip moved elsewhere."""
        if last is None or last.state in DECIDED:
            return None
        return last if last.state != "failed" or run.tip_checkpoint == last.parent_checkpoint else None

    def ending(self) -> Ending | None:
        """How the service ends at its next look, if it does."""
        if self.stop.asked:
            self.stop.check()
            return Ending("stopped", STOPPED)
        run = self.session.run
        if self.goal is not None and run.num_decided >= self.goal:
            return Ending("idle", None)
        if self.schedule is not None and self.schedule.is_over(self.clock()):
            return Ending("idle", f"schedule.until ({self.schedule.settings.until}) has passed")
        if not self.stops or self.session.ledger.open_round(run.id):
            return None
        head = self.session.measured(run.head_checkpoint)
        history = History(
            verdicts=tuple(self.session.ledger.last_verdicts(run.id, MOST_VERDICTS)),
            head_pass_rate=head.metrics["pass@1"] if head and head.metrics else None,
            num_hours=self.session.ledger.hours_of_work(run.id),
        )
        why = why_stop(self.stops, history)
        return Ending("idle", f"schedule.stop: {why}") if why else None

    def _obstacle(self) -> Obstacle | None:
        session, now = self.session, self.clock()
        run = session.run
        control = session.ledger.control(run.id)
        no_room = self._no_room  # until its time comes nothing can be written
        if no_room is not None and time.monotonic() >= no_room[1]:
            no_room = None
        if control.wanted_head is not None and no_room is None:
            run = session.ledger.move_head(run.id, control.wanted_head, "by hand")
        last = session.ledger.last_round(run.id)
        if control.held_by is None and last is not None and no_room is None:
            self._hold_if_it_keeps_vanishing(last)
            control = session.ledger.control(run.id)
        if control.held_by is not None:
            return Obstacle("paused", control.hold_reason or BY_HAND)
        if (closed := self._closed(now)) is not None:
            return closed
        under_way = self._under_way(run, last)
        if self.schedule is not None and under_way is None:
            due = self.schedule.due_at(datetime.fromisoformat(last.started_at) if last else None, now)
            if due > now:
                return Obstacle("idle", None, due)
        if no_room is not None:
            return Obstacle("paused", no_room[0])
        self._no_room = None
        short = space.shortage(session, under_way)
        if short is not None and self.schedule is None:
            raise NoRoom(short)
        # The figures change with every write of others; told anew each time, they would fill the ledger on a full disk.
        self._short = (self._short or short) if short else None
        return Obstacle("paused", f"{self._short}; {BY_ITSELF}") if short else None

    def _closed(self, now: datetime) -> Obstacle | None:
        if self.schedule is None or self.schedule.is_open(now):
            return None
        why = "outside schedule.windows; the run continues by itself"
        return Obstacle("paused", why, self.schedule.opens_at(now))

    def _hold_if_it_keeps_vanishing(self, round: Round) -> None:
        """Hold the run if its process is killed again and again in one stage, which could repeat for weeks."""
        ledger = self.session.ledger
        if round.state != round.stage:
            return
        attempts = ledger.attempts(round.run_id, round.number, round.stage)
        num = sum(1 for _ in takewhile(lambda attempt: attempt.finished_at is None, reversed(attempts)))
        # Their order tells which is newer, not their times: a clock may be set back.
        newest = ledger.events.last_of(round.run_id, "run_released", "attempt_begun")
        if num and num % MOST_VANISHED == 0 and newest and newest.kind != "run_released":
            reason = (
                f"round {round.number}: the process vanished {num} times in {round.stage} (killed? out of memory? power?); "
                "look into the system's log, lower engine.batch_size or training.micro_batch_size, then `loopctl resume`"
            )
            ledger.hold_run(round.run_id, "failure", reason)

    # At a safe point, and while it waits

    def guide(self, round: Round | None) -> None:
        """See `Session.check_orders`: leave the round if something else comes first."""
        self.watch.pulse()
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

    def pause(self, seconds: float) -> None:
        """Wait between two attempts at a stage; raises LeaveRound as soon as something else comes first."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.guide(None)
            self.wait(min(left, TICK_S))

    def _wait_for(self, obstacle: Obstacle) -> None:
        self._set_state(obstacle.state, obstacle.reason, obstacle.until)
        left = (obstacle.until - self.clock()) if obstacle.until else timedelta(days=1)
        if left.total_seconds() > LONG_WAIT_S:
            self.session.engines.close()
        self.watch.pulse()
        self.wait(max(0.01, min(left.total_seconds(), TICK_S)))

    def _set_state(self, state: RunState, reason: str | None = None, until: datetime | None = None) -> None:
        if (state, reason, until) == self._last_state:
            return
        self._last_state = (state, reason, until)
        self.watch.state(state, reason, until)
        with contextlib.suppress(StoreError, OSError):  # an error before this one matters more
            self.session.ledger.set_run_state(self.session.run_id, state, reason)
