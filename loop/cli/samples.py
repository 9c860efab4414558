"""`loopctl samples`: reads the corpus. What a model wrote is shown, never obeyed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loop.cli.call import print_json, shared_options, the_call
from loop.cli.text import count, decoding_words, safe
from store.records import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from loop.cli.view import Reader
    from store.records import Completion, Selection


@click.command("samples")
@click.option("--round", "number", type=click.IntRange(min=1), metavar="N", help="Of this round; default: of all.")
@click.option("--prompt", metavar="ID", help="To this prompt: its id or its name.")
@click.option("--search", metavar="TEXT", help="With this text in them (case ignored for ASCII).")
@click.option("--limit", type=click.IntRange(min=1), default=10, metavar="K", show_default=True, help="The newest K.")
@shared_options
def samples_command(number: int | None, prompt: str | None, search: str | None, limit: int) -> None:
    """Completions that the model was trained on, or that were left out and why, newest first."""
    from loop.cli.view import reader

    with reader(the_call().place().run_dir) as found:
        completions = found.corpus.search(run_id=found.run.id, round=number, prompt_id=prompt, text=search, limit=limit)
        answer = samples(found, completions)
    if the_call().json:
        print_json(answer)
        return
    if not answer:
        click.echo("no such completion")
        return
    from rich.console import Group

    from loop.cli.tables import console, show

    show(console(), Group(*(_lines(sample) for sample in answer)))


def samples(found: Reader, completions: list[Completion]) -> list[Json]:
    """Completions with their prompt, their lineage and what became of them."""
    wanted = {completion.id for completion in completions}
    selected: dict[str, Selection] = {}
    for number in {completion.round for completion in completions}:
        for selection in found.corpus.selections(found.run.id, number):
            if selection.completion_id in wanted:
                selected[selection.completion_id] = selection
    return [_sample(found, completion, selected.get(completion.id)) for completion in completions]


def _sample(found: Reader, completion: Completion, selection: Selection | None) -> Json:
    prompt = found.corpus.prompt(completion.prompt_id)
    settings = found.corpus.decode_settings(completion.decode_settings_id)
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
        "checkpoint": completion.checkpoint,
        "decoding": settings.settings if settings else None,
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
    used = {True: "used", False: f"left out: {sample['left_out']}", None: "not selected yet"}[sample["used"]]
    lineage = (
        f"checkpoint {sample['checkpoint'][:12]}, {decoding_words(sample['decoding'])}, seed {sample['seed']}, "
        f"{sample['created_at']}"
    )
    whole = cell("").append(safe(prompt["prefill"] or "", lines=True), "dim").append(safe(sample["text"], lines=True))
    return Group(
        head,
        Padding(cell(safe(prompt["statement"] or "", lines=True), "italic"), (0, 0, 0, 2), expand=False),
        Padding(whole, (0, 0, 0, 4), expand=False),
        cell(f"  {safe(', '.join(facts))}; {safe(used)}", "dim"),
        cell(f"  {safe(lineage)}", "dim"),
        cell(""),
    )
