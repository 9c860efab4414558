"""`loopctl replay`: every recorded round decided again. Only reads, so it works beside a daemon."""

from __future__ import annotations

import click

from loop.cli.options import print_json, shared_options, the_call
from loop.errors import LoopError
from loop.words import count, safe
from store.records import Json


@click.command("replay")
@shared_options
def replay_command() -> None:
    """Decide every recorded round again, under the policy stored with it and under the configured one.

    \b
    Examples:
      loopctl replay
      loopctl replay --config stricter.toml
    """
    from loop.reading.reader import reader
    from loop.reading.replaying import replay

    loaded = the_call().load()
    with reader(loaded.run_dir) as store:
        answer = {"run": store.run.name, **replay(store.ledger.decisions(store.run.id), loaded.config.decide.policy())}
    if the_call().json:
        print_json(answer)
    else:
        _print(answer)
    if num := answer["summary"]["num_different"]:
        raise LoopError(f"{count(num, 'round')} decided differently under the policy stored with it: not reproducible")


def _print(answer: Json) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from loop.cli.tables import cell, console, show

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("round", justify="right")
    table.add_column("recorded", no_wrap=True)
    table.add_column("its own policy", overflow="fold")
    table.add_column("this policy", overflow="fold")
    table.add_column("what changes", overflow="fold")
    for row in answer["rounds"]:
        stored, replayed = row["stored"], row["replayed"]
        table.add_row(
            str(row["round"]),
            _said(row["recorded"]),
            cell("identical" if stored["identical"] else safe(stored["difference"] or stored["problem"])),
            _said(replayed),
            cell(_with_need(replayed)),
        )
    out = console()
    if answer["rounds"]:
        show(out, table)
    summary = answer["summary"]
    parts = [count(summary["num_rounds"], "round"), f"{summary['num_identical']} identical"]
    for key, words in (("num_different", "different"), ("num_unreadable", "not decided again: of another version")):
        if summary[key]:
            parts.append(f"{summary[key]} {words}")
    parts.append(f"{summary['num_changed']} changed under this policy")
    if summary["num_undecided"]:
        parts.append(f"{summary['num_undecided']} cannot be decided under it")
    click.echo(", ".join(parts) + (f"; {summary['note']}" if summary["num_changed"] else ""))


def _said(decision: Json) -> str:
    verdict, action = decision["verdict"], decision["action"]
    if verdict is None:
        return "-"
    return f"{verdict}" + (f", {action.replace('_', ' ')}" if action != verdict else "")


def _with_need(replayed: Json) -> str:
    from loop.cli.decide import need_in_words

    words = safe(replayed["change"])
    return f"{words} ({need_in_words(replayed['need'])})" if replayed["changed"] and replayed["need"] else words
