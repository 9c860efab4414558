"""`loopctl report` writes the run as a page that opens without a network; `loopctl plot` draws figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loop.cli.options import command, print_answer, the_call
from loop.errors import LoopError, UsageError
from loop.system.files import opened
from loop.words import safe

if TYPE_CHECKING:
    from loop.config.place import Place
    from loop.experiments.file import Experiment
    from loop.report.charts import Figure
    from store.records import Json

SCALE = 2.0  # of a PNG: pixels for each unit of the drawing


@command("report", "loopctl report -o run.html")
@click.option("-o", "file", metavar="FILE.html", help="Default: report.html in the run directory.")
def report_command(file: str | None) -> None:
    """Write the run as one page that opens from disk without a network, and print where it is."""
    place = the_call().place()
    write_page(_facts(place), Path(file) if file else place.run_dir / "report.html")


@command(
    "plot",
    "loopctl plot -o pass1.svg",
    "loopctl plot -o training.png --figure training",
    "loopctl plot -o arms.svg --experiment temperatures.toml",
)
@click.option("-o", "file", required=True, metavar="FILE", help="The file to write, ending in .svg or .png.")
@click.option("--figure", "name", metavar="NAME", help="Which figure; default: pass1, for an experiment change.")
@click.option("--experiment", metavar="FILE", help="Draw this experiment instead of the run.")
def plot_command(file: str, name: str | None, experiment: str | None) -> None:
    """Draw one figure of the report as SVG or PNG. An unknown NAME lists the figures."""
    from loop.report.facts import facts_of_experiment
    from loop.report.page import figures

    path = Path(file)
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"{safe(file)}: ends in neither .svg nor .png; give the file such a name")
    facts = _facts(the_call().place()) if experiment is None else facts_of_experiment(experiment_of(experiment))
    by_name = {figure.name: figure for figure in figures(facts)}
    name = name or ("change" if experiment is not None else "pass1")
    if name not in by_name:
        raise UsageError(f"no figure {name!r}; there are {', '.join(by_name) or 'none yet'}")
    content = drawn(by_name[name], path.suffix.lower())
    with opened(path) as out:
        out.write(content)
    print_answer({"path": str(path.absolute()), "figure": name, "bytes": len(content)}, str(path))


def _facts(place: Place) -> Json:
    from loop.reading.reader import reader
    from loop.report.facts import run_facts

    with reader(place.run_dir):  # raises if nothing was run yet
        return run_facts(place)


def drawn(figure: Figure, suffix: str) -> bytes:
    """Draw a figure as the content of a .svg or .png file."""
    import vl_convert

    from loop.report.charts import paper
    from loop.report.page import made_visible

    specification = made_visible(paper(figure))
    if suffix == ".png":
        return bytes(vl_convert.vegalite_to_png(specification, scale=SCALE))
    return str(vl_convert.vegalite_to_svg(specification)).encode()


def experiment_of(file: str | Path) -> Experiment:
    """Load the experiment that a file describes; LoopError if none of its runs has begun."""
    from loop.experiments.file import load_experiment

    experiment = load_experiment(Path(file))
    if not experiment.directory.is_dir():
        raise LoopError(f"{experiment.directory}: no run has begun; `loopctl experiment run {file}` starts them")
    return experiment


def write_page(facts: Json, path: Path) -> None:
    """Write the facts as a page, and print where it is, unless it went to standard output."""
    from loop.report.page import render

    content = render(facts).encode()
    with opened(path) as out:
        out.write(content)
    if str(path) != "-":
        print_answer({"path": str(path.absolute()), "bytes": len(content)}, str(path.absolute()))
