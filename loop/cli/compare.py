"""`loopctl compare --results A B`: is B better than A, from what other harnesses left. No model, no store, no configuration."""

from __future__ import annotations

from pathlib import Path

import click

from loop.cli.options import command, print_answer
from loop.words import one_line
from store.records import Json


@command(
    "compare",
    "loopctl compare --results base_eval_results.json tuned_eval_results.json",
    "loopctl compare --results out/base out/tuned --metric exact_match,strict-match --json",
)
@click.option(
    "--results",
    nargs=2,
    required=True,
    metavar="A B",
    type=click.Path(path_type=Path),
    help="Two files, or directories, in which a harness left its results.",
)
@click.option(
    "--metric",
    "metrics",
    metavar="NAME",
    multiple=True,
    help="What to compare, where a file holds several; may be repeated. Default: the harness's main one.",
)
@click.option(
    "--despite",
    metavar="WHAT",
    multiple=True,
    type=click.Choice(["problems", "prompts", "decoding", "tests"]),
    help="problems, prompts, decoding or tests: compare although these differ; may be repeated.",
)
def compare_command(results: tuple[Path, Path], metrics: tuple[str, ...], despite: tuple[str, ...]) -> None:
    """Say whether B is better than A: paired by problem, with an interval, power, ties, pass@k, by difficulty and month.

    Reads what EvalPlus (eval_results.json), BigCodeBench (eval_results.json), LiveCodeBench (eval_all.json), ml-ssd
    (results.json), lm-evaluation-harness (samples_*.jsonl), inspect (.eval), lighteval (details_*.parquet) and `loopctl grade
    --json` left, told apart by content. Several suites in two directories are paired by name, and the intervals corrected for
    their number. What was not measured alike is refused, as far as the files say; --despite overrules that.
    """
    from loop.judging.formats import read_results
    from loop.judging.judged import judged
    from loop.judging.pairing import paired
    from loop.judging.words import correction_words

    ours, theirs = map(read_results, results)
    found = paired(ours, theirs, metrics, despite)
    comparisons = [judged(a, b, len(found.pairs)) for a, b in found.pairs]
    answer = {
        "comparisons": comparisons,
        "correction": correction_words(len(comparisons)),
        "only_in_a": found.only_a,
        "only_in_b": found.only_b,
    }
    plain = answer | {"comparisons": [each.model_dump(mode="json") for each in comparisons]}
    print_answer(plain, lambda _: _print(answer))


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
