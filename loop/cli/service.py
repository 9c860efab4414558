"""`loopctl start | stop | restart` handle the background daemon; `loopctl service` prints a unit for systemd."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from loop.cli.options import command, print_answer, the_call
from loop.words import safe

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig

PATIENCE_S = 8.0  # `start` waits for the daemon's answer for as long; while it prepares a model, it gives none


class Done(NamedTuple):
    """What came of starting or stopping: the process that it was about, words, and whether anything changed."""

    pid: int
    text: str
    changed: bool

    def tell(self) -> None:
        """Print it."""
        print_answer(self._asdict(), self.text)


now_option = click.option("--now", is_flag=True, help="Interrupt the stage; it continues later from what is stored.")


@command("start", "loopctl start")
def start_command() -> None:
    """Start the daemon in the background. It goes on where the run was left."""
    _start(the_call().load()).tell()


@command("stop", "loopctl stop", "loopctl stop --now")
@now_option
def stop_command(now: bool) -> None:
    """Stop the daemon at its next safe point, and wait for that."""
    _stop(the_call().place().run_dir, now).tell()


@command("restart", "loopctl restart")
@now_option
def restart_command(now: bool) -> None:
    """Stop the daemon at its next safe point and start it again, with loop.toml as it is now."""
    from loop.inputs import read_inputs

    loaded = the_call().load()
    read_inputs(loaded, fetch=False)
    _stop(loaded.run_dir, now)
    _start(loaded).tell()


@command("service", "loopctl service", "loopctl service > loopd.service")
def service_command() -> None:
    """Print a systemd unit for this configuration."""
    unit = _unit(the_call().load())
    print_answer({"unit": unit}, lambda _: click.echo(unit, nl=False))


def _start(loaded: LoadedConfig) -> Done:
    from loop.inputs import read_inputs
    from loop.system import ourselves
    from loop.system.lock import holder

    if (pid := holder(loaded.run_dir)) is not None:
        return Done(pid, f"already running (process {pid})", False)
    read_inputs(loaded, fetch=False)
    log = loaded.run_dir / "logs" / "loopd.err"  # of the last start only
    log.unlink(missing_ok=True)
    words = ourselves.command("loop.daemon", "--quiet", "--config", loaded.path)
    pid, how = ourselves.start_in_background(
        words, log, "the daemon", lambda pid: _answers(loaded.run_dir) == pid, PATIENCE_S
    )
    if how == "done":
        return Done(pid, "the run has nothing to do; `loopctl status` says why", False)
    preparing = "; it is still preparing: `loopctl status`" if how == "preparing" else ""
    return Done(pid, f"started (process {pid}){preparing}", True)


def _answers(run_dir: Path) -> int | None:
    """Return the process that answers on the control socket; None if none does."""
    from loop.daemon.control import ask
    from loop.errors import LoopError

    with contextlib.suppress(LoopError):
        return int(ask(run_dir, "ping", timeout_s=1.0)["pid"])
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

    return stopped(stop_holder(run_dir, tell_it, say))


def stopped(pid: int | None) -> Done:
    """Say what came of stopping the process that held a directory; None: no process held it."""
    return Done(0, "not running", False) if pid is None else Done(pid, "stopped", True)


def _doing(run_dir: Path) -> str:
    from loop.system.heartbeat import read_heartbeat

    beat = read_heartbeat(run_dir)
    if beat is None:
        return "waiting for a safe point"
    done = f", {beat.done}/{beat.total}" if beat.done is not None and beat.total else ""
    return f"waiting for a safe point: round {beat.round}, {safe(beat.stage)}{done}"


def _unit(loaded: LoadedConfig) -> str:
    """Write a unit with a watchdog, which stops at a safe point and restarts after a crash, but not after a mistake."""
    import os
    import pwd
    import shutil

    ours = Path(sys.executable).with_name("loopd")
    loopd = str(ours) if ours.exists() else shutil.which("loopd")
    program = _quoted(loopd) if loopd else f"{_quoted(sys.executable)} -P -m loop.daemon"
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
        f"User={pwd.getpwuid(os.getuid()).pw_name}",
        f"WorkingDirectory={str(loaded.base_dir).replace('%', '%%')}",
        *([f"Environment={_quoted(f'XDG_CACHE_HOME={cache}')}"] if cache else []),
        f"ExecStart={program} --config {_quoted(str(loaded.path))}",
        "Restart=on-failure",
        "RestartSec=30",
        "# A mistake in the configuration, a missing right or a run that somebody else holds does not mend by itself.",
        "RestartPreventExitStatus=2 75 77 78",
        "WatchdogSec=10min",
        "# A first converted or fetched model may take its time.",
        "TimeoutStartSec=infinity",
        "# loopd stops at a safe point, at the latest after daemon.stop_grace_s.",
        "KillMode=mixed",
        f"TimeoutStopSec={int(loaded.config.daemon.stop_grace_s) + 60}",
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
