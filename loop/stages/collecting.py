"""Collecting: which of a round's completions the fine-tune sees. Raw, minus empties and stubs; nothing is executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loop.config import Collect
from loop.prompts.templates import answer
from store.records import Completion, Selection


def collect(
    completions: Iterable[Completion], openings: Mapping[str, str], settings: Collect, run_id: str, round: int
) -> list[Selection]:
    """One selection per completion, in an order that does not depend on who arrived first.

    `openings`: prompt id -> the text that opened its answers; a line that it holds counts as a line of the answer.
    """
    found = sorted(
        (completion.prompt_id, completion.sample_index, completion.id, _why_not(completion, openings, settings),
         completion.num_tokens)
        for completion in completions
    )  # fmt: skip
    usable = sorted((num_tokens, id) for _, _, id, why_not, num_tokens in found if why_not is None)
    shortest = {id for _, id in usable[: int(settings.drop_shortest * len(usable))]}
    selections = []
    for position, (_, _, id, why_not, num_tokens) in enumerate(found):
        if id in shortest:
            why_not = f"among the shortest {settings.drop_shortest:.0%} ({num_tokens} tokens)"
        selections.append(Selection(run_id, round, id, position, why_not is None, why_not))
    return selections


def _why_not(completion: Completion, openings: Mapping[str, str], settings: Collect) -> str | None:
    if not completion.text.strip() or not completion.token_ids:
        return "empty"
    whole = answer(openings.get(completion.prompt_id, ""), completion.text)
    num_lines = sum(bool(line.strip()) and not line.lstrip().startswith("```") for line in whole.splitlines())
    if num_lines < settings.min_lines:
        return f"a stub of {num_lines} line{'s' if num_lines != 1 else ''} (fewer than {settings.min_lines})"
    return None
