"""`loopctl start | stop | restart | service`: the background daemon, and a unit file for those who have systemd."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from loop.cli.options import print_json, shared_options, the_call
from loop.words import safe

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig

PATIENCE_S = 8.0  # so long `start` waits for the daemon to answer; one that prepares a model answers later


class Done(NamedTuple):
    """What came of starting or stopping: whose process, in words, and whether anything changed."""

    pid: int
    text: str
    changed: bool


@click.command("start")
@shared_options
def start_command() -> None:
    """Start the daemon in the background. It goes on where the run was left.

    \b
    Examples:
      loopctl start
    """
    tell(_start(the_call().load()))


@click.command("stop")
@click.option("--now", is_flag=True, help="Interrupt the stage that is going on; it is done again later.")
@shared_options
def stop_command(now: bool) -> None:
    """Stop the daemon at its next safe point, and wait for that.

    \b
    Examples:
      loopctl stop
      loopctl stop --now
    """
    tell(_stop(the_call().place().run_dir, now))


@click.command("restart")
@click.option("--now", is_flag=True, help="Interrupt the stage that is going on; it is done again later.")
@shared_options
def restart_command(now: bool) -> None:
    """Stop the daemon at its next safe point and start it again, with loop.toml as it is now.

    \b
    Examples:
      loopctl restart
    """
    from loop.inputs import read_inputs

    loaded = the_call().load()
    read_inputs(loaded, fetch=False)
    _stop(loaded.run_dir, now)
    tell(_start(loaded))


@click.command("service")
@shared_options
def service_command() -> None:
    """Print a systemd unit for this configuration.

    \b
    Examples:
      loopctl service
      loopctl service > loopd.service
    """
    loaded = the_call().load()
    unit = unit_of(loaded)
    if the_call().json:
        print_json({"unit": unit})
    else:
        click.echo(unit, nl=False)


def tell(done: Done) -> None:
    """Print it."""
    if the_call().json:
        print_json(done._asdict())
    else:
        click.echo(safe(done.text))


def _start(loaded: LoadedConfig) -> Done:
    from loop.inputs import read_inputs
    from loop.system.lock import holder
    from loop.system.ourselves import command, start_in_background

    if (pid := holder(loaded.run_dir)) is not None:
        return Done(pid, f"already running (process {pid})", False)
    read_inputs(loaded, fetch=False)
    log = loaded.run_dir / "logs" / "loopd.err"  # of the last start only
    log.unlink(missing_ok=True)
    words = command("loop.daemon", "--quiet", "--config", loaded.path)
    pid, how = start_in_background(words, log, "the daemon", lambda pid: _answers(loaded.run_dir) == pid, PATIENCE_S)
    if how == "done":
        return Done(pid, "the run has nothing to do; `loopctl status` says why", False)
    preparing = "; it is still preparing: `loopctl status`" if how == "preparing" else ""
    return Done(pid, f"started (process {pid}){preparing}", True)


def _answers(run_dir: Path) -> int | None:
    """The process that answers on the control socket; None if none does."""
    from loop.daemon.control import ask
    from loop.errors import LoopError

    with contextlib.suppress(LoopError):
        answer: dict[str, Any] = ask(run_dir, "ping", timeout_s=1.0)
        return int(answer["pid"])
    return None


def _stop(run_dir: Path, now: bool) -> Done:
    from loop.daemon.control import NotRunning, ask
    from loop.system.ourselves import stop_holder, terminate

    def tell_it(pid: int) -> None:
        try:
            click.echo(safe(ask(run_dir, "stop", now=now)["text"]), err=True)
        except NotRunning:  # it is preparing, or ending
            terminate(pid)

    def say() -> None:
        click.echo(f"{_doing(run_dir)}; `loopctl stop --now` interrupts it", err=True)

    pid = stop_holder(run_dir, tell_it, say)
    return Done(0, "not running", False) if pid is None else Done(pid, "stopped", True)


def _doing(run_dir: Path) -> str:
    from loop.system.heartbeat import read_heartbeat

    beat = read_heartbeat(run_dir)
    if beat is None:
        return "waiting for a safe point"
    done = f", {beat.done}/{beat.total}" if beat.done is not None and beat.total else ""
    return f"waiting for a safe point: round {beat.round}, {safe(beat.stage)}{done}"


def unit_of(loaded: LoadedConfig) -> str:
    """A systemd unit: Type=notify with a watchdog, stopped at a safe point, restarted after a crash and not after a mistake."""
    import os
    import pwd
    import shutil

    found = Path(sys.executable).with_name("loopd")
    loopd = str(found) if found.exists() else shutil.which("loopd")
    command = _quoted(loopd) if loopd else f"{_quoted(sys.executable)} -P -m loop.daemon"
    grace = int(loaded.config.daemon.stop_grace_s) + 60
    user = pwd.getpwuid(os.getuid()).pw_name
    cache = os.environ.get("XDG_CACHE_HOME")
    lines = [
        "# `loopctl service | sudo tee /etc/systemd/system/loopd.service`, then `sudo systemctl enable --now loopd`.",
        "# Without root: remove User=, put default.target below, write ~/.config/systemd/user/loopd.service, enable with --user.",
        "[Unit]",
        f"Description=Self-distillation run {loaded.config.name}",
        "After=network.target",
        "StartLimitIntervalSec=1h",
        "StartLimitBurst=10",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"User={user}",
        f"WorkingDirectory={str(loaded.base_dir).replace('%', '%%')}",
        *([f"Environment={_quoted(f'XDG_CACHE_HOME={cache}')}"] if cache else []),
        f"ExecStart={command} --config {_quoted(str(loaded.path))}",
        "Restart=on-failure",
        "RestartSec=30",
        "# A mistake in the configuration, a missing right or a run that somebody else holds does not mend by itself.",
        "RestartPreventExitStatus=2 75 77 78",
        "WatchdogSec=10min",
        "# A first converted or fetched model may take its time.",
        "TimeoutStartSec=infinity",
        "# loopd stops at a safe point, at the latest after daemon.stop_grace_s.",
        "KillMode=mixed",
        f"TimeoutStopSec={grace}",
        "# A worker that runs out of memory is tried again by loopd; it must not take loopd with it.",
        "OOMPolicy=continue",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(letter in escaped for letter in " \t;'\"\\") else escaped
