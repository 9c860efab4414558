"""`loopctl compare`: is B better than A, of two models that are asked now, or from what other harnesses left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop.cli.asking import asked_of, asking, watched
from loop.cli.options import command, print_answer
from loop.words import one_line
from store.records import Json

if TYPE_CHECKING:
    from loop.judging.judged import Judged


@command(
    "compare",
    "loopctl compare loop.toml#base loop.toml#head --suite problems.jsonl",
    "loopctl compare loop.toml#base loop.toml#head --suite first-steps --limit 40 --sequential 0.03",
    "loopctl compare --results base_eval_results.json tuned_eval_results.json",
)
@click.argument("models", nargs=-1, metavar="[A B]")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="SUITE",
    help="What to ask: a suite by name, or a file of problems; may be repeated.",
)
@click.option(
    "--sequential",
    "target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="GAIN",
    help="Stop as soon as it is clear, looking for a difference of GAIN, such as 0.03.",
)
@asking
@click.option(
    "--results",
    nargs=2,
    metavar="A B",
    type=click.Path(path_type=Path),
    help="In place of models: two files, or directories, in which a harness left its results.",
)
@click.option(
    "--metric",
    "metrics",
    metavar="NAME",
    multiple=True,
    help="Of --results: what to compare, where a file holds several; may be repeated. Default: the harness's main one.",
)
@click.option(
    "--despite",
    metavar="WHAT",
    multiple=True,
    type=click.Choice(["problems", "prompts", "decoding", "tests"]),
    help="Of --results: problems, prompts, decoding or tests; compare although these differ; may be repeated.",
)
@click.option(
    "--page", "page", metavar="FILE.html", help="Write all of it as one page that opens without a network, too."
)
def compare_command(
    models: tuple[str, ...],
    suites: tuple[str, ...],
    target: float | None,
    results: tuple[Path, Path] | None,
    metrics: tuple[str, ...],
    despite: tuple[str, ...],
    page: str | None,
    **options: Any,
) -> None:
    """Say whether B is better than A: paired by problem, with an interval, power, ties, pass@k, by difficulty and month.

    A and B are models, spelled as for `loopctl eval`, that are asked the same problems in the same way with the same random numbers.
    What is done is kept in --dir: the same command continues after an interruption, and then answers at once.

    With --results nothing is sampled: it reads what EvalPlus and BigCodeBench (eval_results.json), LiveCodeBench (eval_all.json), ml-ssd
    (results.json), lm-evaluation-harness (samples_*.jsonl), inspect (.eval), lighteval (details_*.parquet) and `loopctl grade
    --json` left, told apart by content. Several suites in two directories are paired by name. What was not measured alike is
    refused, as far as the files say; --despite overrules that.

    The intervals of several suites hold together (Bonferroni).
    """
    from loop.judging.words import correction_words

    if results:
        if models or suites or target:
            raise click.UsageError("--results compares files; leave models, --suite and --sequential out")
        comparisons, only_a, only_b = _of_results(results, metrics, despite)
    else:
        if len(models) != 2 or not suites:
            raise click.UsageError("give two models and --suite, or --results with two files")
        comparisons, only_a, only_b = _of_models(models, suites, target, options), [], []
    answer = {
        "comparisons": comparisons,
        "correction": correction_words(len(comparisons)),
        "only_in_a": only_a,
        "only_in_b": only_b,
    }
    plain = answer | {"comparisons": [each.model_dump(mode="json") for each in comparisons]}
    if page:
        _write_page(Path(page), plain, comparisons)
    print_answer(plain, lambda _: _print(answer))


def _of_results(
    files: tuple[Path, Path], metrics: tuple[str, ...], despite: tuple[str, ...]
) -> tuple[list[Judged], list[str], list[str]]:
    from loop.judging.formats import read_results
    from loop.judging.judged import judged
    from loop.judging.pairing import paired

    ours, theirs = map(read_results, files)
    found = paired(ours, theirs, metrics, despite)
    return [judged(a, b, len(found.pairs)) for a, b in found.pairs], found.only_a, found.only_b


def _of_models(names: Sequence[str], suites: tuple[str, ...], target: float | None, options: Json) -> list[Judged]:
    from loop.judging.both import compared
    from loop.judging.models import model_of

    a, b = (model_of(name, Path.cwd()) for name in names)
    asked = [asked_of(suite, 8, options) for suite in suites]
    directory = Path(options["directory"])
    with watched(directory) as watch:
        return [compared((a, b), each, directory, watch, len(asked), target) for each in asked]


def _write_page(file: Path, answer: Json, comparisons: Sequence[Judged]) -> None:
    from loop.judging.words import lines_of
    from loop.report.page import render
    from loop.system.exits import version
    from loop.system.files import opened

    texts = ["\n".join(lines_of(each)) for each in comparisons]
    page = render({**answer, "kind": "comparison", "name": "Is B better than A?", "version": version(), "texts": texts})
    with opened(file) as out:
        out.write(page.encode())


def _print(answer: Json) -> None:
    from loop.judging.words import lines_of

    for comparison in answer["comparisons"]:
        for line in lines_of(comparison):
            click.echo(line)
        click.echo()
    click.echo(answer["correction"])
    for side in ("a", "b"):
        if names := answer[f"only_in_{side}"]:
            click.echo(f"only in {side.upper()}, not compared: {', '.join(one_line(name, 60) for name in names)}")
