"""`loopctl suite from-repo` makes problems and prompts from a repository with tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import Group, print_answer
from loop.words import count, safe

if TYPE_CHECKING:
    from loop.mining.suite import Wishes

_EXAMPLE = "loopctl suite from-repo shop --out shop-suite"
PYTHON = click.option(
    "--python",
    type=click.Path(path_type=Path),
    help="The interpreter that has the repository's packages and pytest. Default: that of its .venv, else one is made from its files.",
)


@click.group("suite", cls=Group, examples=[_EXAMPLE])
def suite_command() -> None:
    """Make a suite and prompts from a repository with tests."""


@suite_command.command("from-repo", examples=[_EXAMPLE])
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The directory to write; an earlier one is replaced.",
)
@PYTHON
@click.option(
    "--train",
    default=0.3,
    type=click.FloatRange(0.0, 1.0),
    show_default=True,
    help="The share of files whose problems become training prompts.",
)
@click.option("--min-lines", default=2, type=click.IntRange(1), show_default=True, help="Shorter bodies are left out.")
@click.option("--max-lines", default=60, type=click.IntRange(1), show_default=True, help="Longer bodies are left out.")
@click.option(
    "--test-timeout",
    default=60.0,
    type=click.FloatRange(0.1),
    show_default=True,
    help="Seconds after which a test counts as failed.",
)
@click.option("--weak", is_flag=True, help="Take functions, too, whose tests let a wrong body pass.")
def from_repo_command(path: Path, out: Path, **options: Any) -> None:
    """Make problems and prompts from the repository at PATH.

    Its tests run in a sandbox on a copy: nothing in PATH is changed, nothing reaches the network. A function becomes a problem if its
    own body passes three times, a stub fails, and wrong bodies of four kinds fail. The other functions become prompts.
    """
    facts = made(path, out, options)
    print_answer(
        facts,
        lambda _: click.echo(
            "\n".join([*words_of(facts), f"wrote {safe(out)}: problems.jsonl, prompts.jsonl, page.html"])
        ),
    )


def made(path: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Make the suite, with a line on stderr for each step."""
    from loop.mining.suite import Wishes, make_suite

    wishes: Wishes = Wishes(
        python=options["python"],
        train=options["train"],
        min_lines=options["min_lines"],
        max_lines=options["max_lines"],
        test_timeout_s=options["test_timeout"],
        weak=options["weak"],
    )
    return make_suite(path, out, wishes, lambda text: click.echo(text, err=True))


def words_of(facts: dict[str, Any]) -> list[str]:
    """What was taken and what was left out, most frequent reasons first."""
    reasons: dict[str, int] = {}
    for reason in facts["left_out"].values():
        reasons[reason.partition(":")[0]] = reasons.get(reason.partition(":")[0], 0) + 1
    most = sorted(reasons.items(), key=lambda pair: -pair[1])[:6]
    near = f"{facts['largest_group']:,} of the problems are in files that hold near copies of each other: they stay in one split"
    return [
        f"{safe(facts['name'])}: {count(facts['num_problems'], 'problem')} of {count(facts['num_functions'], 'function')}, "
        f"{facts['num_apart']:,} graded apart; {count(facts['num_prompts'], 'prompt')}, {facts['num_prompts_with_tests']:,} with tests",
        f"  tests      {facts['num_tests']:,} pass each time, in {facts['tests_s']:g} s; {len(facts['tests_left_out']):,} left out",
        "  left out   " + (", ".join(f"{num:,} {safe(reason)}" for reason, num in most) or "none"),
        *(
            [f"  note       {near}"]
            if facts["num_groups"] > 1 and 2 * facts["largest_group"] > facts["num_problems"]
            else []
        ),
    ]
