"""Sampling: one completion per prompt and index from one checkpoint, and only what is missing is generated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from loop.engines.base import Generated, Request, Sampler, SamplingParams
from loop.engines.feed import Listed
from store.canonical import sha256_of
from store.records import Completion, Prompt

STORED_AT_ONCE = 64  # completions of one transaction, where an engine gives them faster than that
STORED_EVERY_S = 0.5

T = TypeVar("T")


def seed_of(*address: str | int) -> int:
    """A seed as an address: the same place in the same run always draws the same numbers."""
    return int(sha256_of(list(address))[:13], 16)


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the completions of one stage have in common: fields of `Completion`."""

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


def completion_id(lineage: Lineage, prompt_id: str, sample_index: int) -> str:
    """Where a completion belongs, as one hash."""
    place = [lineage.evaluation_id] if lineage.evaluation_id else [lineage.run_id, lineage.round]
    return sha256_of([*place, lineage.checkpoint, prompt_id, sample_index, lineage.decode_settings_id])


def plan(lineage: Lineage, prompts: Sequence[Prompt], num_samples: int, seed: int) -> list[Planned]:
    """Every completion of a stage. The seeds of an evaluation do not depend on the checkpoint: comparisons are paired."""
    draw = ["evaluation"] if lineage.evaluation_id else ["sampling", lineage.round]
    return [
        Planned(completion_id(lineage, prompt.id, index), prompt, index, seed_of(seed, *draw, prompt.id, index))
        for prompt in prompts
        for index in range(num_samples)
    ]


def request_of(prompt: Prompt, id: str, seed: int) -> Request:
    """The request for one completion of a prompt."""
    return Request(id=id, messages=tuple(prompt.content["messages"]), prefill=prompt.content["prefill"], seed=seed)


def sample(
    planned: Sequence[Planned], done: Collection[str], lineage: Lineage, params: SamplingParams, sampler: Sampler
) -> Iterator[list[Completion]]:
    """Generate what is planned and not done; yields lists as they finish, to be `gathered` and stored.

    The longest prompts come first, so that one that does not fit in memory fails at once, and the completions of a prompt
    one after the other. A request is made when the sampler takes it. A resumed stage forms other batches.
    """
    shared = asdict(lineage) | {"tokenizer_sha256": sampler.tokenizer_sha256}
    missing = sorted((item for item in planned if item.id not in done), key=lambda item: -num_characters(item.prompt))
    under_way: dict[str, Planned] = {}

    def requests() -> Iterator[Request]:
        for item in missing:
            under_way[item.id] = item
            yield request_of(item.prompt, item.id, item.seed)

    for batch in sampler.generate(Listed(requests(), len(missing)), params) if missing else ():
        yield [_completion(under_way.pop(item.id), item, shared) for item in batch]


def num_characters(prompt: Prompt) -> int:
    """The length of a prompt's text, which stands for its number of tokens where there is no tokenizer."""
    return len(prompt.content["prefill"]) + sum(len(message["content"]) for message in prompt.content["messages"])


def gathered(batches: Iterable[list[T]], clock: Callable[[], float]) -> Iterator[list[T]]:
    """The same rows in the same order in fewer lists: an engine may give rows one by one, and each transaction is a sync.

    A list is handed on once it has STORED_AT_ONCE rows, or STORED_EVERY_S after the one before it by `clock` (seconds).
    What is left is handed on at the end, and before an error of the source is raised. The clock is read only when rows come:
    a kill loses what has come since the last list (fewer than STORED_AT_ONCE rows, all of them within STORED_EVERY_S of
    it), and the resumed stage makes it again.
    """
    waiting: list[T] = []
    before = clock()
    try:
        for batch in batches:
            waiting += batch
            if len(waiting) >= STORED_AT_ONCE or clock() - before >= STORED_EVERY_S:
                ready, waiting = waiting, []
                yield ready
                before = clock()
    except BaseException:  # a signal, too; where the consumer has stopped, nothing is waiting
        if waiting:
            yield waiting
        raise
    if waiting:
        yield waiting


def _completion(item: Planned, generated: Generated, shared: dict[str, Any]) -> Completion:
    return Completion(
        **shared,
        id=item.id,
        prompt_id=item.prompt.id,
        sample_index=item.sample_index,
        seed=item.seed,
        text=generated.text,
        token_ids=generated.token_ids,
        prompt_token_ids=generated.prompt_token_ids,
        num_tokens=len(generated.token_ids),
        num_prompt_tokens=len(generated.prompt_token_ids),
        finish_reason=generated.finish_reason,
        logprob_sum=generated.logprob_sum,
    )
