"""`loopctl track` brings experiment trackers up to date. It only reads the run, so it works beside a daemon."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import click

from loop.cli.options import command, print_json, the_call
from loop.errors import LoopError
from loop.watching.trackers import EXTRA, TRACKERS, missing
from loop.words import safe

if TYPE_CHECKING:
    from store.records import Json


def _project(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    from loop.config.section import NAME

    if value is not None and not NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not a name; use letters, digits, '.', '_' and '-'")
    return value


@command("track", "loopctl track mlflow")
@click.argument("names", metavar="[TRACKER]...", nargs=-1, type=click.Choice(list(TRACKERS)))
@click.option("--project", metavar="NAME", callback=_project, help="Default: watching.project, then the run's name.")
def track_command(names: tuple[str, ...], project: str | None) -> None:
    """Send trackers the rounds that they lack, after the run is over or something went wrong.

    Without a name, those of watching.trackers. A tracker that has all rounds stays as it is.
    """
    from loop.system.ourselves import environment
    from loop.watching.tracker_thread import last_line, tracking_command
    from store.errors import NoStore

    loaded = the_call().load()
    names = tuple(dict.fromkeys(names or loaded.config.watching.trackers))
    if not names:
        raise LoopError("no tracker is named, and watching.trackers has none; give one: `loopctl track mlflow`")
    if lacking := missing(names):
        raise LoopError(f"{', '.join(lacking)}: not installed; {EXTRA}")
    if not (loaded.run_dir / "loop.db").exists():
        raise NoStore(f"{loaded.run_dir / 'loop.db'}: no such file")
    project = project or loaded.config.watching.project or loaded.config.name
    answer: list[Json] = []
    for name in names:
        log = loaded.run_dir / "logs" / f"tracker-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            done = subprocess.run(
                tracking_command(name, loaded.run_dir, project, anew=True),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=loaded.run_dir,
                env=environment(),
            )
        if done.returncode:
            raise LoopError(f"{name}: {last_line(log) or f'exit code {done.returncode}'}; {log} has all of it")
        answer.append({"tracker": name, "project": project, "directory": str(loaded.run_dir / "trackers" / name)})
        if not the_call().json:
            click.echo(f"{name}: up to date: project {safe(project)}")
    if the_call().json:
        print_json(answer)
