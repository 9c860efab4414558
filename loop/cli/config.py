"""`loopctl config check`: everything about loop.toml that can be known without loading a model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from loop.cli.options import print_json, shared_options, the_call
from loop.errors import ConfigError
from loop.words import count, safe, warn

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig

_LINE = re.compile(r"(?P<file>.*?):(?P<line>\d+): (?:(?P<key>[^\s:]+): )?(?P<message>.*)")


@click.group("config")
@shared_options
def config_command() -> None:
    """Check loop.toml.

    \b
    Examples:
      loopctl config check
    """


@config_command.command("check")
@shared_options
@click.pass_context
def check_command(context: click.Context) -> None:
    """Validate loop.toml and what it names, without loading a model: a line for each mistake, then exit code 78.

    \b
    Examples:
      loopctl config check
      loopctl config check --config loop.toml --json
    """
    from loop.config.same_run import resolved
    from loop.inputs import read_inputs

    try:
        loaded = the_call().load()
        read_inputs(loaded, fetch=False)
    except ConfigError as error:
        mistakes = str(error).splitlines()
        if the_call().json:
            print_json({"ok": False, "mistakes": [_mistake(line) for line in mistakes]})
        else:
            for line in mistakes:
                warn(safe(line))
        context.exit(error.exit_code)
    from loop.watching.trackers import missing_in_words

    trackers = missing_in_words(loaded.config.watching.trackers)
    if the_call().json:
        print_json({"ok": True, "config": resolved(loaded.config), "warnings": [trackers] if trackers else []})
        return
    if trackers:
        warn(safe(trackers))
    click.echo(f"{loaded.file.place}: ok")
    for line in _summary(loaded):
        click.echo(f"  {safe(line)}")


def _mistake(line: str) -> dict[str, str | int | None]:
    """FILE:LINE: key: message, taken apart."""
    match = _LINE.fullmatch(line)
    if not match:
        return {"file": None, "line": None, "key": None, "message": line}
    return {"file": match["file"], "line": int(match["line"]), "key": match["key"], "message": match["message"]}


def _summary(loaded: LoadedConfig) -> tuple[str, str]:
    from loop.stages.evaluating import decoding_in_words

    config = loaded.config
    prompts = f"{config.prompts.per_round} prompts" if config.prompts.per_round else "all prompts"
    rounds = count(config.rounds, "round") if config.rounds else "rounds without end"
    first = (
        f"run {config.name}: {rounds} of {config.model.source}, "
        f"{prompts} of {config.prompts.source} x {config.sampling.num_samples} each, in {loaded.run_dir}"
    )
    decider = config.suite(config.decide.suite)
    others = [suite.name for suite in config.suites if suite.name != decider.name]
    gates = ", ".join(gate.type for gate in config.decide.gates)
    second = f"decides on pass@1 of {decider.name} ({config.decide.split}, {decoding_in_words(decider)}) by {gates}"
    return first, f"{second}; only reported: {', '.join(others) or 'nothing else'}"
