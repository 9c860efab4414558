"""`loopctl run` runs rounds in the foreground, with a table after each and a summary at the end."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import click

from loop.cli.options import command, print_json, the_call
from loop.words import all_done, safe

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.daemon.onlooker import Onlookers
    from loop.inputs import Inputs
    from loop.reading.reader import Reader
    from loop.run.session import Session
    from store.records import DecisionRow, Round


@command("run", "loopctl run", "loopctl run --rounds 1")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="This many more, instead of up to `rounds`.")
@click.option(
    "--grace",
    is_flag=True,
    help="A first signal waits for a safe point, at most daemon.stop_grace_s, as in the daemon.",
)
def run_command(rounds: int | None, grace: bool) -> None:
    """Rounds in the foreground with live progress, then a summary. Ctrl-C leaves a round that can be resumed.

    Exit code: 130 or 143 where a signal ended it before the rounds were done.
    """
    from loop.cli.progress import onlookers
    from loop.daemon.commands import commanded
    from loop.daemon.control import Wake
    from loop.daemon.service import Service
    from loop.errors import LoopError
    from loop.run.opening import open_session
    from loop.run.power import coarseness_warning
    from loop.system.signals import Interrupted, Stop
    from loop.watching.tracker_thread import trackers_of

    loaded, wake = the_call().load(), Wake()
    watching, name = loaded.config.watching, loaded.config.name
    stop = Stop(at_once=True, grace_s=loaded.config.daemon.stop_grace_s, wake=wake.wake)
    with (
        stop.listening(),
        onlookers(loaded.run_dir, stop.check) as watch,
        open_session(loaded, watch, lambda inputs: _say_what_comes(loaded, inputs, watch, rounds)) as session,
        trackers_of(watching, name, loaded.run_dir, lambda _, text: watch.note(text), lambda: stop.asked) as trackers,
        commanded(loaded, stop, wake),
    ):
        stop.at_once = not grace  # only now is there something to lose
        watch.listeners += [Tables(session, watch), trackers]
        if session.ledger.release_run(session.run_id):
            watch.note("the run was paused; it continues now")
        service = Service(session, stop, watch, wake.wait, more=rounds)  # which knows how many rounds there will be
        if (coarse := coarseness_warning(session)) is not None:
            watch.note(coarse)
        before = session.run.num_decided
        ending = service.run()
        if (last := ending.failed) is not None:
            remedy = f"`loopctl run` tries it again, `loopctl round {last.number}` shows its attempts"
            raise LoopError(f"round {last.number} failed in {last.stage}: {last.error}; {remedy}")
        if ending.state == "stopped" and stop.signum is not None:
            raise Interrupted(stop.signum)
        if session.run.num_decided == before and ending.state == "idle":
            watch.note(all_done(loaded.config.rounds))
        with watch.aside():
            _print_summary(session)


def _say_what_comes(loaded: LoadedConfig, inputs: Inputs, watch: Onlookers, more: int | None) -> None:
    """Say what a run that begins will do, and how long it may take here."""
    from loop.errors import EngineError
    from loop.inputs import num_parameters_of
    from loop.run import pace
    from loop.words import duration

    if not (num_rounds := more or loaded.config.rounds):
        return
    work = pace.work_of(loaded, inputs, num_rounds)
    watch.note(pace.in_words(loaded, work))
    num_parameters = num_parameters_of(loaded.config.model.source, loaded.base_dir)
    with contextlib.suppress(
        EngineError, OSError
    ):  # the first worker that the run needs says what is wrong with workers
        if num_parameters and (speed := pace.measured_speed(loaded)):
            likely = duration(pace.seconds(work, num_parameters, speed))
            measured = f"{speed.sampling / 1e9:,.0f} GFLOP/s for sampling and {speed.training / 1e9:,.0f} for training"
            formula = "a formula, right within a factor of two"
            more_s = pace.seconds_of_last(work, num_parameters, speed)
            last = f", and {duration(more_s)} more {pace.LAST}" if more_s else ""
            watch.note(f"that takes about {likely}{last} ({measured} were just measured here; {formula})")


class Tables:
    """Listens for the end of a round, and prints its table: on standard output, with --json on standard error."""

    def __init__(self, session: Session, watch: Onlookers) -> None:
        self.session, self.watch = session, watch

    def round_ended(self, round: Round, _decision: DecisionRow | None) -> None:
        from loop.cli.tables import console, round_report, show
        from loop.reading.as_json import as_json
        from loop.reading.rounds import whole_round

        answer = as_json(whole_round(_store(self.session), round.number))
        with self.watch.aside():
            out = console(sys.stderr if the_call().json else sys.stdout)
            show(out, round_report(answer, out.width))
            out.file.flush()


def _print_summary(session: Session) -> None:
    from loop.cli.rounds import print_rounds
    from loop.cli.tables import console
    from loop.reading.as_json import as_json
    from loop.reading.rounds import base_row, rows
    from loop.reading.standing import status

    store = _store(session)
    answer, base = as_json(rows(store)), base_row(store)
    if the_call().json:
        head = as_json(status(session.loaded.run_dir, session.run.name).head)
        print_json({"run": session.run.name, "rounds": answer, "base": base, "head": head})
        return
    print_rounds(answer, base, session.run)
    number = answer[-1]["round"] if answer else 1
    look = f"`loopctl status`, `loopctl round {number}`, `loopctl samples --round {number}`"
    console().print(f"next: {look}; in {safe(session.loaded.run_dir)}")


def _store(session: Session) -> Reader:
    from loop.reading.reader import Reader

    return Reader(session.ledger, session.corpus, session.run, session.loaded.run_dir)
