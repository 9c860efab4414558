"""`loopctl samples` reads the corpus. What a model wrote is shown, never obeyed; code is shown as it is graded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loop.cli.options import ROUND, command, print_answer, the_call
from loop.errors import LoopError
from loop.words import count, decoding_words, safe
from store.records import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from loop.grading.problem import Problem
    from loop.reading.reader import Reader
    from store.records import Completion, Selection


@command("samples", "loopctl samples --round 1 --limit 3", "loopctl samples --search return --show-code")
@click.option("--round", "number", type=ROUND, metavar="N", help="Only this round.")
@click.option("--prompt", metavar="ID", help="Only this prompt: its id or its name.")
@click.option("--search", metavar="TEXT", help="Only completions with this text (ignores the case of ASCII letters).")
@click.option("--suite", metavar="NAME", help="Show answers to this suite's problems instead, with their verdicts.")
@click.option("--show-code", is_flag=True, help="Also show the program in each completion, as it is graded.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=10, metavar="K", show_default=True, help="Show the newest K."
)
def samples_command(
    number: int | None, prompt: str | None, search: str | None, suite: str | None, show_code: bool, limit: int
) -> None:
    """Show completions, newest first: whether the model was trained on them, and if not, why."""
    from loop.reading.reader import reader

    with reader(the_call().place().run_dir) as store:
        if suite is not None:
            measured = [evaluation.suite_name for evaluation in store.corpus.evaluations.all(store.run.id)]
            suites = dict.fromkeys([*store.suites, *measured])
            if suite not in suites:
                raise LoopError(f"no suite is called {suite!r}; the run has {', '.join(suites)}")
        completions = store.corpus.search.find(
            run_id=store.run.id, round=number, prompt_id=prompt, text=search, suite=suite, limit=limit
        )
        answer = _samples(store, completions)
        if show_code:
            problems = _problems(store, completions)
            for sample, completion in zip(answer, completions, strict=True):
                sample["code"] = _code(store, completion, problems)
    print_answer(answer, _print)


def _print(answer: list[Json]) -> None:
    from loop.cli.tables import console, show

    if not answer:
        click.echo("no such completion")
        return
    show(console(), *map(_lines, answer))


def _samples(store: Reader, completions: list[Completion]) -> list[Json]:
    """Describe completions: with their prompt, their lineage and what became of them."""
    wanted = {completion.id for completion in completions}
    selected = {
        selection.completion_id: selection
        for number in {completion.round for completion in completions}
        for selection in store.corpus.own_selections(store.run.id, number)
        if selection.completion_id in wanted
    }
    outcomes = store.corpus.outcomes(wanted)
    return [
        _sample(store, completion, selected.get(completion.id), *outcomes.get(completion.id, (None, None)))
        for completion in completions
    ]


def _problems(store: Reader, completions: list[Completion]) -> dict[str, Problem]:
    """Load the problems that these completions were graded on, by prompt id. LoopError where they have changed."""
    from loop.grading.suite import load_suite
    from loop.prompts.sources import load_prompts_and_tests
    from loop.stages.evaluating import yardstick

    problems: dict[str, Problem] = {}
    of_suites = {completion.evaluation_id for completion in completions if completion.evaluation_id}
    evaluations = [row for row in store.corpus.evaluations.all(store.run.id) if row.id in of_suites]
    for name, sha256 in {(row.suite_name, row.suite_sha256) for row in evaluations}:
        loaded = the_call().load()
        own = name.partition("@")[0]  # measurements beside the rounds add to its name
        now = [
            yardstick(load_suite(suite.source, suite.limit, loaded.base_dir), suite, loaded.config)
            for suite in loaded.config.suites
            if suite.name == own
        ]
        if [measured.row.sha256 for measured in now] != [sha256]:
            raise LoopError(f"suite {name}: is not what these answers were graded on; put its file and settings back")
        problems |= now[0].graded_as
    if store.corpus.outcomes(completion.id for completion in completions if completion.evaluation_id is None):
        loaded = the_call().load()
        _, tests = load_prompts_and_tests(loaded.config.prompts, loaded.config.model, loaded.base_dir, with_tests=True)
        problems |= tests
    return problems


def _code(store: Reader, completion: Completion, problems: dict[str, Problem]) -> str | None:
    """Take the program out of an answer. Without its problem, the rules that all problems share find it."""
    from loop.grading.extract import extract_code
    from loop.grading.problem import Problem
    from loop.prompts.templates import answer

    asked = store.corpus.prompt(completion.prompt_id)
    opened = asked.content.get("opening", "") if asked else ""
    nothing = Problem(task_id=completion.prompt_id, statement="", kind="mbpp", payload={})
    problem = problems.get(completion.prompt_id, nothing)
    return extract_code(answer(opened, completion.text), problem, prefilled_fence=bool(opened))


def _sample(
    store: Reader, completion: Completion, selection: Selection | None, verdict: str | None, detail: str | None
) -> Json:
    prompt = store.corpus.prompt(completion.prompt_id)
    settings = store.corpus.decode_settings(completion.decode_settings_id)
    logprob, num_tokens = completion.logprob_sum, completion.num_tokens
    return {
        "id": completion.id,
        "round": completion.round,
        "prompt": {
            "id": completion.prompt_id,
            "name": prompt.name if prompt else None,
            "source": prompt.source if prompt else None,
            "statement": prompt.statement if prompt else None,
            "prefill": prompt.content.get("prefill") if prompt else None,
        },
        "sample_index": completion.sample_index,
        "text": completion.text,
        "num_tokens": num_tokens,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "finish_reason": completion.finish_reason,
        "logprob_sum": logprob,
        "mean_token_logprob": logprob / num_tokens if logprob is not None and num_tokens else None,
        "used": selection.used if selection else None,
        "left_out": selection.reason if selection else None,
        "verdict": verdict,
        "detail": detail,
        "checkpoint": completion.checkpoint,
        "decoding": settings,
        "seed": completion.seed,
        "created_at": completion.created_at,
        "sha256": completion.sha256,
    }


def _lines(sample: Json) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding

    from loop.cli.tables import cell

    prompt = sample["prompt"]
    title = f"round {sample['round']} · {safe(prompt['name'])} · sample {sample['sample_index']}"
    head = cell("").append(title, "bold").append(f"   {sample['id'][:12]}", "dim")
    facts = [count(sample["num_tokens"], "token"), f"ended by {sample['finish_reason']}"]
    if sample["mean_token_logprob"] is not None:
        facts.append(f"log-probability {sample['mean_token_logprob']:.3f} per token")
    became = [{True: "used", False: f"left out: {sample['left_out']}", None: "not selected yet"}[sample["used"]]]
    if sample["verdict"]:
        graded = sample["verdict"] + (f" ({sample['detail']})" if sample["detail"] else "")
        became = [*became[: sample["used"] is not None], graded]
    lineage = (
        f"checkpoint {sample['checkpoint'][:12]}, {decoding_words(sample['decoding'])}, seed {sample['seed']}, "
        f"{sample['created_at']}"
    )
    text = cell("").append(safe(prompt["prefill"] or "", lines=True), "dim").append(safe(sample["text"], lines=True))
    program: list[RenderableType] = []
    if sample.get("code", "") is None:
        program = [cell("  no code was found in it", "dim")]
    elif "code" in sample:
        program = [
            cell(f"  the program in it: {safe(sample['verdict'] or 'not graded')}", "dim"),
            Padding(cell(safe(sample["code"].rstrip("\n"), lines=True)), (0, 0, 0, 4), expand=False),
        ]
    return Group(
        head,
        Padding(cell(safe(prompt["statement"] or "", lines=True), "italic"), (0, 0, 0, 2), expand=False),
        Padding(text, (0, 0, 0, 4), expand=False),
        cell(f"  {safe(', '.join(facts))}; {safe('; '.join(became))}", "dim"),
        cell(f"  {safe(lineage)}", "dim"),
        *program,
        cell(""),
    )
