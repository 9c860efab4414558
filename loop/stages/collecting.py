"""Collecting: which completions the fine-tune sees, and why not the others. Raw, minus empties, stubs and what the data
policy of the round leaves out.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loop.config import Collect
from loop.prompts.templates import answer
from policies.data import AnyData, Candidate, repeats, why_not
from store.records import CompletionText, Selection

Collected = tuple[Candidate, str | None]  # a completion, and why no training ever sees it


@dataclass(frozen=True, slots=True)
class Chosen:
    """What training sees. `selections` holds all of the round's own completions, and the earlier ones that are used."""

    selections: list[Selection]
    num_earlier: int
    earlier_left_out: dict[str, int]  # reason -> completions; one by one they would outgrow the corpus


def collect(
    completions: Iterable[CompletionText],
    openings: Mapping[str, str],
    settings: Collect,
    round: int,
    from_base: bool = False,
) -> list[Collected]:
    """All of one round's completions, in an order that does not depend on who arrived first.

    `openings`: prompt id -> the text that opened its answers; a line that it holds counts as a line of the answer.
    """
    found = [
        (Candidate(one.id, round, sys.intern(one.prompt_id), one.sample_index, one.num_tokens, from_base),
         _why_never(one, openings, settings))
        for one in completions
    ]  # fmt: skip
    found.sort(key=lambda one: _place(one[0]))
    usable = sorted((candidate.num_tokens, candidate.id) for candidate, why in found if why is None)
    shortest = {id for _, id in usable[: int(settings.drop_shortest * len(usable))]}
    return [
        (candidate, f"among the shortest {settings.drop_shortest:.0%} ({candidate.num_tokens} tokens)")
        if candidate.id in shortest
        else (candidate, why)
        for candidate, why in found
    ]


def choose(
    policy: AnyData,
    collected: Sequence[Collected],
    verdicts: Mapping[str, str],
    texts_of: Callable[[list[str]], Mapping[str, str]],
    run_id: str,
    round: int,
    seed: int,
) -> Chosen:
    """Apply a data policy to the round's own completions and to those of the earlier rounds that it wants.

    `verdicts`: completion id -> how it did on its prompt's tests. `texts_of` is asked for one prompt's texts at a time.
    """
    left_out = {candidate.id: why for candidate, why in collected if why is not None}
    for candidate, _ in collected:
        if candidate.id not in left_out and (why := why_not(policy, candidate, verdicts.get(candidate.id))):
            left_out[candidate.id] = why
    usable = [candidate for candidate, _ in collected if candidate.id not in left_out]
    if policy.dedup != "none":
        left_out |= _repeats(policy, usable, texts_of)
        usable = [candidate for candidate in usable if candidate.id not in left_out]
    drawn = policy.draw(usable, round, seed)
    not_drawn = policy.not_drawn()
    left_out |= {candidate.id: not_drawn for candidate in usable if candidate.id not in drawn}
    rows = sorted((one for one, _ in collected if one.round == round or one.id in drawn), key=_place)
    return Chosen(
        selections=[
            Selection(run_id, round, one.id, position, one.id in drawn, left_out.get(one.id))
            for position, one in enumerate(rows)
        ],
        num_earlier=sum(one.round != round for one in rows),
        earlier_left_out=dict(
            Counter(
                left_out[one.id].partition(" (")[0]
                for one, _ in collected
                if one.round != round and one.id not in drawn
            )
        ),
    )


def _place(candidate: Candidate) -> tuple[str, int, int, str]:
    return candidate.prompt_id, candidate.sample_index, candidate.round, candidate.id


def _repeats(
    policy: AnyData, usable: Iterable[Candidate], texts_of: Callable[[list[str]], Mapping[str, str]]
) -> dict[str, str]:
    by_prompt: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in usable:
        by_prompt[candidate.prompt_id].append(candidate)
    found: dict[str, str] = {}
    for group in by_prompt.values():
        if len(group) > 1:
            for id, original in repeats(policy, group, texts_of([one.id for one in group])).items():
                found[id] = (
                    f"repeats another completion of its prompt (round {original.round}, sample {original.sample_index})"
                )
    return found


def _why_never(completion: CompletionText, openings: Mapping[str, str], settings: Collect) -> str | None:
    if not completion.text.strip() or not completion.num_tokens:
        return "empty"
    whole = answer(openings.get(completion.prompt_id, ""), completion.text)
    num_lines = sum(bool(line.strip()) and not line.lstrip().startswith("```") for line in whole.splitlines())
    if num_lines < settings.min_lines:
        return f"a stub of {num_lines} line{'s' if num_lines != 1 else ''} (fewer than {settings.min_lines})"
    return None
