"""`loopd`: rounds in the background, for weeks, under a service manager or `loopctl start`.

Its log is JSON lines: on stderr for the journal, and in the run's `logs/loopd.log`, which is rotated. SIGTERM or SIGINT end
it at the next safe point; a second one, or the end of the grace, ends it at once. Both leave a round that can be resumed,
and exit code 0.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from loop.system.exits import explained, version

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.daemon.onlooker import Part
    from loop.system.signals import Stop
    from store.records import DecisionRow, Round

LOG_FILE = "loopd.log"
LOG_BYTES, NUM_OLD_LOGS = 8 << 20, 3
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Log:
    """A face for the onlooker (see loop.daemon.onlooker): a JSON object a line. What cannot be written is not."""

    def __init__(self, *, quiet: bool) -> None:
        self.run: str | None = None
        self.round: int | None = None
        self.stage: str | None = None
        logging.raiseExceptions = False  # a full disk or a closed pipe must not end a round
        self.logger = logging.Logger("loopd")
        if not quiet:
            self.logger.addHandler(logging.StreamHandler(sys.stderr))

    def keep(self, logs: Path) -> None:
        """From now on also in a file there. Only for the process that holds the run."""
        with contextlib.suppress(OSError):
            logs.mkdir(parents=True, exist_ok=True)
            handler = RotatingFileHandler(
                logs / LOG_FILE, maxBytes=LOG_BYTES, backupCount=NUM_OLD_LOGS, encoding="utf-8"
            )
            self.logger.addHandler(handler)

    def line(self, level: str, message: str, **more: Any) -> None:
        """One line; `more` is for machines."""
        from store.db import utc_now

        entry = {"time": utc_now(), "level": level, "run": self.run, "round": self.round, "stage": self.stage}
        self.logger.log(LEVELS[level], "%s", json.dumps({**entry, "message": message, **more}))

    def begun(self, part: Part) -> None:
        self.round, self.stage = part.round or None, part.stage
        self.line("info", f"{part.stage}: {part.what}")

    def moved(self, part: Part) -> None:
        pass

    def ended(self, part: Part) -> None:
        self.line("info", f"{part.stage}: {part.what}: done", duration_s=round(part.elapsed_s, 3))

    def said(self, text: str) -> None:
        self.line("warning", text)

    def hidden(self) -> AbstractContextManager[None]:
        return nullcontext()


@click.command("loopd", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="FILE", help="The configuration; default: LOOP_CONFIG, then ./loop.toml.")
@click.option("--quiet", is_flag=True, help="Log only to the run's logs/loopd.log.")
@click.version_option(version(), prog_name="loopd", message="%(prog)s %(version)s")
def loopd(config: str | None, quiet: bool) -> None:
    """Rounds in the foreground of a service manager, when [schedule] says that one is due, until the run is over."""
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
        log.line("info", f"stopped by {signal}; it goes on where it was")
    except click.exceptions.Exit:
        raise
    except Exception as error:
        code, text = explained(error)
        for line in text.splitlines():
            log.line("error", line)
            if quiet:  # whoever started it reads this
                print(line, file=sys.stderr)
        raise click.exceptions.Exit(code) from None


def _serve(loaded: LoadedConfig, log: Log, stop: Stop, wake: Any) -> None:
    from datetime import datetime

    from loop.daemon.onlooker import Onlooker
    from loop.daemon.schedule import Schedule
    from loop.daemon.service import Service
    from loop.daemon.surroundings import Background, commanded
    from loop.run.opening import open_session
    from loop.run.power import too_coarse
    from loop.system.heartbeat import Beating
    from loop.system.sd_notify import Notifier
    from loop.watching.hooks import hooks_of
    from loop.watching.metrics import metrics_of
    from loop.watching.tracker_thread import trackers_of

    notifier, watch, config = Notifier(), Onlooker(log), loaded.config
    watch.beating = beating = Beating(loaded.run_dir)
    watch.on_pulse = stop.check  # a model may be fetched before there is a service
    notifier.status("preparing")

    def after_round(round: Round, decision: DecisionRow | None) -> None:
        watch.end_part()
        log.round, log.stage = round.number, None
        words = {"kept": "kept", "rolled_back": "rolled back"}.get(round.state, round.state)
        reasons = [gate["reason"] for gate in decision.gates] if decision else [f"in {round.stage}: {round.error}"]
        log.line(
            "info" if decision else "error", "; ".join([f"round {round.number} {words}", *reasons]), state=round.state
        )

    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(loaded, watch))
        log.keep(loaded.run_dir / "logs")
        metrics = stack.enter_context(metrics_of(config.watching))
        hooks = stack.enter_context(hooks_of(config.watching, log.line, loaded.base_dir))
        trackers = stack.enter_context(
            trackers_of(config.watching, config.name, loaded.run_dir, log.line, lambda: stop.asked)
        )
        around = Background(
            beating,
            wake,
            after_round,
            session=session,
            notifier=notifier,
            hooks=hooks,
            metrics=metrics,
            trackers=trackers,
            say=log.line,
        )
        created = datetime.fromisoformat(session.run.created_at)
        service = Service(
            session,
            stop,
            around,
            schedule=Schedule(config.schedule, created),
            stops=config.schedule.stop,
        )
        watch.on_pulse = service.pulse
        if not service.is_over():  # whoever answers is taken for one that has begun to work
            stack.enter_context(commanded(loaded, stop, wake))
        log.line("info", "started")
        if (coarse := too_coarse(session)) is not None:
            watch.note(coarse)
        notifier.ready()
        try:
            ending = service.run()
        finally:
            notifier.stopping()
        log.round = log.stage = None
        done = f"all {config.rounds} rounds are done; raise rounds in {loaded.file.place} to go on"
        log.line("info", ending.reason or done)


def main() -> NoReturn:
    """The entry point of `loopd`."""
    loopd.main(prog_name="loopd")
    raise AssertionError("unreachable")


if __name__ == "__main__":
    main()
