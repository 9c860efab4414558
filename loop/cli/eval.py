"""`loopctl eval`: one model on one suite or several, with an interval."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from loop.cli.asking import asked_of, asking, watched
from loop.cli.options import command, print_answer
from loop.words import decoding_words, interval, rate, safe
from store.records import Json


@command(
    "eval",
    "loopctl eval loop.toml#head --suite problems.jsonl",
    "loopctl eval loop.toml#base --suite first-steps --limit 20 --samples 5 --json",
    "loopctl eval loop.toml#head --suite first-steps --limit 20 --out samples.jsonl",
)
@click.argument("model")
@click.option(
    "--suite",
    "suites",
    required=True,
    multiple=True,
    metavar="SUITE",
    help="A suite by name, or a file of problems; may be repeated.",
)
@click.option(
    "--out",
    metavar="FILE",
    help="Write the samples as lm-evaluation-harness does; a directory where there are several suites.",
)
@asking
def eval_command(model: str, suites: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Measure a MODEL on suites: pass@k with an interval, by difficulty.

    MODEL is "smollm2-135m", a Hugging Face model directory, owner/name[@COMMIT] on the hub, or RUN#head, #base, #tip or #N, where RUN is a run's
    loop.toml; @http://HOST:PORT/v1 behind it names a server that has these weights. What is done is kept in --dir: the same command
    continues after an interruption, and then answers at once. Uses [engine], [grading] and [cluster] of the configuration, where one exists.
    """
    from loop.judging.models import model_of
    from loop.judging.sampled import sampled
    from loop.judging.samples import files_of, write_samples

    named = model_of(model, Path.cwd())
    asked = [asked_of(suite, 1, options) for suite in suites]  # a mistake in the last one must not wait for an hour
    files = files_of(out, suites)
    answers = []
    with watched(Path(options["directory"])) as watch:
        for each, file in zip(asked, files, strict=True):
            write = partial(write_samples, file) if file else None
            answers.append(sampled(named, each, Path(options["directory"]), watch, out=write).answer())
    print_answer(answers[0] if len(answers) == 1 else {"suites": answers}, lambda _: list(map(_print, answers)))


def _print(answer: Json) -> None:
    figures = ", ".join(
        f"{key} {rate(answer[key])}"
        for key in answer
        if key.startswith("pass@") and key not in ("pass@1", "pass@1_interval")
    )
    click.echo(f"{safe(answer['model'])} on {safe(answer['suite'])}, {decoding_words(answer['decoding'])}")
    click.echo(f"  pass@1 {rate(answer['pass@1'])} {interval(answer['pass@1_interval'])}{figures and f', {figures}'}")
    click.echo(
        f"  {answer['num_problems']:,} problems x {answer['num_samples']}; {', '.join(f'{num:,} {word}' for word, num in answer['verdicts'].items())}"
    )
    for level, group in answer["by_difficulty"].items():
        click.echo(f"  {safe(level):<10} pass@1 {rate(group['pass@1'])} on {group['num_problems']:,} problems")
    click.echo(f"  kept in {safe(answer['config'])}")
