"""`loopctl status` says what is happening, what was decided and why, and whether anything needs you.

`loop.reading.status_words` makes the lines from what `loop.reading.standing` knows; here are the title and the exit code.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from loop.cli.options import command, print_answer, the_call
from loop.cli.paper import Paper
from loop.reading.as_json import as_json
from loop.reading.status_words import doing, labelled
from loop.words import clock, safe, warn

if TYPE_CHECKING:
    from loop.config.place import Place
    from loop.reading.standing import Standing

RUNNING, NOT_RUNNING, UNKNOWN, FAILED = 0, 3, 4, 1
STYLES = {"running": "green", "paused": "yellow", "failed": "red"}


@command("status", "loopctl status", "loopctl status --json", "loopctl status --check || echo 'look into it'")
@click.option("--check", is_flag=True, help="For monitoring: also fail when failed, stalled or short of disk.")
def status_command(check: bool) -> int:
    """What is happening, what was decided and why, and whether anything needs you.

    Exit code: 0 running, waiting or paused, 3 not running, 4 unknown; with --check, 1 for what needs you.
    """
    place = the_call().place()
    answer = look(place)
    if isinstance(answer, str):
        warn(answer)
        return UNKNOWN
    print_answer(as_json(answer), lambda _: sys.stdout.write(drawn(answer, place)))
    if check:
        for need in answer.needs_you:
            warn(safe(need))
    return exit_code(answer, check)


def look(place: Place) -> Standing | str:
    """Say how the run stands; or why nobody can tell, in words that are safe in a terminal."""
    from loop.reading.standing import status
    from loop.system.exits import explained
    from store.errors import StoreError, StoreTooNew

    try:
        return status(place.run_dir, place.name, place.rounds)
    except StoreTooNew:
        raise
    except StoreError as error:
        return safe(explained(error)[1])


def exit_code(answer: Standing, check: bool = False) -> int:
    """Return what `status` and `watch` end with."""
    if check and answer.needs_you:
        return FAILED
    return NOT_RUNNING if answer.pid is None else RUNNING


def drawn(answer: Standing, place: Place) -> str:
    """Draw the lines for people, with the schedule as loop.toml has it."""
    paper = Paper(sys.stdout)
    lines = [_title(answer, paper), *paper.labelled(labelled(answer, place.every))]
    return "".join(f"{line}\n" for line in lines)


def _title(answer: Standing, paper: Paper) -> str:
    state, style = answer.state, STYLES.get(answer.state, "")
    parts = [
        f"{paper.styled_as('●' if answer.pid else '○', style)} {paper.styled_as(safe(answer.run or 'no run'), 'bold')}",
        paper.styled_as(safe(state), style),
        *doing(answer),
        paper.styled_as(f"as of {clock(answer.as_of)}", "dim"),
    ]
    return "   ".join(parts)
