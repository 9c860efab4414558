"""`loopctl aa`, `loopctl sweep` and `loopctl final`: measurements beside the rounds, under the run's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from loop.cli.options import checkpoint_names, print_json, shared_options, the_call
from loop.config.toml_text import toml_value
from loop.errors import LoopError
from loop.words import decoding_words, interval, rate, round_name, safe, signed, warn
from store.records import Json

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.run.session import Session

INTERRUPTED = "interrupted; the same command continues where it was"


def _temperatures(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A click callback that reads temperatures with commas between them."""
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


@click.command("aa")
@click.option(
    "--of",
    "name",
    metavar="head|base|ROUND",
    callback=checkpoint_names,
    default="head",
    help="Which checkpoint; default: head.",
)
@shared_options
def aa_command(name: str) -> None:
    """Measure one checkpoint twice: how noisy the deciding evaluation is, what gain it can see, what a smaller one takes.

    \b
    Examples:
      loopctl aa --of base
    """
    from loop.reading.checkpoints import checkpoint_named
    from loop.run.measuring import aa, may_aa

    loaded = _loaded(name)
    may_aa(loaded.config.suite(loaded.config.decide.suite))
    with _opened(loaded) as session:
        answer = aa(session, checkpoint_named(session.ledger, session.run, name))
    if the_call().json:
        print_json(answer)
        return
    _print_aa(answer)


@click.command("sweep")
@click.option(
    "--of",
    "names",
    metavar="head|base|ROUND",
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
@shared_options
def sweep_command(names: tuple[str, ...], temperatures: tuple[float, ...] | None, split: str | None) -> None:
    """Measure the base and rounds at several temperatures, to tell how much of a gain is decoding and how much training.

    \b
    Examples:
      loopctl sweep --of head --temperatures 0.6,0.9
    """
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
    if the_call().json:
        print_json(answer)
        return
    _print_sweep(answer)


@click.command("final")
@click.option("--yes", is_flag=True, help="Open it without asking.")
@shared_options
def final_command(yes: bool) -> None:
    """Open the final split, once: the gain of the head over the base on problems that no decision has used.

    \b
    Examples:
      loopctl final --yes
    """
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
    if the_call().json:
        print_json(answer)
    else:
        _print_final(answer)
    if answer["head"]["checkpoint"] != run.head_checkpoint:
        raise LoopError(
            f"the final split was opened at {event.at} on {round_name(answer['head']['round'])}; the head is {round_name(run.head_round)} "
            "now, and it will not be opened again: begin another run with other problems"
        )


def _ask() -> None:
    try:
        sure = click.confirm("the final split can be opened once; open it now?", err=True)
    except click.Abort:  # nobody is there to answer
        raise click.UsageError("the final split can be opened once; give --yes to open it now") from None
    if not sure:
        raise LoopError("not opened")


def _loaded(*names: str) -> LoadedConfig:
    """loop.toml. LoopError if a name is a round's and no run exists; `head` and `base` need none."""
    from store.db import DATABASE

    loaded = the_call().load()
    if not {*names} <= {"head", "base"} and not (loaded.run_dir / DATABASE).exists():
        raise LoopError(f"no run in {loaded.run_dir} yet; start one with `loopctl run`")
    return loaded


@contextlib.contextmanager
def _opened(loaded: LoadedConfig) -> Iterator[Session]:
    """The run, held as `loopctl run` holds it; a signal leaves what is stored, and the same command goes on from there."""
    from loop.cli.progress import onlookers
    from loop.run.opening import open_session
    from loop.system.signals import Interrupted, Stop

    try:
        with (
            Stop(at_once=True).listening(),
            onlookers(loaded.run_dir) as watch,
            open_session(loaded, watch) as session,
        ):
            yield session
            session.index_texts()
            watch.end_part()
    except Interrupted as signal:
        warn(INTERRUPTED)
        raise click.exceptions.Exit(signal.exit_code) from None


# In words


def _title(answer: Json) -> str:
    words = ", ".join([answer["split"], decoding_words(answer["decoding"])])
    return f"{safe(answer['suite'])} ({words}), {answer['num_problems']:,} problems x {answer['num_samples']} samples"


def _print_aa(answer: Json) -> None:
    noise = answer["noise"]
    first, second = noise["rates"]
    lines = [
        ("noise", f"{answer['metric']} {rate(first)} and {rate(second)}: difference {signed(noise['difference'])} "
                  f"{interval(noise['interval'], sign=True)}, standard deviation of a problem's difference {noise['sd']:.3f}"),
    ]  # fmt: skip
    for look in answer["looks"]:
        least = look["min_gain"] + look["smallest_detectable_gain"]
        verdict = "is seen" if look["sees_target"] else f"would mostly be missed; {look['remedy']}"
        lines.append(
            ("sees", f"on {look['split']} ({look['num_problems']:,} problems, level {look['level']:.3g}) a gain of {least:.3f} "
                     f"with {look['power']:.0%} power; target_gain {look['target_gain']:g} {verdict}")
        )  # fmt: skip
    if answer["sizes"]:
        columns = sorted({row["num_samples"] for row in answer["sizes"]})
        lines.append(
            ("sizes", f"the gain that is seen on {answer['looks'][-1]['split']}, by problems and samples of each")
        )
        lines.append(("", f"  {'':>10}" + "".join(f"{f'x {number}':>8}" for number in columns)))
        for number in sorted({row["num_problems"] for row in answer["sizes"]}):
            gains = (r["smallest_detectable_gain"] for r in answer["sizes"] if r["num_problems"] == number)
            lines.append(("", f"  {number:>10,}" + "".join(f"{gain:>8.3f}" for gain in gains)))
    lines.append(("limits", f"{toml_value(answer['collapse'])},"))
    lines.append(
        (
            "",
            "  for decide.gates: the limits of collapse, each widened where it left less than 4 standard deviations of this noise",
        )
    )
    click.echo(f"{round_name(answer['round'])} twice on {_title(answer)}")
    for label, text in lines:
        click.echo(f"{label:<8}{text}")


def _print_sweep(answer: Json) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from loop.cli.tables import cell, console, show

    own = answer["T_eval"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("T", justify="right")
    for checkpoint in answer["checkpoints"]:
        table.add_column(round_name(checkpoint["round"]))
    for index, temperature in enumerate(answer["temperatures"]):
        cells = []
        for checkpoint in answer["checkpoints"]:
            figures = checkpoint["figures"][index]
            mark = "  best" if checkpoint["best_temperature"] == temperature else ""
            cells.append(cell(f"{rate(figures['pass@1'])} {interval(figures['pass@1_interval'])}{mark}"))
        table.add_row(f"{'T_eval ' if temperature == own else ''}{_temperature(temperature)}", *cells)
    out = console()
    click.echo(f"pass@1 on {_title(answer)}")
    show(out, table)
    decoding = answer["decoding_gain"]
    click.echo(
        f"decoding: the base at {_temperature(decoding['temperature'])} against the base at T_eval: {_change(decoding)}"
    )
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


def _print_final(answer: Json) -> None:
    base, head = answer["base"], answer["head"]
    click.echo(f"the final split, opened at {answer['opened_at']} on {round_name(head['round'])}: {_title(answer)}")
    for label, figures in (("base", base), (round_name(head["round"]), head)):
        click.echo(f"  {label:<10} pass@1 {rate(figures['pass@1'])} {interval(figures['pass@1_interval'])}")
    click.echo(f"  {'gain':<10}        {_change(answer)}, a two-sided 95% interval over problems")
