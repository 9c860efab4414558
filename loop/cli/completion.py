"""`loopctl completion` prints what makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from loop.cli.options import command


@command(
    "completion",
    'eval "$(loopctl completion bash)"',
    "loopctl completion fish > loopctl.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion of SHELL.

    For bash and zsh a line in ~/.bashrc or ~/.zshrc evaluates it; for fish it is a file in ~/.config/fish/completions.
    """
    from loop.cli.main import loopctl

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(loopctl, {}, "loopctl", "_LOOPCTL_COMPLETE").source())
