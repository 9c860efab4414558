"""`loopctl experiment run | start | status | stop | report` compare rounds under different settings and seeds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loop.cli.options import Group, print_answer
from loop.cli.service import Done, stopped
from loop.words import count, decoding_words, duration, interval, rate, safe, signed, size, warn

if TYPE_CHECKING:
    from rich.table import Table

    from loop.experiments.facts import ExperimentFacts
    from loop.experiments.file import Experiment
    from store.records import Json

LOG = "experiment.log"  # in the experiment's logs/
PATIENCE_S = 10.0  # `start` waits for as long until the experiment is under way

file_argument = click.argument("file", metavar="FILE", type=click.Path(path_type=Path, readable=False))
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time; default: as FILE says."
)


@click.group(
    "experiment",
    cls=Group,
    examples=[
        "loopctl experiment run --dry-run temperatures.toml",
        "loopctl experiment run temperatures.toml",
        "loopctl experiment status temperatures.toml",
    ],
)
def experiment_command() -> None:
    """Rounds under different settings and seeds, with what they have in common done once."""


@experiment_command.command(
    "run",
    examples=[
        "loopctl experiment run --dry-run temperatures.toml",
        "loopctl experiment run temperatures.toml --jobs 2",
    ],
)
@file_argument
@jobs_option
@click.option("--dry-run", is_flag=True, help="Only say what it would take: stages, how many are shared, time, disk.")
def run_command(file: Path, jobs: int | None, dry_run: bool) -> int:
    """Run all arms and seeds of FILE in the foreground, then compare them. Continues where it was left."""
    from loop.errors import LoopError
    from loop.experiments.facts import experiment_facts
    from loop.experiments.running import Supervisor, machine_for
    from loop.system.signals import Stop

    experiment = _load(file, whole=True)
    machine = machine_for(experiment, jobs)
    if dry_run:
        from loop.experiments.planning import plan_of

        print_answer(plan_of(experiment, machine), _print_plan)
        return 0
    began, stop = time.monotonic(), Stop(at_once=False)

    def say(text: str) -> None:
        warn(f"{time.monotonic() - began:7.0f} s  {safe(text)}")

    with stop.listening():
        failed = Supervisor(experiment, machine, say, stop).run()
    _show(experiment_facts(experiment))
    if stop.asked:
        warn(f"stopped; `loopctl experiment run {safe(file)}` continues where it was")
        return stop.exit_code
    if failed:
        first, names = next(iter(failed.values())), ", ".join(failed)
        remedy = f"the others ran on, and `loopctl experiment run {file}` tries again"
        raise LoopError(f"{count(len(failed), 'run')} failed ({names}): {first}; {remedy}")
    return 0


@experiment_command.command("start", examples=["loopctl experiment start temperatures.toml"])
@file_argument
@jobs_option
def start_command(file: Path, jobs: int | None) -> None:
    """Run all arms and seeds of FILE in the background. It goes on where it was left."""
    _start(_load(file, whole=True), jobs).tell()


def _start(experiment: Experiment, jobs: int | None) -> Done:
    from loop.experiments.file import LOGS
    from loop.experiments.running import standing_of
    from loop.system.lock import holder
    from loop.system.ourselves import command, start_in_background

    if (pid := holder(experiment.directory)) is not None:
        return Done(pid, f"already running (process {pid})", False)
    if all(standing_of(run).decided >= experiment.rounds for run in experiment.runs):
        return Done(0, "all of it is done already; `loopctl experiment status` shows it", False)
    log = experiment.directory / LOGS / LOG
    words = command("loop.cli.main", "experiment", "run", experiment.path, *(["--jobs", str(jobs)] if jobs else []))
    pid, how = start_in_background(words, log, "it", lambda pid: holder(experiment.directory) == pid, PATIENCE_S)
    started = f"started (process {pid}); what it says is in {log}"
    return Done(pid, "it is done; `loopctl experiment status` shows it" if how == "done" else started, True)


@experiment_command.command("stop", examples=["loopctl experiment stop temperatures.toml"])
@file_argument
def stop_command(file: Path) -> None:
    """Stop the runs of FILE at their next safe points, and wait for that."""
    from loop.system.ourselves import stop_holder

    stopped(stop_holder(_load(file).directory)).tell()


@experiment_command.command(
    "status",
    examples=["loopctl experiment status temperatures.toml", "loopctl experiment status temperatures.toml --json"],
)
@file_argument
def status_command(file: Path) -> None:
    """Show a row per arm and seed, the figures so far, and how the arms compare."""
    from loop.experiments.facts import experiment_facts

    _show(experiment_facts(_load(file)))


@experiment_command.command("report", examples=["loopctl experiment report temperatures.toml"])
@file_argument
@click.option("-o", "page", metavar="FILE.html", help="Where; default: report.html in the experiment's directory.")
def report_command(file: Path, page: str | None) -> None:
    """Write the experiment as one page that opens from disk without a network, and print where it is."""
    from loop.cli.report import experiment_of, write_page
    from loop.report.facts import facts_of_experiment

    experiment = experiment_of(file)
    write_page(facts_of_experiment(experiment), Path(page) if page else experiment.directory / "report.html")


def _load(file: Path, whole: bool = False) -> Experiment:
    from loop.experiments.file import check_experiment, load_experiment

    experiment = load_experiment(file)
    if whole:
        check_experiment(experiment)
    return experiment


def _show(facts: ExperimentFacts) -> None:
    print_answer(facts.as_json(), lambda _: _print_facts(facts))


def _print_facts(facts: ExperimentFacts) -> None:
    from rich.table import Column

    from loop.cli.tables import cell, console, plain_table, show

    out = console()
    who = f" (process {facts.pid})" if facts.pid else ""
    show(out, cell(f"{facts.name}: {facts.state}{who}, in {facts.directory}"))
    names = ("arm", "seed", "state", "rounds", "kept", "spent", "shared")
    table = plain_table(*(Column(name, no_wrap=name != "state") for name in names))
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
    show(out, cell(""), cell(f"{safe(what)}, change over the base, 95% intervals"), _arms_table(facts))
    if facts.comparisons:
        words = [cell(safe(comparison["words"])) for comparison in facts.comparisons]
        show(out, cell(""), *words, cell(facts.correction, "dim"))


def _arms_table(facts: ExperimentFacts) -> Table:
    """Draw each arm after its newest round, or its base before the first."""
    from rich.table import Column

    from loop.cli.tables import cell, plain_table

    names = ("arm", "round", "seeds", "pass@1", "change", "by seed", "distinct", "tokens")
    table = plain_table(*(Column(name, no_wrap=True) for name in names))
    for line in {line["arm"]: line for line in facts.lines}.values():  # the last of each arm
        seeds = [change for change in line["change_by_seed"] if change is not None]
        change = f"{signed(line['change'])} {interval(line['change_interval'], sign=True)}"
        table.add_row(
            cell(safe(line["arm"])),
            cell(str(line["round"] or "base")),
            cell(str(line["num_seeds"])),
            cell(f"{rate(line['pass@1'])} {interval(line['pass@1_interval'])}"),
            cell(change if line["round"] else "-"),
            cell(f"{signed(min(seeds))} to {signed(max(seeds))}" if seeds and line["round"] else "-"),
            cell(rate(line["distinct_rate"])),
            cell("-" if line["mean_tokens"] is None else f"{line['mean_tokens']:.1f}"),
        )
    return table


def _print_plan(plan: Json) -> None:
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
