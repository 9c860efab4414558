"""These commands change a run. The daemon or foreground run that holds it carries them out; if none does, this process does,
under the same lock.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import ROUND, command, print_answer, the_call
from loop.words import round_name, safe, size

if TYPE_CHECKING:
    from store.records import Json


def carry_out(name: str, **arguments: Any) -> Json:
    """Have the process that holds the run carry out a command, or do it here if none does. Prints and returns the answer."""
    answer = _carried_out(name, **arguments)
    print_answer(answer, answer["text"])
    return answer


def _carried_out(name: str, **arguments: Any) -> Json:
    from loop.daemon.control import NotRunning, ask

    with contextlib.suppress(NotRunning):  # a daemon keeps its configuration, whatever the file says meanwhile
        return ask(the_call().place().run_dir, name, **arguments)
    loaded = the_call().load()
    from loop.daemon import commands
    from loop.errors import LoopError
    from loop.system.lock import locked
    from store.db import DATABASE, open_database
    from store.ledger import Ledger

    if not (loaded.run_dir / DATABASE).exists():
        raise LoopError(f"no run in {loaded.run_dir} yet; start one with `loopctl start`")
    with locked(loaded.run_dir), contextlib.closing(open_database(loaded.run_dir / DATABASE)) as db:
        held = commands.HeldRun(Ledger(db), loaded.run_dir, loaded.config, alive=False)
        return commands.carry_out(held, {"command": name, **arguments})


@command("pause", "loopctl pause")
def pause_command() -> None:
    """Stop at the next safe point and begin nothing more until `loopctl resume`, even after a restart."""
    carry_out("pause")


@command("resume", "loopctl resume")
def resume_command() -> None:
    """Continue after a pause, whether by hand or because a stage failed."""
    carry_out("resume")


@command("rollback", "loopctl rollback --to best --dry-run", "loopctl rollback --to 1", "loopctl rollback --to base")
@click.option("--to", required=True, metavar="ROUND", help="A kept round's number, `base`, or `best`.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
def rollback_command(to: str, dry_run: bool) -> None:
    """Move the head: the next round starts from there. Nothing is deleted."""
    carry_out("rollback", to=to, dry_run=dry_run)


@command("pin", "loopctl pin 1")
@click.argument("number", metavar="ROUND", type=ROUND)
def pin_command(number: int) -> None:
    """Keep a round's checkpoint, whatever [storage] says."""
    carry_out("pin", round=number)


@command("unpin", "loopctl unpin 1")
@click.argument("number", metavar="ROUND", type=ROUND)
def unpin_command(number: int) -> None:
    """Let [storage] decide again whether a round's checkpoint stays."""
    carry_out("unpin", round=number)


@command("gc", "loopctl gc --dry-run", "loopctl gc")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed, and why the rest stays.")
def gc_command(dry_run: bool) -> None:
    """Remove the checkpoints that [storage] does not keep, and damaged copies."""
    answer = carry_out("gc", dry_run=dry_run)
    if the_call().json:
        return
    for row in answer["removed"]:
        click.echo(f"  {'would go' if dry_run else 'gone'}   {size(row['bytes']):>8}   {safe(row['path'])}")
    for row in answer["kept"] if dry_run else ():
        click.echo(f"  stays      {size(row['bytes']):>8}   {round_name(row['round'])}: {row['why']}")
