"""`loopctl aa`, `sweep`, `confirm` and `final` measure beside the rounds, under the run's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from loop.cli.options import checkpoint_names, command, print_answer, the_call
from loop.config.toml_text import toml_value
from loop.errors import LoopError
from loop.words import count, decoding_words, interval, rate, round_name, safe, signed, warn
from store.records import Json

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.run.session import Session


def _temperatures(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Read temperatures with commas between them, as a click callback."""
    if value is None:
        return None
    try:
        temperatures = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0.2,0.6,1.0") from None
    for temperature in temperatures:
        if not 0.0 < temperature <= 10.0:
            raise click.BadParameter(f"{temperature:g} is not above 0 and at most 10")
    return temperatures


@command("aa", "loopctl aa --of base")
@click.option(
    "--of",
    "name",
    metavar="head|tip|base|ROUND",
    callback=checkpoint_names,
    default="head",
    help="Which checkpoint; default: head.",
)
def aa_command(name: str) -> None:
    """Measure one checkpoint twice: how noisy the deciding evaluation is, what gain it can see, what a smaller one takes."""
    from loop.reading.checkpoints import checkpoint_named
    from loop.run.measuring import aa, may_aa

    loaded = _loaded(name)
    may_aa(loaded.config.suite(loaded.config.decide.suite))
    with _opened(loaded) as session:
        answer = aa(session, checkpoint_named(session.ledger, session.run, name))
    print_answer(answer, _print_aa)


@command("sweep", "loopctl sweep --of head --temperatures 0.6,0.9")
@click.option(
    "--of",
    "names",
    metavar="head|tip|base|ROUND",
    callback=checkpoint_names,
    multiple=True,
    help="What to measure beside the base; may be repeated. Default: head.",
)
@click.option(
    "--temperatures",
    metavar="T,T,...",
    callback=_temperatures,
    help="Default: 0.2,0.4,0.6,0.8,1.0,1.2; the run's own is always added.",
)
@click.option("--split", type=click.Choice(["select", "confirm", "final"]), help="Default: the split that decides.")
def sweep_command(names: tuple[str, ...], temperatures: tuple[float, ...] | None, split: str | None) -> None:
    """Measure the base and rounds at several temperatures, to tell how much of a gain is decoding and how much training."""
    from loop.reading.checkpoints import checkpoint_named
    from loop.run.measuring import TEMPERATURES, may_sweep, sweep

    names = names or ("head",)
    loaded = _loaded(*names)
    decide = loaded.config.decide
    split = split or decide.split
    may_sweep(loaded.config.suite(decide.suite), split)
    with _opened(loaded) as session:
        rows = [checkpoint_named(session.ledger, session.run, name) for name in names]
        answer = sweep(session, rows, temperatures or TEMPERATURES, split)
    print_answer(answer, _print_sweep)


@command("confirm", "loopctl confirm", "loopctl confirm --json")
def confirm_command() -> None:
    """Look at the tip between two rounds: head and tip anew, with decide.last_samples times the samples.

    A gain that is shown makes the tip the head. The look spends what the line of carried rounds has left of the run's error, as
    its last look would. Exit code 1 where nothing was carried, 78 where decide.unclear carries nothing.
    """
    from loop.config.same_run import with_stored_gates
    from loop.reading.reader import reader
    from loop.run.confirming import confirm, may_confirm

    loaded = _loaded("tip")
    with reader(loaded.run_dir) as store:
        may_confirm(with_stored_gates(loaded.config, store.run.config).decide.policy(), store.ledger, store.run)
    with _opened(loaded) as session:
        answer = confirm(session)
    print_answer(answer, _print_confirmed)


@command("final", "loopctl final --yes")
@click.option("--yes", is_flag=True, help="Open it without asking.")
def final_command(yes: bool) -> None:
    """Open the final split, once: the gain of the head over the base on problems that no decision has used."""
    from loop.reading.checkpoints import final_result
    from loop.reading.reader import reader
    from loop.run.measuring import final, may_be_final, may_open_final

    loaded = _loaded()
    decide = loaded.config.decide
    may_open_final(loaded.config.suite(decide.suite), decide.split, decide.confirm)
    with reader(loaded.run_dir) as store:
        event, run = final_result(store.ledger, store.run.id), store.run
        begun = event is not None or may_be_final(store.ledger, run) == "begun"
    if event is None:
        if not begun and not yes:
            _ask()
        with _opened(loaded) as session:
            event, run = final(session), session.run
    answer = {"opened_at": event.at, **event.data}
    print_answer(answer, _print_final)
    if answer["head"]["checkpoint"] != run.head_checkpoint:
        raise LoopError(
            f"the final split was opened at {event.at} on {round_name(answer['head']['round'])}; the head is "
            f"{round_name(run.head_round)} now, and it will not be opened again: begin another run with other problems"
        )


def _ask() -> None:
    try:
        sure = click.confirm("the final split can be opened once; open it now?", err=True)
    except click.Abort:  # nobody can answer
        raise click.UsageError("the final split can be opened once; give --yes to open it now") from None
    if not sure:
        raise LoopError("not opened")


def _loaded(*names: str) -> LoadedConfig:
    """Load loop.toml. LoopError if a name is a round's and no run exists; `head` and `base` need none."""
    from store.db import DATABASE

    loaded = the_call().load()
    if not {*names} <= {"head", "base"} and not (loaded.run_dir / DATABASE).exists():
        raise LoopError(f"no run in {loaded.run_dir} yet; start one with `loopctl run`")
    return loaded


@contextlib.contextmanager
def _opened(loaded: LoadedConfig) -> Iterator[Session]:
    """Hold the run as `loopctl run` does; after a signal, the same command continues from what is stored."""
    from loop.cli.progress import onlookers
    from loop.run.opening import open_session
    from loop.system.signals import Interrupted, Stop

    try:
        with Stop(at_once=True).listening(), onlookers(loaded.run_dir) as watch, open_session(loaded, watch) as session:
            yield session
            session.index_texts()
            watch.end_part()
    except Interrupted as signal:
        warn("interrupted; the same command continues where it was")
        raise click.exceptions.Exit(signal.exit_code) from None


# In words


def _title(answer: Json) -> str:
    words = ", ".join([answer["split"], decoding_words(answer["decoding"])])
    return f"{safe(answer['suite'])} ({words}), {answer['num_problems']:,} problems x {answer['num_samples']} samples"


def _print_aa(answer: Json) -> None:
    def tell(label: str, text: str) -> None:
        click.echo(f"{label:<8}{text}")

    noise = answer["noise"]
    first, second = noise["rates"]
    click.echo(f"{round_name(answer['round'])} twice on {_title(answer)}")
    tell("noise", f"{answer['metric']} {rate(first)} and {rate(second)}: difference {signed(noise['difference'])} "
                  f"{interval(noise['interval'], sign=True)}, standard deviation of a problem's difference {noise['sd']:.3f}")  # fmt: skip
    for look in answer["looks"]:
        least = look["min_gain"] + look["smallest_detectable_gain"]
        verdict = "is seen" if look["sees_target"] else f"is not: {look['follows']}; {look['remedy']}"
        tell("sees", f"on {look['split']} ({look['num_problems']:,} problems, level {look['level']:.3g}) a gain of {least:.3f} "
                     f"with {look['power']:.0%} power; target_gain {look['target_gain']:g} {verdict}")  # fmt: skip
    if answer["sizes"]:
        columns = sorted({row["num_samples"] for row in answer["sizes"]})
        tell("sizes", f"the gain that is seen on {answer['looks'][-1]['split']}, by problems and samples of each")
        tell("", f"  {'':>10}" + "".join(f"{f'x {number}':>8}" for number in columns))
        for number in sorted({row["num_problems"] for row in answer["sizes"]}):
            gains = (row["smallest_detectable_gain"] for row in answer["sizes"] if row["num_problems"] == number)
            tell("", f"  {number:>10,}" + "".join(f"{gain:>8.3f}" for gain in gains))
    tell("limits", f"{toml_value(answer['collapse'])},")
    below = "the limits of collapse, each widened where it left less than 4 standard deviations of this noise"
    tell("", f"  for decide.gates: {below}")


def _print_sweep(answer: Json) -> None:
    from rich.table import Column

    from loop.cli.tables import cell, console, headed_table, show

    names = [round_name(checkpoint["round"]) for checkpoint in answer["checkpoints"]]
    table = headed_table(Column("T", justify="right"), *names)
    for index, temperature in enumerate(answer["temperatures"]):
        cells = []
        for checkpoint in answer["checkpoints"]:
            figures = checkpoint["figures"][index]
            mark = "  best" if checkpoint["best_temperature"] == temperature else ""
            cells.append(cell(f"{rate(figures['pass@1'])} {interval(figures['pass@1_interval'])}{mark}"))
        own = "T_eval " if temperature == answer["T_eval"] else ""
        table.add_row(f"{own}{_temperature(temperature)}", *cells)
    click.echo(f"pass@1 on {_title(answer)}")
    show(console(), table)
    decoding = answer["decoding_gain"]
    best = _temperature(decoding["temperature"])
    click.echo(f"decoding: the base at {best} against the base at T_eval: {_change(decoding)}")
    for gain in answer["training_gains"]:
        click.echo(
            f"training: {round_name(gain['round'])} at {_temperature(gain['temperature'])} against the base at "
            f"{_temperature(gain['base_temperature'])}: {_change(gain)}"
        )
    if not answer["training_gains"]:
        click.echo("training: nothing to compare: only the base was measured")
    click.echo(f"note: {answer['note']}")


def _temperature(value: float) -> str:
    return f"T {value:g}" if value else "greedy"


def _change(gain: Json) -> str:
    return f"{signed(gain['gain'])} {interval(gain['interval'], sign=True)}"


def _print_confirmed(answer: Json) -> None:
    was = f"carried {count(answer['depth'], 'round')} since {round_name(answer['head_before'])}"
    if answer["shown"]:
        click.echo(f"shown: the head is round {answer['round']} from now on, {was}")
    else:
        click.echo(f"not shown: round {answer['round']} stays the tip, {was}, which stays the head")
    for gate in answer["decision"]["gates"]:
        click.echo(f"  {gate['verdict']}: {safe(gate['type'])}: {safe(gate['reason'])}")


def _print_final(answer: Json) -> None:
    base, head = answer["base"], answer["head"]
    click.echo(f"the final split, opened at {answer['opened_at']} on {round_name(head['round'])}: {_title(answer)}")
    for label, figures in (("base", base), (round_name(head["round"]), head)):
        click.echo(f"  {label:<10} pass@1 {rate(figures['pass@1'])} {interval(figures['pass@1_interval'])}")
    click.echo(f"  {'gain':<10}        {_change(answer)}, a two-sided 95% interval over problems")
