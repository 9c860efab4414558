"""Sampling: one completion per prompt and index from the frozen head, exactly those that are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loop.engines.base import Generated, Request, Sampler, SamplingParams
from store.canonical import sha256_of
from store.records import Completion, Prompt


def seed_of(*address: str | int) -> int:
    """A seed as an address: the same place in the same run always draws the same numbers."""
    return int(sha256_of(list(address))[:13], 16)


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the completions of one stage have in common."""

    run_id: str
    round: int
    checkpoint: str
    evaluation_id: str | None
    decode_settings_id: str


@dataclass(frozen=True, slots=True)
class Planned:
    """One completion that is wanted. `id` says where it belongs, so that it is made once."""

    id: str
    prompt: Prompt
    sample_index: int
    seed: int


def plan(lineage: Lineage, prompts: Sequence[Prompt], num_samples: int, seed: int) -> list[Planned]:
    """Every completion of a stage. The seeds of an evaluation do not depend on the checkpoint: comparisons are paired."""
    place = [lineage.evaluation_id] if lineage.evaluation_id else [lineage.run_id, lineage.round]
    draw = ["evaluation"] if lineage.evaluation_id else ["sampling", lineage.round]
    return [
        Planned(
            sha256_of([*place, lineage.checkpoint, prompt.id, index, lineage.decode_settings_id]),
            prompt,
            index,
            seed_of(seed, *draw, prompt.id, index),
        )
        for prompt in prompts
        for index in range(num_samples)
    ]


def sample(
    planned: Sequence[Planned], lineage: Lineage, params: SamplingParams, sampler: Sampler
) -> Iterator[list[Completion]]:
    """Generate what is planned; yields lists as they finish, each to be stored before the next is asked for."""
    wanted = {item.id: item for item in planned}
    requests = [
        Request(
            id=item.id,
            messages=tuple(item.prompt.content["messages"]),
            prefill=item.prompt.content["prefill"],
            seed=item.seed,
        )
        for item in planned
    ]
    for batch in sampler.generate(requests, params):
        yield [_completion(wanted[generated.id], generated, lineage, sampler.tokenizer_sha256) for generated in batch]


def _completion(item: Planned, generated: Generated, lineage: Lineage, tokenizer_sha256: str) -> Completion:
    return Completion(
        id=item.id,
        run_id=lineage.run_id,
        round=lineage.round,
        evaluation_id=lineage.evaluation_id,
        checkpoint=lineage.checkpoint,
        prompt_id=item.prompt.id,
        sample_index=item.sample_index,
        decode_settings_id=lineage.decode_settings_id,
        seed=item.seed,
        text=generated.text,
        token_ids=generated.token_ids,
        prompt_token_ids=generated.prompt_token_ids,
        tokenizer_sha256=tokenizer_sha256,
        num_tokens=len(generated.token_ids),
        num_prompt_tokens=len(generated.prompt_token_ids),
        finish_reason=generated.finish_reason,
        logprob_sum=generated.logprob_sum,
    )
