"""The rules that `collect.data` chooses from: which completions the next fine-tune sees, by what they are, not by what they say.

A data policy is a frozen pydantic model chosen by `type` in loop.toml's `collect.data`; its fields are the keys there. To
add one, subclass DataPolicy and name it in `DATA_POLICIES`; a package of your own names it in an entry point of the group
"loop.data_policies". A policy only selects: the corpus keeps everything.

The round's own completions are *fresh*; *earlier* ones are those of the rounds before it on the way from the base to the
present head. A round that was rolled back is among them: its completions were drawn from the head, whatever became of the
candidate. No policy sees empty completions, or what
`collect.min_lines` and `collect.drop_shortest` leave out.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from policies.by_type import Registry

SHINGLE = 5  # characters


@dataclass(frozen=True, slots=True)
class PastRound:
    """A round before the present one that has finished sampling, on the way to the present head."""

    number: int
    kept: bool
    from_base: bool  # its completions were drawn from the base


@dataclass(frozen=True, slots=True)
class CompletionFacts:
    """A completion that may be trained on, without its text."""

    id: str
    round: int
    prompt_id: str
    sample_index: int
    num_tokens: int
    from_base: bool = False


@dataclass(frozen=True, slots=True)
class Usable:
    """The completions of one round that may be used. `ids` can be iterated over repeatedly, and need not be in memory."""

    round: int
    from_base: bool
    ids: Collection[str]


class DataPolicy(BaseModel):
    """What every data policy is: its keys, and which completions it wants and draws."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    type: str
    dedup: Literal["none", "exact", "near"] = Field(
        "none", description="Of completions of one prompt that are the same, or nearly so, the newest alone is used."
    )
    near_similarity: float = Field(
        0.9,
        gt=0.0,
        le=1.0,
        description="Nearly the same: at least this share of all runs of 5 characters is common (Jaccard).",
    )
    min_tokens: int = Field(0, ge=0, description="Shorter completions are not used.")
    max_tokens: PositiveInt | None = Field(None, description="Longer completions are not used.")
    passed_tests: bool = Field(False, description="Use only completions that pass the tests of their prompt.")
    without_tests: Literal["keep", "drop"] = Field(
        "keep", description="With passed_tests: what happens to completions of prompts that have no tests."
    )

    @model_validator(mode="after")
    def _limits(self) -> DataPolicy:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}; nothing would be left"
            )
        return self

    def wanted(self, past: Sequence[PastRound]) -> list[int]:
        """The numbers of the earlier rounds whose completions come into question."""
        return []

    def draw(self, usable: Sequence[Usable], round: int, seed: int) -> list[Collection[str]]:
        """For each of `usable` the ids that are used; the same object where that is all of them.

        The order of rounds and of ids does not matter. The same seed draws the same.
        """
        return [of_round.ids for of_round in usable]

    def not_drawn(self) -> str:
        """Why a usable completion was not drawn."""
        return "not drawn"


class _WithEarlier(DataPolicy):
    only_kept: bool = Field(False, description="Of the earlier rounds take only those that were kept.")

    def wanted(self, past: Sequence[PastRound]) -> list[int]:
        return sorted(round.number for round in past if round.kept or not self.only_kept)


class Replace(DataPolicy):
    """The round's own completions."""

    type: Literal["replace"] = "replace"


class Accumulate(_WithEarlier):
    """The round's own and all earlier completions."""

    type: Literal["accumulate"] = "accumulate"


class Window(_WithEarlier):
    """The completions of the last rounds, this one among them."""

    type: Literal["window"] = "window"
    rounds: PositiveInt = Field(description="How many rounds, this one among them.")

    def wanted(self, past: Sequence[PastRound]) -> list[int]:
        return super().wanted(past)[-(self.rounds - 1) :] if self.rounds > 1 else []


class Mix(_WithEarlier):
    """All fresh completions, and as many others as it takes for these to have their shares.

    Fewer where that many do not exist. Base samples are drawn first; the earlier ones are any that are left.
    """

    type: Literal["mix"] = "mix"
    earlier: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of the training rows that comes from earlier rounds."
    )
    base: float = Field(0.0, ge=0.0, lt=1.0, description="Share that was drawn from the base model (round 1's).")

    @model_validator(mode="after")
    def _shares(self) -> Mix:
        if not self.earlier and not self.base:
            raise ValueError('has neither earlier nor base; give a share, or type = "replace"')
        if self.earlier + self.base >= 1.0:
            raise ValueError(f"earlier {self.earlier:g} and base {self.base:g} leave no share for fresh completions")
        return self

    def wanted(self, past: Sequence[PastRound]) -> list[int]:
        return super().wanted([round for round in past if self.earlier or round.from_base])

    def draw(self, usable: Sequence[Usable], round: int, seed: int) -> list[Collection[str]]:
        num_fresh = sum(len(of_round.ids) for of_round in usable if of_round.round == round)
        num_rows = num_fresh / (1.0 - self.earlier - self.base)
        drawn: dict[int, set[str]] = {at: set() for at, of_round in enumerate(usable) if of_round.round != round}
        for share, only_base in ((self.base, True), (self.earlier, False)):
            left = {
                at: filterfalse(chosen.__contains__, usable[at].ids)
                for at, chosen in drawn.items()
                if usable[at].from_base or not only_base
            }
            for at, id in _sample(left, int(share * num_rows + 1e-9), seed):
                drawn[at].add(id)
        return [drawn.get(at, of_round.ids) for at, of_round in enumerate(usable)]


class Pool(_WithEarlier):
    """A sample of fixed size of the round's own and all earlier completions."""

    type: Literal["pool"] = "pool"
    size: PositiveInt = Field(description="How many completions training sees.")

    def draw(self, usable: Sequence[Usable], round: int, seed: int) -> list[Collection[str]]:
        drawn: list[set[str]] = [set() for _ in usable]
        for at, id in _sample({at: of_round.ids for at, of_round in enumerate(usable)}, self.size, seed):
            drawn[at].add(id)
        return list(drawn)

    def not_drawn(self) -> str:
        return f"not drawn from the pool (for the {self.size} that are used)"


DATA_POLICIES = Registry(
    DataPolicy, "loop.data_policies", '{ type = "accumulate" }', Replace, Accumulate, Mix, Window, Pool
)


def why_not(policy: DataPolicy, candidate: CompletionFacts, verdict: str | None) -> str | None:
    """Why one completion is not used, whatever the others are; None if it may be.

    `verdict`: how it did on its prompt's tests ("passed", "failed", ...); None if there are none, or none are wanted.
    """
    if candidate.num_tokens < policy.min_tokens:
        return f"shorter than min_tokens ({candidate.num_tokens} of {policy.min_tokens} tokens)"
    if policy.max_tokens is not None and candidate.num_tokens > policy.max_tokens:
        return f"longer than max_tokens ({candidate.num_tokens} of {policy.max_tokens} tokens)"
    if policy.passed_tests and verdict is None and policy.without_tests == "drop":
        return "its prompt has no tests"
    if policy.passed_tests and verdict not in (None, "passed"):
        return f"did not pass its prompt's tests ({verdict})"
    return None


def by_age(candidate: CompletionFacts) -> tuple[int, int, str]:
    """Sorts the completions of one prompt, the newest first: of equal ones the newest stays."""
    return -candidate.round, candidate.sample_index, candidate.id


def repeats(
    policy: DataPolicy, candidates: Collection[CompletionFacts], texts: Mapping[str, str]
) -> dict[str, CompletionFacts]:
    """For each of one prompt's completions that repeats another, by id, the one that it repeats, which stays.

    Every text is compared with all that stay, so this is for one prompt at a time and not for a corpus.
    """
    if policy.dedup == "none":
        return {}
    repeated: dict[str, CompletionFacts] = {}
    first: dict[str, CompletionFacts] = {}  # by text
    stay: list[tuple[CompletionFacts, frozenset[str]]] = []
    for candidate in sorted(candidates, key=by_age):
        text = texts[candidate.id]
        original = first.get(text)
        if original is None and policy.dedup == "near":
            mine = shingles(text)
            original = next((other for other, its in stay if _similar(mine, its, policy.near_similarity)), None)
            if original is None:
                stay.append((candidate, mine))
        if original is not None:
            repeated[candidate.id] = original
        first.setdefault(text, original or candidate)
    return repeated


def shingles(text: str) -> frozenset[str]:
    """All runs of SHINGLE characters, any white space as one blank; a shorter text is one run."""
    text = " ".join(text.split())
    return frozenset(text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1)))


def similarity(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard's index: what is common, as a share of all."""
    num_common = len(left & right)
    return num_common / (len(left) + len(right) - num_common)


def _similar(left: frozenset[str], right: frozenset[str], least: float) -> bool:
    if min(len(left), len(right)) < least * max(len(left), len(right)):
        return False  # for no more than the smaller set can be common
    return similarity(left, right) >= least


def _sample(ids: Mapping[int, Iterable[str]], size: int, seed: int) -> list[tuple[int, str]]:
    """`size` of all the ids, each with its key. By hash and not by a random generator: their order does not matter.

    Memory is that of what is drawn.
    """
    if not size:
        return []
    seeded = hashlib.sha256(f"{seed} ".encode()).copy
    smallest: list[tuple[bytes, str, int]] = []
    largest = b"\xff" * 32  # the largest hash that may still be drawn
    for key, some in ids.items():
        for id in some:
            digest = seeded()
            digest.update(id.encode())
            if (place := digest.digest()) <= largest:
                smallest.append((place, id, key))
                if len(smallest) > 2 * size + 1000:
                    smallest = heapq.nsmallest(size, smallest)
                    largest = smallest[-1][0]
    return [(key, id) for _, id, key in heapq.nsmallest(size, smallest)]
