"""`loopctl replay` decides every recorded round again. It only reads, so it works beside a daemon."""

from __future__ import annotations

import click

from loop.cli.options import command, print_answer, the_call
from loop.errors import LoopError
from loop.words import count, safe
from store.records import Json


@command("replay", "loopctl replay", "loopctl replay --config stricter.toml")
def replay_command() -> None:
    """Decide every recorded round again, under the policy stored with it and under the configured one."""
    from loop.config.same_run import with_stored_gates
    from loop.reading.reader import reader
    from loop.reading.replaying import replay

    loaded = the_call().load()
    with reader(loaded.run_dir) as store:
        policy = with_stored_gates(loaded.config, store.run.config).decide.policy()
        answer = {"run": store.run.name, **replay(store.ledger.decisions(store.run.id), policy)}
    print_answer(answer, _print)
    if num := answer["summary"]["num_different"]:
        raise LoopError(f"{count(num, 'round')} decided differently under the policy stored with it: not reproducible")


def _print(answer: Json) -> None:
    from rich.table import Column

    from loop.cli.tables import cell, console, headed_table, show

    table = headed_table(
        Column("round", justify="right"),
        Column("recorded", no_wrap=True),
        *(Column(name, overflow="fold") for name in ("its own policy", "this policy", "what changes")),
    )
    for row in answer["rounds"]:
        stored, replayed = row["stored"], row["replayed"]
        table.add_row(
            str(row["round"]),
            _in_words(row["recorded"]),
            cell("identical" if stored["identical"] else safe(stored["difference"] or stored["problem"])),
            _in_words(replayed),
            cell(_with_need(replayed)),
        )
    if answer["rounds"]:
        show(console(), table)
    summary = answer["summary"]
    parts = [count(summary["num_rounds"], "round"), f"{summary['num_identical']} identical"]
    for key, words in (("num_different", "different"), ("num_unreadable", "not decided again: of another version")):
        if summary[key]:
            parts.append(f"{summary[key]} {words}")
    parts.append(f"{summary['num_changed']} changed under this policy")
    if summary["num_undecided"]:
        parts.append(f"{summary['num_undecided']} cannot be decided under it")
    click.echo(", ".join(parts) + (f"; {summary['note']}" if summary["num_changed"] else ""))


def _in_words(decision: Json) -> str:
    verdict, action = decision["verdict"], decision["action"]
    if verdict is None or action == verdict:
        return verdict or "-"
    return f"{verdict}, {action.replace('_', ' ')}"


def _with_need(replayed: Json) -> str:
    from loop.cli.decide import need_in_words

    words = safe(replayed["change"])
    return f"{words} ({need_in_words(replayed['need'])})" if replayed["changed"] and replayed["need"] else words
