"""`loopctl rounds` and `loopctl round N`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loop.cli.options import ROUND, print_json, shared_options, the_call
from loop.errors import LoopError
from loop.words import decoding_words, round_name, safe
from store.records import Json

if TYPE_CHECKING:
    from rich.table import Table


@click.command("rounds")
@shared_options
def rounds_command() -> None:
    """A row per round: its decision, the figure that decides, the other suites, the time.

    \b
    Examples:
      loopctl rounds
      loopctl rounds --json
    """
    from loop.reading.as_json import as_json
    from loop.reading.reader import reader
    from loop.reading.rounds import base_row, rows

    with reader(the_call().place().run_dir) as found:
        answer = as_json(rows(found))
        base = base_row(found)
        head = found.run.head_round
    if the_call().json:
        print_json(answer)
        return
    print_rounds(answer, base, head)


def print_rounds(answer: list[Json], base: Json, head: int) -> None:
    """The table of all rounds, and where the head is."""
    from loop.cli.tables import console, rounds_table, show

    out = console()
    decoding = next((decoding_words(row["suites"][name]["decoding"]) for row in answer for name in list(base)[:1]), "")
    show(out, rounds_table(answer, base, decoding))
    out.print(f"the head is {round_name(head)}")


@click.command("round")
@click.argument("number", metavar="N", type=ROUND)
@shared_options
def round_command(number: int) -> None:
    """All of round N: stages, times, settings, figures with intervals, the decision and each reason.

    \b
    Examples:
      loopctl round 1
      loopctl round 1 --json
    """
    from loop.reading.as_json import as_json
    from loop.reading.reader import reader
    from loop.reading.rounds import whole_round

    with reader(the_call().place().run_dir) as found:
        answer = as_json(whole_round(found, number))
        newest = len(found.ledger.rounds(found.run.id))
    if answer is None:
        there = f"there are rounds 1 to {newest}" if newest > 1 else f"there is {'one' if newest else 'none'} so far"
        raise LoopError(f"no round {number}: {there}; see `loopctl rounds`")
    if the_call().json:
        print_json(answer)
        return
    from loop.cli.tables import console, round_report, show

    out = console()
    show(out, round_report(answer, out.width))
    show(out, _details(answer))


def _details(answer: Json) -> Table:
    from rich.table import Table

    from loop.cli.tables import cell

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for stage in answer["stages"]:
        for attempt in stage["attempts"]:
            end = attempt["finished_at"] or "no end: interrupted, or still going on"
            line = cell(f"attempt {attempt['attempt']}: {attempt['started_at']} to {end}")
            if attempt["error"]:
                line.append(f"; failed: {safe(attempt['error'])}", "red")
            table.add_row(f"  {stage['stage']}", line)
    for name, settings in answer["settings"].items():
        shown = settings.items() if isinstance(settings, dict) else [("", settings)]
        table.add_row(f"  {name}", cell(", ".join(f"{key} {_setting(value)}".strip() for key, value in shown)))
    table.add_row("  checkpoints", cell(f"head {answer['parent'][:12]}, candidate {(answer['candidate'] or '-')[:12]}"))
    return table


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_setting(entry)}" for key, entry in value.items()) + "}"
    return "-" if value is None else safe(value)
