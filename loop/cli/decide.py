"""`loopctl decide`: the configured policies applied to evidence in a file. Reads no store and moves no head."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from loop.cli.call import Call, print_json, shared_options, the_call
from loop.cli.text import safe
from loop.errors import LoopError

if TYPE_CHECKING:
    from loop.config import Decide


@click.command("decide")
@click.option("--evidence", "file", required=True, metavar="FILE", help='A JSON object; "-": standard input.')
@shared_options
def decide_command(file: str) -> None:
    """Apply the configured policies to the evidence in FILE; without a loop.toml, the policy that it has by default."""
    from policies.evidence import BadEvidence, read_evidence

    policy = _configured(the_call()).policy()
    content = _read(file)
    try:
        decision = policy.decide(read_evidence(content))
    except BadEvidence as error:
        raise LoopError(f"{file}: {error}") from None
    if the_call().json:
        print_json(decision.model_dump(mode="json"))
        return
    click.echo(decision.verdict + (f", then {decision.action}" if decision.action != decision.verdict else ""))
    for gate in decision.gates:
        click.echo(f"  {gate.verdict}: {safe(gate.type)}: {safe(gate.reason)}")


def _configured(call: Call) -> Decide:
    from loop.config import Decide

    if call.config or os.environ.get("LOOP_CONFIG") or os.path.lexists("loop.toml"):
        return call.load().config.decide
    return Decide(suite="")


def _read(file: str) -> bytes:
    with click.open_file(file, "rb") as opened:
        content: bytes = opened.read()
    return content
