"""`loopctl decide`: the configured policies applied to evidence in a file. Reads no store and moves no head."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import Call, print_json, shared_options, the_call
from loop.errors import LoopError
from loop.words import count, round_name, safe

if TYPE_CHECKING:
    from loop.config.settings import Decide


@click.command("decide")
@click.option("--evidence", "file", required=True, metavar="FILE", help='A JSON object; "-": standard input.')
@shared_options
def decide_command(file: str) -> None:
    """Apply the configured policies to the evidence in FILE; without a loop.toml, the default ones.

    \b
    Examples:
      loopctl decide --evidence evidence.json
      loopctl decide --evidence - --json < evidence.json
    """
    from policies.evidence import BadEvidence, read_evidence

    policy = configured(the_call()).policy()
    content = _read(file)
    try:
        decision = policy.decide(read_evidence(content))
    except BadEvidence as error:
        raise LoopError(f"{file}: {error}") from None
    if the_call().json:
        print_json(decision.model_dump(mode="json"))
        return
    then = f", then {decision.action}" if decision.action != decision.verdict else ""
    click.echo(f"{decision.verdict}{then}{': ' + need_in_words(decision.need) if decision.need else ''}")
    for gate in decision.gates:
        click.echo(f"  {gate.verdict}: {safe(gate.type)}: {safe(gate.reason)}")


def need_in_words(need: Mapping[str, Any]) -> str:
    """What an action asks for, or what it means."""
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


def configured(call: Call) -> Decide:
    """The [decide] that the call names; without a loop.toml the default one."""
    from loop.config.settings import Decide

    if call.config or os.environ.get("LOOP_CONFIG") or os.path.lexists("loop.toml"):
        return call.load().config.decide
    return Decide(suite="")


def _read(file: str) -> bytes:
    with click.open_file(file, "rb") as opened:
        content: bytes = opened.read()
    return content.removeprefix(b"\xef\xbb\xbf")
