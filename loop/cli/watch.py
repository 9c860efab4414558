"""`loopctl watch`: status, live. On a terminal it is drawn again in place; in a pipe a block is printed when there is news."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import click

from loop.cli.options import shared_options, the_call
from loop.cli.paper import Paper
from loop.cli.status import UNKNOWN, drawn, exit_code
from loop.config.place import Place
from loop.reading.as_json import as_json
from loop.words import safe, warn

if TYPE_CHECKING:
    from rich.live import Live

    from loop.reading.standing import Standing
    from store.records import Json

STEPS = 10  # of a part's progress: each is news in a pipe


class Face(Protocol):
    """How an answer is shown."""

    def show(self, answer: Standing) -> None: ...
    def cannot(self, why: str) -> None: ...


@click.command("watch")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    metavar="S",
    show_default=True,
    help="Seconds between two looks.",
)
@shared_options
@click.pass_context
def watch_command(context: click.Context, interval_s: float) -> None:
    """Status, live, until Ctrl-C. In a pipe: a block when something changed; with --json: a line at every look.

    It keeps watching when the process ends. Exit code: that of `loopctl status` at the end, 0 or 3.

    \b
    Examples:
      loopctl watch                  # until Ctrl-C
      loopctl watch --interval 5     # until Ctrl-C
    """
    place = the_call().place()
    code = UNKNOWN
    with contextlib.suppress(KeyboardInterrupt), _face(place) as face:
        while True:
            answer = _look(place)
            if isinstance(answer, str):
                code = UNKNOWN
                face.cannot(answer)
            else:
                code = exit_code(answer)
                face.show(answer)
            time.sleep(interval_s)
    context.exit(code)


def _look(place: Place) -> Standing | str:
    """How it stands; or in words why nobody can tell."""
    from loop.reading.standing import status
    from store.errors import StoreError, StoreTooNew

    try:
        return status(place.run_dir, place.name, place.rounds)
    except StoreTooNew:
        raise
    except StoreError as error:
        return safe(error)


@contextlib.contextmanager
def _face(place: Place) -> Iterator[Face]:
    if the_call().json:
        yield JsonLines()
    elif not sys.stdout.isatty():
        yield Blocks(place)
    else:
        from rich.live import Live

        from loop.cli.tables import console

        with Live(console=console(), auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            yield InPlace(place, live)


class JsonLines:
    """The value of `status --json`, a line each."""

    def show(self, answer: Standing) -> None:
        sys.stdout.write(json.dumps(as_json(answer), ensure_ascii=True, allow_nan=False) + "\n")
        sys.stdout.flush()

    def cannot(self, why: str) -> None:
        warn(why)


class Blocks:
    """What `status` prints, whenever there is news; an empty line between two."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._last: object = None

    def show(self, answer: Standing) -> None:
        if (now := _news(answer)) == self._last:
            return
        gap = "\n" if self._last is not None else ""
        self._last = now
        lines = drawn(answer, Paper(sys.stdout), self.place.every)
        sys.stdout.write(gap + "".join(f"{line}\n" for line in lines))
        sys.stdout.flush()

    def cannot(self, why: str) -> None:
        if why != self._last:
            self._last = why
            warn(why)


def _news(answer: Standing) -> Json:
    """What is news if it differs: not the ages, times and sizes that always do."""
    round, error, last = answer.round, answer.last_error, answer.last_decision
    step = None
    if round and round.done is not None and round.total:
        step = STEPS * round.done // round.total
    return {
        "process": (answer.pid, answer.state, answer.reason, answer.paused_by, answer.next_due),
        "round": round and (round.number, round.stage, round.part, round.attempt, step),
        "head": answer.head and (answer.head.checkpoint, answer.head.pass_at_1),
        "rounds": answer.rounds,
        "decision": last and last.round,
        "error": error and (error.at, error.current),
        "needs_you": len(answer.needs_you),
    }


class InPlace:
    """One picture that is drawn again and again, and stays at the end."""

    def __init__(self, place: Place, live: Live) -> None:
        self.place, self.live = place, live

    def show(self, answer: Standing) -> None:
        self._draw("\n".join(drawn(answer, Paper(sys.stdout), self.place.every)))

    def cannot(self, why: str) -> None:
        self._draw(why)

    def _draw(self, picture: str) -> None:
        from rich.text import Text

        self.live.update(Text.from_ansi(picture, overflow="fold"), refresh=True)
