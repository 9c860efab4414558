"""What every command has in common: `--config` and `--json`, before and after the command, and where the run is.

A command that only reads needs one key of loop.toml, `run_dir`, and takes it without checking the rest. So it starts in
half the time, and works while the configuration is being edited.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from loop.config.place import Place, _quick_place
from loop.words import safe

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig

F = TypeVar("F", bound=Callable[..., Any])

ROUND = click.IntRange(min=1)
ROUND.name = "round's number"  # in "'x' is not a valid ..."


@dataclass(slots=True)
class Call:
    """The options that every command has."""

    config: str | None = None
    json: bool = False

    def load(self) -> LoadedConfig:
        """Read and check all of loop.toml."""
        from loop.config.loading import find_config, load_config

        return load_config(find_config(self.config))

    def place(self) -> Place:
        """Where the run is. ConfigError if loop.toml does not say, and, while no run exists, for any mistake in it."""
        path = Path(self.config or os.environ.get("LOOP_CONFIG") or "loop.toml")
        place = _quick_place(path)
        if place is None or not (place.run_dir / "loop.db").exists():
            loaded = self.load()
            return Place(loaded.path, loaded.run_dir, loaded.config.name, loaded.config.rounds)
        return place


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    assert parameter.name is not None
    if value not in (None, False):
        setattr(context.find_root().ensure_object(Call), parameter.name, value)
    return value


def shared_options(command: F) -> F:
    """`--config FILE` and `--json`; given twice, the later one counts."""
    for option in (
        click.option("--json", is_flag=True, expose_value=False, callback=_remember, help="Print the answer as JSON."),
        click.option(
            "--config",
            metavar="FILE",
            expose_value=False,
            callback=_remember,
            help="The configuration; default: $LOOP_CONFIG, then ./loop.toml.",
        ),
    ):
        command = option(command)
    return command


def checkpoint_names(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """A click callback that checks one name or several: each is head, base or a round's number."""
    for name in (value,) if isinstance(value, str) else value:
        if name not in ("head", "base") and not (name.isascii() and name.isdigit() and int(name)):
            raise click.BadParameter(f"{name!r} is neither head nor base nor a round's number")
    return value


def the_call() -> Call:
    """The options of the command that is running."""
    return click.get_current_context().find_root().ensure_object(Call)


def print_answer(value: Any, text: object) -> None:
    """Print a command's answer: `value` as JSON if that was asked for, else `text` on one line."""
    if the_call().json:
        print_json(value)
    else:
        click.echo(safe(text))


def print_json(value: Any) -> None:
    """Print a JSON value in ASCII, so that nothing in it can move a cursor."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, ensure_ascii=True, allow_nan=False, indent=indent) + "\n")
