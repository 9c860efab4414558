"""`loopctl rounds` lists the rounds; `loopctl round N` shows all of one."""

from __future__ import annotations

import click

from loop.cli.options import ROUND, command, print_answer, the_call
from loop.errors import LoopError
from loop.words import decoding_words, round_name
from store.records import Json, Run

CARRIED = (
    "carried: not shown to be better yet, so the head stays, and the next round begins from it and is compared with the same head; "
    "into N: round N was shown to be better, with its gain in it; given up: its line ended, and the next round began from the head"
)


@command("rounds", "loopctl rounds", "loopctl rounds --json")
def rounds_command() -> None:
    """A row per round: its decision, the figure that decides, the other suites, the time."""
    from loop.reading.as_json import as_json
    from loop.reading.reader import reader
    from loop.reading.rounds import base_row, rows

    with reader(the_call().place().run_dir) as store:
        answer, base = as_json(rows(store)), base_row(store)
    print_answer(answer, lambda _: print_rounds(answer, base, store.run))


def print_rounds(answer: list[Json], base: Json, run: Run) -> None:
    """Print the table of all rounds, and where head and tip are."""
    from loop.cli.tables import cell, console, rounds_table, show

    out = console()
    decoding = decoding_words(answer[0]["suites"][next(iter(base))]["decoding"]) if answer else ""
    show(out, rounds_table(answer, base, decoding, out.width))
    tip = f"; the tip, not shown yet, is {round_name(run.tip_round)}" if run.depth else ""
    out.print(f"the head is {round_name(run.head_round)}{tip}")
    if any(row["carried"] for row in answer):
        out.print(cell(CARRIED, "dim"))


@command("round", "loopctl round 1", "loopctl round 1 --json")
@click.argument("number", metavar="N", type=ROUND)
def round_command(number: int) -> None:
    """All of round N: stages, times, settings, figures with intervals, the decision and each reason."""
    from loop.reading.as_json import as_json
    from loop.reading.reader import reader
    from loop.reading.rounds import whole_round

    with reader(the_call().place().run_dir) as store:
        answer = as_json(whole_round(store, number))
        newest = len(store.ledger.rounds(store.run.id))
    if answer is None:
        others = f"there are rounds 1 to {newest}" if newest > 1 else f"there is {'one' if newest else 'none'} so far"
        raise LoopError(f"no round {number}: {others}; see `loopctl rounds`")
    print_answer(answer, _print_round)


def _print_round(answer: Json) -> None:
    from loop.cli.tables import console, round_details, round_report, show

    out = console()
    show(out, round_report(answer, out.width))
    show(out, round_details(answer))
