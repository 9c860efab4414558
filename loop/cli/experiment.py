"""`loopctl experiment run | start | status | stop | report`: rounds under different settings and seeds, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import print_json, shared_options, the_call
from loop.cli.service import Done, tell
from loop.words import count, decoding_words, duration, interval, rate, safe, signed, size, warn

if TYPE_CHECKING:
    from loop.experiments.facts import ExperimentFacts
    from loop.experiments.file import Experiment
    from store.records import Json

LOG = "experiment.log"  # in the experiment's logs/
PATIENCE_S = 10.0  # so long `start` waits until it is under way

file_argument = click.argument("file", metavar="FILE", type=click.Path(path_type=Path, readable=False))
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time; default: as FILE says."
)


@click.group("experiment")
@shared_options
def experiment_command() -> None:
    """Rounds under different settings and seeds, with what they have in common done once.

    \b
    Examples:
      loopctl experiment run --dry-run temperatures.toml
      loopctl experiment run temperatures.toml
      loopctl experiment status temperatures.toml
    """


@experiment_command.command("run")
@file_argument
@jobs_option
@click.option("--dry-run", is_flag=True, help="Only say what it would take: stages, how many are shared, time, disk.")
@shared_options
def run_command(file: Path, jobs: int | None, dry_run: bool) -> None:
    """Run all arms and seeds of FILE in the foreground, then compare them. Continues where it was left.

    \b
    Examples:
      loopctl experiment run --dry-run temperatures.toml
      loopctl experiment run temperatures.toml --jobs 2
    """
    from loop.errors import LoopError
    from loop.experiments.facts import experiment_facts
    from loop.experiments.running import Supervisor, machine_for
    from loop.system.signals import Stop

    experiment = _load(file, whole=True)
    machine = machine_for(experiment, jobs)
    if dry_run:
        from loop.experiments.planning import plan_of

        _tell_plan(plan_of(experiment, machine))
        return
    stop, say = Stop(at_once=False), _clocked()
    with stop.listening():
        failed = Supervisor(experiment, machine, say, stop).run()
    _show(experiment_facts(experiment))
    if stop.asked:
        warn(f"stopped; `loopctl experiment run {safe(file)}` continues where it was")
        raise click.exceptions.Exit(stop.exit_code)
    if failed:
        raise LoopError(_failures(failed, file))


@experiment_command.command("start")
@file_argument
@jobs_option
@shared_options
def start_command(file: Path, jobs: int | None) -> None:
    """Run all arms and seeds of FILE in the background. It goes on where it was left.

    \b
    Examples:
      loopctl experiment start temperatures.toml
    """
    from loop.experiments.file import LOGS
    from loop.experiments.running import standing_of
    from loop.system.lock import holder
    from loop.system.ourselves import command, start_in_background

    experiment = _load(file, whole=True)
    if (pid := holder(experiment.directory)) is not None:
        tell(Done(pid, f"already running (process {pid})", False))
        return
    if all(standing_of(run).decided >= experiment.rounds for run in experiment.runs):
        tell(Done(0, "all of it is done already; `loopctl experiment status` shows it", False))
        return
    log = experiment.directory / LOGS / LOG
    words = command("loop.cli.main", "experiment", "run", experiment.path, *(["--jobs", str(jobs)] if jobs else []))
    pid, how = start_in_background(words, log, "it", lambda pid: holder(experiment.directory) == pid, PATIENCE_S)
    started = f"started (process {pid}); what it says is in {log}"
    tell(Done(pid, "it is done; `loopctl experiment status` shows it" if how == "done" else started, True))


@experiment_command.command("stop")
@file_argument
@shared_options
def stop_command(file: Path) -> None:
    """Stop the runs of FILE at their next safe points, and wait for that.

    \b
    Examples:
      loopctl experiment stop temperatures.toml
    """
    from loop.system.ourselves import stop_holder

    pid = stop_holder(_load(file).directory)
    tell(Done(0, "not running", False) if pid is None else Done(pid, "stopped", True))


@experiment_command.command("status")
@file_argument
@shared_options
def status_command(file: Path) -> None:
    """Show a row per arm and seed, the figures so far, and how the arms compare.

    \b
    Examples:
      loopctl experiment status temperatures.toml
      loopctl experiment status temperatures.toml --json
    """
    from loop.experiments.facts import experiment_facts

    _show(experiment_facts(_load(file)))


@experiment_command.command("report")
@file_argument
@click.option("-o", "page", metavar="FILE.html", help="Where; default: report.html in the experiment's directory.")
@shared_options
def report_command(file: Path, page: str | None) -> None:
    """Write the experiment as one page that opens from disk without a network, and print where it is.

    \b
    Examples:
      loopctl experiment report temperatures.toml
    """
    from loop.cli.report import experiment_of, tell, write_page
    from loop.report.facts import facts_of_experiment

    experiment = experiment_of(file)
    tell(write_page(facts_of_experiment(experiment), Path(page) if page else experiment.directory / "report.html"))


def _load(file: Path, whole: bool = False) -> Experiment:
    from loop.experiments.file import check_experiment, load_experiment

    experiment = load_experiment(file)
    if whole:
        check_experiment(experiment)
    return experiment


def _clocked() -> Callable[[str], None]:
    """A printer of lines on standard error, each with the seconds since the start."""
    began = time.monotonic()

    def say(text: str) -> None:
        warn(f"{time.monotonic() - began:7.0f} s  {safe(text)}")

    return say


def _failures(failed: dict[str, str], file: Path) -> str:
    names = ", ".join(failed)
    first = next(iter(failed.values()))
    return (
        f"{count(len(failed), 'run')} failed ({names}): {first}; the others ran on, and "
        f"`loopctl experiment run {file}` tries again"
    )


# Tables


def _show(facts: ExperimentFacts) -> None:
    if the_call().json:
        print_json(facts.as_json())
        return
    from rich.table import Table

    from loop.cli.tables import cell, console, show

    out = console()
    who = f" (process {facts.pid})" if facts.pid else ""
    show(out, cell(f"{facts.name}: {facts.state}{who}, in {facts.directory}"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("arm", "seed", "state", "rounds", "kept", "spent", "shared"):
        table.add_column(name, no_wrap=name != "state")
    for run in facts.runs:
        now = f" · round {run.round} {run.stage}" if run.state == "running" and run.round else ""
        why = run.error or (run.reason if run.state in ("paused", "ended") else None)
        table.add_row(
            cell(safe(run.arm)),
            cell(str(run.seed)),
            cell(f"{run.state}{now}{f': {safe(why)}' if why else ''}", "red" if run.state == "failed" else ""),
            cell(f"{run.rounds_done} of {run.rounds}"),
            cell(str(run.num_kept)),
            cell(duration(sum(run.spent_s.values())) if run.spent_s else "-"),
            cell(str(run.shared or "-")),
        )
    show(out, table)
    if not facts.lines:
        return
    what = f"pass@1 of the head on {facts.suite} ({decoding_words(facts.decoding)})"
    show(out, cell(""))
    show(out, cell(f"{safe(what)}, change over the base, 95% intervals"))
    show(out, _lines(facts))
    if facts.comparisons:
        show(out, cell(""))
        for comparison in facts.comparisons:
            show(out, cell(safe(comparison["words"])))
        show(out, cell(facts.correction, "dim"))


def _lines(facts: ExperimentFacts) -> Any:
    """A table with the base, and each arm after its newest round."""
    from rich.table import Table

    from loop.cli.tables import cell

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("arm", "round", "seeds", "pass@1", "change", "by seed", "distinct", "tokens"):
        table.add_column(name, no_wrap=True)
    for arm in facts.arms:
        mine = [line for line in facts.lines if line["arm"] == arm.name]
        for line in mine[-1:]:
            seeds = [change for change in line["change_by_seed"] if change is not None]
            table.add_row(
                cell(safe(line["arm"])),
                cell(str(line["round"] or "base")),
                cell(str(line["num_seeds"])),
                cell(f"{rate(line['pass@1'])} {interval(line['pass@1_interval'])}"),
                cell(
                    f"{signed(line['change'])} {interval(line['change_interval'], sign=True)}" if line["round"] else "-"
                ),
                cell(f"{signed(min(seeds))} to {signed(max(seeds))}" if seeds and line["round"] else "-"),
                cell(rate(line["distinct_rate"])),
                cell("-" if line["mean_tokens"] is None else f"{line['mean_tokens']:.1f}"),
            )
    return table


def _tell_plan(plan: Json) -> None:
    if the_call().json:
        print_json(plan)
        return
    stages = ", ".join(f"{number:,} {name}" for name, number in plan["stages"].items())
    where = f"on GPUs {', '.join(plan['devices'])}" if plan["devices"] else "on the CPU"
    lines = [
        f"{plan['name']}: {count(len(plan['arms']), 'arm')} x {count(len(plan['seeds']), 'seed')} = "
        f"{count(plan['num_runs'], 'run')}, {count(plan['num_rounds'], 'round')} in all, "
        f"{plan['num_rounds_left']:,} of them left; in {plan['directory']}",
        f"  arms    {', '.join(plan['arms'])}",
        f"  stages  {plan['num_stages']:,} ({stages}); at least {plan['num_shared_at_least']:,} of them are taken from another run",
        f"  at a time  {count(plan['jobs'], 'run')} {where}",
        f"  time    {'not known' if plan['time_s'] is None else 'about ' + duration(plan['time_s'])}: {plan['time_from']}",
        f"  disk    {size(plan['disk_bytes'])} ({plan['disk_from']}); {size(plan['free_bytes'])} are free",
        f"  compared  {count(plan['num_comparisons'], 'pair')} of arms",
    ]
    for line in lines:
        click.echo(safe(line))
