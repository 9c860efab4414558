"""Every command takes `--config` and `--json`, before and after its name, and asks here where the run is.

A command that only reads needs one key of loop.toml, `run_dir`, and takes it without checking the rest. So it starts in
half the time, and works while the configuration is being edited.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop.config.place import Place, _quick_place
from loop.words import safe

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.config.settings import Decide

ROUND = click.IntRange(min=1)
ROUND.name = "round's number"  # in "'x' is not a valid ..."


@dataclass(slots=True)
class Call:
    """The shared options, as this call of loopctl has them."""

    config: str | None = None
    json: bool = False

    def load(self) -> LoadedConfig:
        """Read and check all of loop.toml."""
        from loop.config.loading import find_config, load_config

        return load_config(find_config(self.config))

    @property
    def has_config(self) -> bool:
        """Whether a configuration is named, or lies here."""
        return bool(self.config or os.environ.get("LOOP_CONFIG") or os.path.lexists("loop.toml"))

    def decide(self) -> Decide:
        """The [decide] of the configuration; without one, the default."""
        from loop.config.settings import Decide

        return self.load().config.decide if self.has_config else Decide(suite="")

    def place(self) -> Place:
        """Say where the run is. ConfigError if loop.toml does not, and, while no run exists, for any mistake in it."""
        path = Path(self.config or os.environ.get("LOOP_CONFIG") or "loop.toml")
        place = _quick_place(path)
        if place is None or not (place.run_dir / "loop.db").exists():
            loaded = self.load()
            schedule = loaded.config.schedule
            name, rounds = loaded.config.name, loaded.config.rounds
            return Place(loaded.path, loaded.run_dir, name, rounds, schedule.cron or schedule.every)
        return place


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    assert parameter.name is not None
    if value not in (None, False):
        setattr(context.find_root().ensure_object(Call), parameter.name, value)
    return value


CONFIG = "The configuration; default: $LOOP_CONFIG, then ./loop.toml."
SHARED_OPTIONS = [  # given twice, the later one counts
    click.Option(["--config"], metavar="FILE", expose_value=False, callback=_remember, help=CONFIG),
    click.Option(["--json"], is_flag=True, expose_value=False, callback=_remember, help="Print the answer as JSON."),
]


class Command(click.Command):
    """A command that takes the shared options, too. What it returns is the exit code; None stands for 0."""

    def __init__(self, *arguments: Any, examples: Iterable[str] = (), **settings: Any) -> None:
        """`examples` are command lines; its help ends with them."""
        super().__init__(*arguments, **settings)
        self.params += SHARED_OPTIONS
        if examples:
            lines = "\n".join(f"  {line}" for line in examples)
            self.help = f"{inspect.cleandoc(self.help or '')}\n\n\b\nExamples:\n{lines}"  # \b: click keeps the lines


class Group(Command, click.Group):
    """A command that has others below it."""

    command_class = Command


def command(name: str, *examples: str) -> Callable[[Callable[..., int | None]], Command]:
    """Make a `Command` of a function."""
    return click.command(name, cls=Command, examples=examples)


def checkpoint_names(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """Check one name or several, as a click callback: each is head, tip, base or a round's number."""
    for name in (value,) if isinstance(value, str) else value:
        if name not in ("head", "tip", "base") and not (name.isascii() and name.isdigit() and int(name)):
            raise click.BadParameter(f"{name!r} is neither head nor tip nor base nor a round's number")
    return value


def the_call() -> Call:
    """Return the options of the command that is running."""
    return click.get_current_context().find_root().ensure_object(Call)


def print_answer(value: Any, shown: str | Callable[[Any], object]) -> None:
    """Print a command's answer: `value` as JSON if that was asked for, else a line of text, or what a function prints of it."""
    if the_call().json:
        print_json(value)
    elif callable(shown):
        shown(value)
    else:
        click.echo(safe(shown))


def print_json(value: Any) -> None:
    """Print a JSON value in ASCII, so that nothing in it can move a cursor."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, ensure_ascii=True, allow_nan=False, indent=indent) + "\n")
