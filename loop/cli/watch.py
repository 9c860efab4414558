"""`loopctl watch` shows the status, live: on a terminal in place, in a pipe a block whenever something is new."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from loop.cli.options import command, the_call
from loop.cli.status import UNKNOWN, drawn, exit_code, look
from loop.config.place import Place
from loop.reading.as_json import as_json
from loop.words import warn

if TYPE_CHECKING:
    from loop.reading.standing import Standing

STEPS = 10  # of a part's progress: each is news in a pipe


@command("watch", "loopctl watch                  # until Ctrl-C", "loopctl watch --interval 5     # until Ctrl-C")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    metavar="S",
    show_default=True,
    help="Seconds between two looks.",
)
def watch_command(interval_s: float) -> int:
    """Status, live, until Ctrl-C. In a pipe: a block when something changed; with --json: a line at every look.

    It keeps watching when the process ends. Exit code: that of `loopctl status` at the end, 0 or 3.
    """
    place = the_call().place()
    code = UNKNOWN
    with contextlib.suppress(KeyboardInterrupt), _shown(place) as show:
        while True:
            answer = look(place)
            code = UNKNOWN if isinstance(answer, str) else exit_code(answer)
            show(answer)
            time.sleep(interval_s)
    return code


@contextlib.contextmanager
def _shown(place: Place) -> Iterator[Callable[[Standing | str], None]]:
    """Give a function that shows how the run stands, or why nobody can tell."""
    if the_call().json:
        yield _print_line
    elif not sys.stdout.isatty():
        yield Blocks(place).show
    else:
        from rich.live import Live
        from rich.text import Text

        from loop.cli.tables import console

        with Live(console=console(), auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

            def draw(answer: Standing | str) -> None:
                picture = answer if isinstance(answer, str) else drawn(answer, place).removesuffix("\n")
                live.update(Text.from_ansi(picture, overflow="fold"), refresh=True)

            yield draw


def _print_line(answer: Standing | str) -> None:
    """Print the value of `status --json` on a line."""
    if isinstance(answer, str):
        warn(answer)
    else:
        sys.stdout.write(json.dumps(as_json(answer), ensure_ascii=True, allow_nan=False) + "\n")
        sys.stdout.flush()


class Blocks:
    """Prints what `status` prints, whenever something is new; an empty line between two."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._last: object = None

    def show(self, answer: Standing | str) -> None:
        last, self._last = self._last, _news(answer)
        if self._last == last:
            return
        if isinstance(answer, str):
            warn(answer)
        else:
            sys.stdout.write(("\n" if last is not None else "") + drawn(answer, self.place))
            sys.stdout.flush()


def _news(answer: Standing | str) -> object:
    """Take out what is news if it differs: not the ages, times and sizes that always do."""
    if isinstance(answer, str):
        return answer
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
        "lost": [node["name"] for node in answer.nodes or () if node["lost"]],
    }
