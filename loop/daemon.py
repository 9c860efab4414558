"""`loopd`: the same rounds as `loopctl run`, for a service manager. It draws nothing; its log is JSON lines on stderr.

SIGTERM or SIGINT end it at the next safe point, between two stages; a second one ends it at once. Both leave a round
that can be resumed, and exit code 0.
"""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import click

from loop.cli.call import Call
from loop.cli.main import explained, version

if TYPE_CHECKING:
    from loop.cli.progress import Part
    from loop.rounds import Stop


class Log:
    """A face for the onlooker (see loop.cli.progress): a JSON object a line."""

    def __init__(self) -> None:
        self.run: str | None = None
        self.round: int | None = None
        self.stage: str | None = None

    def line(self, level: str, message: str, **more: Any) -> None:
        """One line; `more` is for machines."""
        from store.db import utc_now

        entry = {"time": utc_now(), "level": level, "run": self.run, "round": self.round, "stage": self.stage}
        print(json.dumps({**entry, "message": message, **more}), file=sys.stderr, flush=True)

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
@click.version_option(version(), prog_name="loopd", message="%(prog)s %(version)s")
def loopd(config: str | None) -> None:
    """Rounds in the foreground, for a service manager, until the run has all of them."""
    from loop.rounds import Interrupted, Stop

    log, stop = Log(), Stop(at_once=False)
    try:
        with stop.listening():
            _serve(Call(config=config), log, stop)
    except Interrupted as signal:
        log.line("info", f"stopped by {signal}; it goes on where it was")
    except click.exceptions.Exit:
        raise
    except Exception as error:
        code, text = explained(error)
        for line in text.splitlines():
            log.line("error", line)
        raise click.exceptions.Exit(code) from None


def _serve(call: Call, log: Log, stop: Stop) -> None:
    from loop.cli.progress import Onlooker
    from loop.heartbeat import Beating
    from loop.rounds import run_rounds
    from loop.session import open_session
    from store.records import Round

    loaded = call.load()
    log.run = loaded.config.name
    watch = Onlooker(log)
    watch.beating = Beating(loaded.run_dir)
    with open_session(loaded, watch) as session:

        def after_round(round: Round) -> None:
            watch.end_part()
            decision = session.ledger.decision(session.run_id, round.number)
            reasons = [gate["reason"] for gate in decision.gates] if decision else []
            log.round, log.stage = round.number, None
            words = {"kept": "kept", "rolled_back": "rolled back"}.get(round.state, round.state)
            log.line("info", "; ".join([f"round {round.number} {words}", *reasons]), state=round.state)

        last = run_rounds(session, None, stop.check, after_round)
        if last is not None and last.state == "failed":
            log.line("error", f"round {last.number} failed in {last.stage}: {last.error}")
            raise click.exceptions.Exit(1)
        log.round = log.stage = None
        log.line("info", f"all {loaded.config.rounds} rounds are done; raise rounds in {loaded.place} to go on")


def main() -> NoReturn:
    """The entry point of `loopd`."""
    loopd.main(prog_name="loopd")
    raise AssertionError("unreachable")


if __name__ == "__main__":
    main()
