"""What is around a service: the heartbeat, the control socket, and trackers, for the daemon the service manager, hooks and metrics."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from loop.config.loading import LoadedConfig
from loop.daemon.commands import Commands
from loop.daemon.control import Control, Wake
from loop.run.session import Session
from loop.system.heartbeat import Beating
from loop.system.signals import Stop
from store.db import DATABASE, open_database
from store.ledger import Ledger
from store.records import DecisionRow, Json, Round, RunState

if TYPE_CHECKING:
    from loop.system.sd_notify import Notifier
    from loop.watching.hooks import Hooks
    from loop.watching.metrics import Metrics, Snapshot
    from loop.watching.tracker_thread import TrackerThread

METRICS_S = 5.0  # between two looks into the store for them


class Foreground:
    """Surroundings of `loopctl run`, and the part that the daemon has in common with it."""

    def __init__(
        self,
        beating: Beating,
        wake: Wake,
        after_round: Callable[[Round, DecisionRow | None], None],
        trackers: TrackerThread | None = None,
    ) -> None:
        self.beating, self.wake, self.after_round, self.trackers = beating, wake, after_round, trackers

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        """See `loop.daemon.service.Surroundings`."""
        self.beating.say(state, reason, until.timestamp() if until else None)

    def beat(self) -> None:
        """See `loop.daemon.service.Surroundings`."""
        self.beating.beat()

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        """See `loop.daemon.service.Surroundings`."""
        self.after_round(round, decision)
        if self.trackers and decision:
            self.trackers.look()

    def wait(self, seconds: float) -> None:
        """See `loop.daemon.service.Surroundings`."""
        self.wake.wait(seconds)


class Background(Foreground):
    """Surroundings of `loopd`."""

    def __init__(
        self,
        beating: Beating,
        wake: Wake,
        after_round: Callable[[Round, DecisionRow | None], None],
        *,
        session: Session,
        notifier: Notifier,
        hooks: Hooks | None,
        metrics: Metrics | None,
        trackers: TrackerThread | None,
        say: Callable[[str, str], None],
    ) -> None:
        super().__init__(beating, wake, after_round, trackers)
        self.session, self.notifier, self.hooks, self.metrics, self.say = session, notifier, hooks, metrics, say
        self._measured = 0.0

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        """See `loop.daemon.service.Surroundings`."""
        super().state(state, reason, until)
        when = f" until {until:%Y-%m-%d %H:%M:%S} UTC" if until else ""
        self.say(
            "warning" if state in ("paused", "failed") else "info", f"{state}{when}{f': {reason}' if reason else ''}"
        )
        self.notifier.status(f"{state}{when}{f': {reason}' if reason else ''}")
        if state == "paused":
            self._tell("pause", {"reason": reason, "until": until.isoformat() if until else None})
        self._measured = 0.0
        self.beat()

    def beat(self) -> None:
        """See `loop.daemon.service.Surroundings`."""
        super().beat()
        self.notifier.watchdog()
        now = time.monotonic()
        if self.metrics and now - self._measured >= METRICS_S:
            self._measured = now
            self.metrics.show(self._snapshot())

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        """See `loop.daemon.service.Surroundings`."""
        super().round_ended(round, decision)
        if decision:
            reasons = [gate["reason"] for gate in decision.gates]
            self._tell("decision", {"round": round.number, "verdict": decision.verdict, "reasons": reasons})
        else:
            self._tell("failure", {"round": round.number, "stage": round.stage, "error": round.error})

    def _snapshot(self) -> Snapshot:
        from loop.watching.metrics import Snapshot

        session, beat = self.session, self.beating.now
        run, config = session.run, session.loaded.config
        measured = session.corpus.evaluations(run.id, run.head_checkpoint)
        decides = (config.decide.suite, config.decide.split)
        rates = [e.metrics["pass@1"] for e in measured if e.metrics and (e.suite_name, e.split) == decides]
        present = (row for row in session.ledger.checkpoints(run.id) if row.state == "present" and row.round)
        return Snapshot(
            run=run.name,
            state=beat.state,
            round=beat.round,
            stage=beat.stage,
            done_ratio=beat.done / beat.total if beat.done is not None and beat.total else None,
            rounds_kept=run.num_kept,
            rounds_rolled_back=run.num_rolled_back,
            rounds_failed=run.num_failed,
            completions=run.num_completions,
            head_round=run.head_round,
            head_pass_ratio=rates[-1] if rates else None,
            free_bytes=shutil.disk_usage(session.loaded.run_dir).free,
            checkpoints_bytes=sum(row.size_bytes for row in present),
            started_at=beat.started_at,
            beat_at=beat.at,
            next_due_at=beat.next_due_at,
        )

    def _tell(self, event: str, more: Json) -> None:
        if self.hooks:
            self.hooks.tell(event, {"run": self.session.loaded.config.name, **more})


@contextlib.contextmanager
def commanded(loaded: LoadedConfig, stop: Stop, wake: Wake) -> Iterator[None]:
    """Answer `loopctl` on the control socket while the block lasts. The caller holds the run's lock."""
    opened: list[Commands] = []

    def prepare() -> None:  # in the control thread, which has a connection of its own
        db = open_database(loaded.run_dir / DATABASE)
        opened.append(Commands(Ledger(db), loaded.run_dir, loaded.config, alive=True))

    def close() -> None:
        for commands in opened:
            commands.ledger.db.close()

    def answer(request: Json) -> Json:
        if request.get("command") == "ping":
            return {"pid": os.getpid()}
        if request.get("command") == "stop":
            if request.get("now"):
                stop.ask_now()
                return {"pid": os.getpid(), "text": "ending at once; the round can be resumed"}
            known = stop.asked
            stop.ask()
            return {"pid": os.getpid(), "text": "already stopping" if known else "stopping at the next safe point"}
        told = opened[0].answer(request)
        wake.wake()
        return told

    with Control(loaded.run_dir, answer, prepare=prepare, close=close):
        yield
