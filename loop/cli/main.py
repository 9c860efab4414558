"""loopctl imports a command when it is called, and ends every error with a line on stderr and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from loop.cli.options import Call, Group
from loop.system.exits import explained, version
from loop.words import safe, warn

# name -> module, what it does
COMMANDS = {
    "init": ("init", "Write a loop.toml that runs as it is."),
    "config": ("config", "Check loop.toml, show what it comes to, and print its schema."),
    "completion": ("completion", "Print what makes a shell complete commands and options."),
    "doctor": ("doctor", "Say what this machine can do, and what would help."),
    "estimate": ("estimate", "Say whether it fits: memory, disk and time of each stage."),
    "run": ("run", "Run rounds in the foreground."),
    "start": ("service", "Start the daemon in the background."),
    "stop": ("service", "Stop the daemon at its next safe point."),
    "restart": ("service", "Stop the daemon and start it again."),
    "status": ("status", "Say what is happening, what was decided and why, and whether anything needs you."),
    "watch": ("watch", "Show the status, live."),
    "serve": ("serve", "Serve the report as a page that updates itself."),
    "logs": ("logs", "Show what the daemon wrote into its log."),
    "pause": ("control", "Begin nothing more until `resume`, even after a restart."),
    "resume": ("control", "Continue after a pause or a failure."),
    "rounds": ("rounds", "List the rounds, a row for each."),
    "round": ("rounds", "Show all of one round."),
    "samples": ("samples", "Show completions from the corpus."),
    "report": ("report", "Write the run as one page that opens without a network."),
    "plot": ("report", "Draw one figure of the report as SVG or PNG."),
    "corpus": ("corpus", "Export the corpus as JSON lines or Parquet."),
    "export": ("export", "Export a checkpoint as a model directory with its card."),
    "track": ("track", "Send the rounds to experiment trackers."),
    "verify": ("verify", "Check every hash, sequence and manifest."),
    "rollback": ("control", "Move the head to an earlier round."),
    "pin": ("control", "Keep a round's checkpoint."),
    "unpin": ("control", "Let [storage] decide on a pinned checkpoint again."),
    "gc": ("control", "Remove the checkpoints that [storage] does not keep."),
    "backup": ("backup", "Copy the store while it is in use."),
    "service": ("service", "Print a systemd unit."),
    "slurm": ("slurm", "Print a batch file for SLURM."),
    "eval": ("eval", "Measure a model on a suite."),
    "suite": ("suite", "Make a suite and prompts from a repository with tests."),
    "grade": ("grade", "Grade completions without a store or a model."),
    "compare": ("compare", "Say whether B is better than A, from the results that other harnesses left."),
    "decide": ("decide", "Apply the configured policies to evidence in a file."),
    "replay": ("replay", "Decide every recorded round again, also under other policies."),
    "simulate": ("simulate", "Try the configured policies on whole runs whose truth is known, without a model."),
    "aa": ("measure", "Measure one checkpoint twice, to learn how small a gain the evaluation can see."),
    "sweep": ("measure", "Measure at several temperatures, to tell the effect of decoding from that of training."),
    "confirm": ("measure", "Look at the tip with more samples; what is shown becomes the head."),
    "final": ("measure", "Open the final split, once."),
    "experiment": ("experiment", "Run rounds under different settings and seeds, and compare them."),
}


class Commands(Group):
    """A group that imports a command's module only when the command is called, so that every command starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"loop.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"loopctl {version()}")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def loopctl() -> None:
    """Repeats rounds of Simple Self-Distillation on a code language model, and says what it did and why."""


def main() -> NoReturn:
    """Run `loopctl`; this is its entry point."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the program that started us has closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    if "_LOOPCTL_COMPLETE" in os.environ:
        loopctl.main(prog_name="loopctl")
    try:
        code = run(sys.argv[1:], loopctl, "loopctl")
        sys.stdout.flush()
    except BrokenPipeError:
        code = _quiet()
    except OSError as error:
        code = told(error)
        _quiet()
    sys.exit(code)


def run(arguments: list[str], command: click.Command, name: str) -> int:
    """Carry out a command line and return the exit code. Raises nothing but BrokenPipeError and SystemExit."""
    try:
        with command.make_context(name, arguments, obj=Call()) as context:
            return command.invoke(context) or 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except (BrokenPipeError, SystemExit):
        raise
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except BaseException as error:
        if os.environ.get("LOOP_TRACEBACK") == "1":
            import traceback

            traceback.print_exc()
        return told(error)


def told(error: BaseException) -> int:
    """Print what went wrong, a line for each mistake, and return the exit code."""
    code, text = explained(error)
    for line in text.splitlines() or [type(error).__name__]:
        warn(safe(line))
    return code


def _quiet() -> int:
    """Standard output has no reader any more: return SIGPIPE's exit code, and keep Python's flush at exit silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141


if __name__ == "__main__":
    main()
