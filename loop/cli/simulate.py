"""`loopctl simulate`: whole runs under the configured policies, without a store or a model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loop.cli.options import command, print_json, the_call
from loop.words import safe, warn

if TYPE_CHECKING:
    from loop.experiments.simulating import Row
    from loop.experiments.worlds import World


@command("simulate", "loopctl simulate --runs 20", "loopctl simulate --runs 5 --seed 2 --json")
@click.option(
    "--worlds",
    "file",
    metavar="FILE",
    help="A JSON or TOML list of worlds; default: those of loop.toml's sizes, then those that are shipped.",
)
@click.option(
    "--runs", "num_runs", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Runs of each."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True)
def simulate_command(file: str | None, num_runs: int, seed: int) -> None:
    """Run the configured policies in worlds whose truth is known: how much of what rounds gain do they pass on, and at what risk?

    Beside them stand three rules: keep whatever scores higher, roll back whatever is not shown, and no gates at all. Without a
    loop.toml, the default policies; with it, worlds of its sizes come first, in which each round gains target_gain, half of it,
    or nothing. A world is {name, gains, num_problems, num_samples, num_rounds}, and if wanted difficulty, churn and
    select_share; gains are by depth, as rates, and the last one repeats.
    """
    from loop.experiments.simulating import not_simulated, rows, rules_of
    from loop.experiments.worlds import SHIPPED, read_worlds

    decide = the_call().decide()
    worlds = (*_own_worlds(), *SHIPPED) if file is None else read_worlds(Path(file))
    for world in worlds:  # all mistakes come before any work
        rules_of(decide, world)
    for what in not_simulated(decide):
        warn(f"not simulated: {safe(what)}")
    answer = rows(worlds, decide, num_runs, seed)
    if the_call().json:
        for row in answer:
            print_json(row)
    else:
        _print(answer)


def _own_worlds() -> tuple[World, ...]:
    """Worlds of the sizes of loop.toml; none, with a warning, where its suite cannot be read here."""
    from loop.errors import LoopError
    from loop.experiments.worlds import own_worlds

    if not the_call().has_config:
        return ()
    try:
        return own_worlds(the_call().load())
    except LoopError as error:
        warn(f"no worlds of the configured sizes: {safe(error)}")
        return ()


def _print(rows: Iterable[Row]) -> None:
    """A table for each world, as soon as it is there."""
    from rich.table import Column

    from loop.cli.tables import cell, console, plain_table, show

    out, names = console(), ("head's gain", "sd", "tip's", "kept", "worthless", "damage", "completions")
    for world, under in groupby(rows, lambda row: row["world"]):
        of_world = list(under)
        out.print(cell(f"{safe(world)}: at most {_points(of_world[0]['possible_gain'])}", "bold"))
        table = plain_table("rule", *(Column(name, justify="right", no_wrap=True) for name in names))
        for row in of_world:
            table.add_row(
                cell(row["rule"]),
                _points(row["head_gain_mean"]),
                f"{row['head_gain_sd'] * 100:.1f}",
                _points(row["tip_gain_mean"]),
                f"{row['num_kept_mean']:.1f}",
                f"{row['worthless_keep_share']:.1%}",
                f"{row['damage_mean'] * 100:.2f}",
                f"{row['num_completions_mean']:,.0f}",
            )
        show(out, table)
        out.print()
    out.print(
        "gains and damage in points of pass@1; tip's: of what the next round would begin from; kept: rounds of a run; worthless: runs that kept what was no better"
    )


def _points(gain: float) -> str:
    return f"{gain * 100:+.1f}pp"
