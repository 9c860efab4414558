"""`loopctl decide` applies the configured policies to evidence in a file. It reads no store and moves no head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import command, print_answer, the_call
from loop.errors import LoopError
from loop.words import count, round_name, safe

if TYPE_CHECKING:
    from policies.decision import Decision


@command("decide", "loopctl decide --evidence evidence.json", "loopctl decide --evidence - --json < evidence.json")
@click.option("--evidence", "file", required=True, metavar="FILE", help='A JSON object; "-": standard input.')
def decide_command(file: str) -> None:
    """Apply the configured policies to the evidence in FILE; without a loop.toml, the default ones."""
    from policies.evidence import BadEvidence, read_evidence

    policy = the_call().decide().policy()  # a mistake in loop.toml is told before standard input is waited for
    with click.open_file(file, "rb") as opened:
        content = opened.read().removeprefix(b"\xef\xbb\xbf")
    try:
        decision = policy.decide(read_evidence(content))
    except BadEvidence as error:
        raise LoopError(f"{file}: {error}") from None
    print_answer(decision.model_dump(mode="json"), lambda _: _print(decision))


def _print(decision: Decision) -> None:
    then = f", then {decision.action}" if decision.action != decision.verdict else ""
    click.echo(f"{decision.verdict}{then}{': ' + need_in_words(decision.need) if decision.need else ''}")
    for gate in decision.gates:
        click.echo(f"  {gate.verdict}: {safe(gate.type)}: {safe(gate.reason)}")


def need_in_words(need: Mapping[str, Any]) -> str:
    """Say what an action asks for, or what it means."""
    match need:
        case {"split": split, "num_problems": number}:
            return f"asks for {count(number, 'more problem', 'more problems')} of {safe(split)}"
        case {"split": split}:
            return f"asks for the split {safe(split)}"
        case {"suites": suites}:
            return f"asks for {', '.join(map(safe, suites))}"
        case {"head": round}:
            return f"the head goes back to {round_name(round)}"
        case {"not_inferior_by": margin}:
            return f"no gain is shown, but a loss of more than {margin:g} is ruled out"
    return ", ".join(f"{safe(key)} {safe(value)}" for key, value in need.items())
