"""`loopctl config check` checks all of loop.toml that can be checked without loading a model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from loop.cli.options import Group, print_answer, print_json, the_call
from loop.errors import ConfigError
from loop.words import count, safe, warn

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig

_LINE = re.compile(r"(?P<file>.*?):(?P<line>\d+): (?:(?P<key>[^\s:]+): )?(?P<message>.*)")


@click.group("config", cls=Group, examples=["loopctl config check"])
def config_command() -> None:
    """Check loop.toml."""


@config_command.command("check", examples=["loopctl config check", "loopctl config check --config loop.toml --json"])
def check_command() -> int:
    """Validate loop.toml and what it names, without loading a model: a line for each mistake, then exit code 78."""
    from loop.config.same_run import resolved
    from loop.fitting.fit import doubts, fit_of
    from loop.inputs import read_inputs
    from loop.watching.trackers import missing_in_words

    try:
        loaded = the_call().load()
        inputs = read_inputs(loaded, fetch=False)
    except ConfigError as error:
        if not the_call().json:
            raise
        print_json({"ok": False, "mistakes": [_mistake(line) for line in str(error).splitlines()]})
        return error.exit_code
    trackers = missing_in_words(loaded.config.watching.trackers)
    # They depend on the machine, which may not be the one of the run: nothing is wrong with the file.
    warnings = ([trackers] if trackers else []) + doubts(fit_of(loaded, inputs.prompts))
    print_answer(
        {"ok": True, "config": resolved(loaded.config), "warnings": warnings}, lambda _: _print(loaded, warnings)
    )
    return 0


def _print(loaded: LoadedConfig, warnings: list[str]) -> None:
    from loop.stages.evaluating import decoding_in_words

    for warning in warnings:
        warn(safe(warning))
    config = loaded.config
    prompts = f"{config.prompts.per_round} prompts" if config.prompts.per_round else "all prompts"
    rounds = count(config.rounds, "round") if config.rounds else "rounds without end"
    first = (
        f"run {config.name}: {rounds} of {config.model.source}, "
        f"{prompts} of {config.prompts.source} x {config.sampling.num_samples} each, in {loaded.run_dir}"
    )
    decider = config.suite(config.decide.suite)
    others = ", ".join(suite.name for suite in config.suites if suite.name != decider.name) or "nothing else"
    gates = ", ".join(gate.type for gate in config.decide.gates)
    second = (
        f"decides on pass@1 of {decider.name} ({config.decide.split}, {decoding_in_words(decider)}) by {gates}; "
        f"only reported: {others}"
    )
    click.echo(f"{loaded.file.place}: ok\n  {safe(first)}\n  {safe(second)}")


def _mistake(line: str) -> dict[str, str | int | None]:
    """Take FILE:LINE: key: message apart."""
    if not (match := _LINE.fullmatch(line)):
        return {"file": None, "line": None, "key": None, "message": line}
    return match.groupdict() | {"line": int(match["line"])}
