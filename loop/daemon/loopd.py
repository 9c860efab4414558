"""`loopd`: rounds in the background, for weeks, under a service manager or `loopctl start`.

Its log is JSON lines: on stderr for the journal, and in the run's `logs/loopd.log`, which is rotated. SIGTERM or SIGINT end
it at the next safe point; a second one, or the end of the grace, ends it at once. Both leave a round that can be resumed,
and exit code 0.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop.system.exits import explained, version
from loop.system.sd_notify import Notifier

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.daemon.onlooker import StagePart
    from loop.run.session import Session
    from loop.system.heartbeat import Heartbeat
    from loop.system.signals import Stop
    from loop.watching.metrics import Snapshot
    from store.records import DecisionRow, Round, RunState

LOG_FILE = "loopd.log"
LOG_BYTES, NUM_OLD_LOGS = 8 << 20, 3


class Log:
    """A listener (see `loop.daemon.onlooker.Onlookers`) that writes a JSON object a line, and tells the service manager.

    What cannot be written is left out.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.notifier = Notifier()
        self.is_ready = False  # before that, the service manager expects no sign of life
        self.run: str | None = None
        self.round: int | None = None
        self.stage: str | None = None
        logging.raiseExceptions = False  # a full disk or a closed pipe must not end a round
        self.logger = logging.Logger("loopd")
        if not quiet:
            self.logger.addHandler(logging.StreamHandler(sys.stderr))

    def keep(self, logs: Path) -> None:
        """Write to a file in this directory, too, from now on. Only for the process that holds the run."""
        with contextlib.suppress(OSError):
            logs.mkdir(parents=True, exist_ok=True)
            self.logger.addHandler(RotatingFileHandler(logs / LOG_FILE, maxBytes=LOG_BYTES, backupCount=NUM_OLD_LOGS))

    def line(self, level: str, message: str, **more: Any) -> None:
        """Write one line; `more` are fields for programs that read it."""
        from store.db import utc_now

        entry = {"time": utc_now(), "level": level, "run": self.run, "round": self.round, "stage": self.stage}
        self.logger.log(getattr(logging, level.upper()), "%s", json.dumps({**entry, "message": message, **more}))

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        when = f" until {until:%Y-%m-%d %H:%M:%S} UTC" if until else ""
        text = f"{state}{when}{f': {reason}' if reason else ''}"
        self.line("warning" if state in ("paused", "failed") else "info", text)
        self.notifier.status(text)

    def begun(self, part: StagePart) -> None:
        self.round, self.stage = part.round or None, part.stage
        self.line("info", f"{part.stage}: {part.what}")

    def ended(self, part: StagePart) -> None:
        self.line("info", f"{part.stage}: {part.what}: done", duration_s=round(part.elapsed_s, 3))

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        self.round, self.stage = round.number, None
        reasons = [gate["reason"] for gate in decision.gates] if decision else [f"in {round.stage}: {round.error}"]
        text = "; ".join([f"round {round.number} {round.state.replace('_', ' ')}", *reasons])
        self.line("info" if decision else "error", text, state=round.state)

    def note(self, text: str) -> None:
        self.line("warning", text)

    def beat(self) -> None:
        if self.is_ready:
            self.notifier.watchdog()

    def ready(self) -> None:
        """Everything is checked and open."""
        self.notifier.ready()
        self.is_ready = True


@click.command("loopd", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="FILE", help="The configuration; default: LOOP_CONFIG, then ./loop.toml.")
@click.option("--quiet", is_flag=True, help="Log only to the run's logs/loopd.log.")
@click.version_option(version(), prog_name="loopd", message="%(prog)s %(version)s")
def loopd(config: str | None, quiet: bool) -> None:
    """Run rounds for a service manager, each when [schedule] says that it is due, until the run is over."""
    from loop.config.loading import find_config, load_config
    from loop.daemon.control import Wake
    from loop.system.signals import Interrupted, Stop

    log, wake = Log(quiet=quiet), Wake()
    stop = Stop(at_once=False, wake=wake.wake)
    try:
        with stop.listening(to_the_end=True):
            loaded = load_config(find_config(config))
            stop.grace_s = loaded.config.daemon.stop_grace_s
            log.run = loaded.config.name
            _serve(loaded, log, stop, wake)
    except Interrupted as signal:
        log.line("info", f"stopped by {signal}; the next start continues the run where it was left")
    except click.exceptions.Exit:
        raise
    except Exception as error:
        code, text = explained(error)
        for line in text.splitlines():
            log.line("error", line)
            if quiet:  # `loopctl start` reads it
                print(line, file=sys.stderr)
        raise click.exceptions.Exit(code) from None


def _serve(loaded: LoadedConfig, log: Log, stop: Stop, wake: Any) -> None:
    from loop.daemon.commands import commanded
    from loop.daemon.onlooker import Onlookers
    from loop.daemon.schedule import Schedule
    from loop.daemon.service import Service
    from loop.run.opening import open_session
    from loop.run.power import coarseness_warning
    from loop.system.heartbeat import Beating
    from loop.watching.hooks import hooks_of
    from loop.watching.metrics import metrics_of
    from loop.watching.tracker_thread import trackers_of

    config, beating = loaded.config, Beating(loaded.run_dir)
    watching, name = config.watching, config.name
    watch = Onlookers(beating, log, check=stop.check)
    log.notifier.status("preparing")
    with contextlib.ExitStack() as stack:
        stop.at_once = True  # nothing can be lost yet, and a base model may be fetched, converted or hashed for long
        session = stack.enter_context(open_session(loaded, watch))
        stop.at_once = False
        log.keep(loaded.run_dir / "logs")
        watch.listeners += [
            stack.enter_context(hooks_of(watching, name, log.line, loaded.base_dir)),
            stack.enter_context(trackers_of(watching, name, loaded.run_dir, log.line, lambda: stop.asked)),
            stack.enter_context(metrics_of(watching, lambda: snapshot_of(session, beating.now))),
        ]
        schedule = Schedule(config.schedule, datetime.fromisoformat(session.run.created_at))
        service = Service(session, stop, watch, wake.wait, schedule=schedule, stops=config.schedule.stop)
        if service.ending() is None:  # a process that answers on the socket counts as one that has begun to work
            stack.enter_context(commanded(loaded, stop, wake))
        log.line("info", "started")
        if (coarse := coarseness_warning(session)) is not None:
            watch.note(coarse)
        log.ready()
        try:
            ending = service.run()
        finally:
            log.notifier.stopping()
        log.round = log.stage = None
        done = f"all {config.rounds} rounds are done; raise rounds in {loaded.file.place} to continue"
        log.line("info", ending.reason or done)


def snapshot_of(session: Session, beat: Heartbeat) -> Snapshot:
    from loop.watching.metrics import Snapshot

    run = session.run
    head = session.measured(run.head_checkpoint)
    present = (row for row in session.ledger.checkpoints.all(run.id) if row.state == "present" and row.round)
    return Snapshot(
        run=run.name,
        state=beat.state,
        round=beat.round,
        stage=beat.stage,
        done_ratio=beat.done / beat.total if beat.done is not None and beat.total else None,
        rounds_kept=run.num_kept,
        rounds_carried=run.num_carried,
        rounds_rolled_back=run.num_rolled_back,
        rounds_failed=run.num_failed,
        completions=run.num_completions,
        head_round=run.head_round,
        tip_round=run.tip_round,
        head_pass_ratio=head.metrics["pass@1"] if head and head.metrics else None,
        free_bytes=shutil.disk_usage(session.loaded.run_dir).free,
        checkpoints_bytes=sum(row.size_bytes for row in present),
        started_at=beat.started_at,
        beat_at=beat.at,
        next_due_at=beat.next_due_at,
    )


def main() -> None:
    loopd.main(prog_name="loopd")
