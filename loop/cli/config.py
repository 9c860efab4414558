"""`loopctl config check` checks all of loop.toml that can be checked without loading a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import Group, print_answer, print_json, the_call
from loop.errors import ConfigError
from loop.words import count, safe, warn

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig

DEFAULT = "default"
_LINE = re.compile(r"(?P<file>.*?):(?P<line>\d+): (?:(?P<key>[^\s:]+): )?(?P<message>.*)")


@click.group("config", cls=Group, examples=["loopctl config check"])
def config_command() -> None:
    """Check loop.toml, show what it comes to, and print its schema."""


@config_command.command("schema", examples=["loopctl config schema > loop.schema.json"])
def schema_command() -> None:
    """Print the JSON schema of loop.toml, by which editors complete and check it."""
    from loop.config.schema import schema

    print_json(schema())


@config_command.command("show", examples=["loopctl config show", "loopctl config show --resolved --json"])
@click.option("--resolved", is_flag=True, help="Every key, also those that loop.toml leaves out.")
def show_command(resolved: bool) -> None:
    """Print the keys of loop.toml with the values that count; with --resolved all keys, and where each value comes from."""
    from loop.config.same_run import resolved as settings_of
    from loop.config.toml_text import toml_value

    loaded = the_call().load()
    rows = [row for row in _rows(settings_of(loaded.config), loaded.file.tables) if resolved or row[2] != DEFAULT]
    shown = "\n".join(f"{key} = {toml_value(value)}  # {source}" for key, value, source in rows)
    print_answer(
        [{"key": key, "value": value, "from": source} for key, value, source in rows],
        lambda _: click.echo(safe(shown, lines=True)),
    )


def _rows(settings: dict[str, Any], given: Any, before: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each key by its whole name, with its value and where that comes from; what is left out without a default has none."""
    for key, value in settings.items():
        own = given.get(key) if isinstance(given, dict) else None
        if isinstance(value, dict) and value:
            yield from _rows(value, own, f"{before}{key}.")
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for number, each in enumerate(value):
                its = own[number] if isinstance(own, list) and number < len(own) else None
                yield from _rows(each, its, f"{before}{key}[{number}].")
        elif value is not None:
            yield f"{before}{key}", value, "loop.toml" if isinstance(given, dict) and key in given else DEFAULT


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
