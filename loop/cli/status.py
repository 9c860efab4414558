"""`loopctl status`: what is happening, what was decided and why, and whether anything needs you.

The lines are made in `loop.reading.status_words` from what `loop.reading.standing` knows; here are the title and the exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from loop.cli.options import print_json, shared_options, the_call
from loop.cli.paper import Paper
from loop.reading.status_words import doing, labelled
from loop.words import (
    clock,
    safe,
    warn,
)

if TYPE_CHECKING:
    from loop.reading.standing import Standing

RUNNING, NOT_RUNNING, UNKNOWN, FAILED = 0, 3, 4, 1
STYLES = {"running": "green", "paused": "yellow", "failed": "red"}


@click.command("status")
@click.option("--check", is_flag=True, help="For monitoring: also fail when failed, stalled or short of disk.")
@shared_options
@click.pass_context
def status_command(context: click.Context, check: bool) -> None:
    """What is happening, what was decided and why, and whether anything needs you.

    Exit code: 0 running, waiting or paused, 3 not running, 4 unknown; with --check, 1 for what needs you.

    \b
    Examples:
      loopctl status
      loopctl status --json
      loopctl status --check || echo 'look into it'
    """
    from loop.cli.main import told
    from loop.reading.as_json import as_json
    from loop.reading.standing import status
    from store.errors import StoreError, StoreTooNew

    place = the_call().place()
    try:
        answer = status(place.run_dir, place.name, place.rounds)
    except StoreTooNew:
        raise
    except StoreError as error:
        told(error)
        context.exit(UNKNOWN)
    if the_call().json:
        print_json(as_json(answer))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in drawn(answer, Paper(sys.stdout), place.every)))
    if check:
        for need in answer.needs_you:
            warn(safe(need))
    context.exit(exit_code(answer, check))


def exit_code(answer: Standing, check: bool = False) -> int:
    """What `status` and `watch` end with."""
    if check and answer.needs_you:
        return FAILED
    return NOT_RUNNING if answer.pid is None else RUNNING


def drawn(answer: Standing, paper: Paper, every: str | None = None) -> Iterator[str]:
    """The lines for people. `every`: the schedule, as loop.toml has it."""
    yield _title(answer, paper)
    yield from paper.labelled(labelled(answer, every))


def _title(answer: Standing, paper: Paper) -> str:
    state, style = answer.state, STYLES.get(answer.state, "")
    parts = [
        f"{paper.styled_as('●' if answer.pid else '○', style)} {paper.styled_as(safe(answer.run or 'no run'), 'bold')}",
        paper.styled_as(safe(state), style),
        *doing(answer),
        paper.styled_as(f"as of {clock(answer.as_of)}", "dim"),
    ]
    return "   ".join(parts)
