"""Which completions are trained on: tables of each policy, and what holds for all of them."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.data import (
    DATA_POLICIES,
    CompletionFacts,
    Mix,
    PastRound,
    Usable,
    by_age,
    repeats,
    shingles,
    similarity,
    why_not,
)

WHERE = ("collect", "data")


def data(type: str, **keys: Any) -> Any:
    """A data policy by its type."""
    return DATA_POLICIES.build({"type": type, **keys}, WHERE)


def candidate(
    name: str, round: int = 1, prompt: str = "p", num_tokens: int = 10, base: bool = False
) -> CompletionFacts:
    """A completion with this id."""
    return CompletionFacts(name, round, prompt, 0, num_tokens, base)


def corpus(*sizes: int) -> list[CompletionFacts]:
    """Completions, as many for each round as `sizes` say, from round 1, which the base wrote."""
    return [
        candidate(f"{number}-{index}", number, f"p{index}", base=number == 1)
        for number, size in enumerate(sizes, start=1)
        for index in range(size)
    ]


def drawn(policy: Any, candidates: list[CompletionFacts], round: int, seed: int) -> set[str]:
    """What a policy draws of these completions."""
    by_round: dict[int, list[CompletionFacts]] = {}
    for each in candidates:
        by_round.setdefault(each.round, []).append(each)
    usable = [Usable(number, of[0].from_base, [each.id for each in of]) for number, of in by_round.items()]
    chosen = policy.draw(usable, round, seed)
    assert all(set(ids) <= set(of.ids) and len(ids) == len(set(ids)) for ids, of in zip(chosen, usable, strict=True))
    return {id for ids in chosen for id in ids}


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (data("replace"), []),
        (data("accumulate"), [1, 2, 4, 5]),
        (data("accumulate", only_kept=True), [2, 5]),
        (data("window", rounds=1), []),
        (data("window", rounds=3), [4, 5]),
        (data("window", rounds=3, only_kept=True), [2, 5]),
        (data("window", rounds=9), [1, 2, 4, 5]),
        (data("mix", base=0.1), [1, 2]),
        (data("mix", base=0.1, only_kept=True), [2]),
        (data("mix", earlier=0.1, base=0.1), [1, 2, 4, 5]),
        (data("pool", size=3), [1, 2, 4, 5]),
    ],
)
def test_which_earlier_rounds_come_into_question(policy: Any, wanted: list[int]) -> None:
    past = [
        PastRound(5, kept=True, from_base=False),
        PastRound(1, kept=False, from_base=True),  # rolled back: the base wrote round 2's as well
        PastRound(4, kept=False, from_base=False),
        PastRound(2, kept=True, from_base=True),
    ]
    assert policy.wanted(past) == wanted


@pytest.mark.parametrize(
    ("policy", "sizes", "num_by_round"),
    [
        (data("replace"), (0, 0, 8), [0, 0, 8]),
        (data("accumulate"), (4, 4, 8), [4, 4, 8]),
        (data("window", rounds=2), (0, 4, 8), [0, 4, 8]),
        (data("mix", base=0.5), (20, 0, 8), [8, 0, 8]),
        (data("mix", base=0.5), (3, 0, 8), [3, 0, 8]),  # there are not so many
        (data("mix", earlier=0.25, base=0.25), (8, 0, 8), [8, 0, 8]),  # where only the base has written
        (data("mix", earlier=0.2), (0, 9, 8), [0, 2, 8]),
        (data("mix", earlier=0.2), (0, 9, 0), [0, 0, 0]),
        (data("mix", earlier=0.1), (0, 9, 8), [0, 0, 8]),
    ],
)
def test_how_many_of_each_round(policy: Any, sizes: tuple[int, ...], num_by_round: list[int]) -> None:
    chosen = drawn(policy, corpus(*sizes), 3, seed=7)
    assert [sum(id.startswith(f"{number}-") for id in chosen) for number in (1, 2, 3)] == num_by_round


def test_a_pool_has_its_size_and_another_seed_draws_others() -> None:
    pool = data("pool", size=10)
    draws = [drawn(pool, corpus(20, 20, 20), 3, seed) for seed in range(50)]
    assert {len(chosen) for chosen in draws} == {10} and len({frozenset(chosen) for chosen in draws}) == 50
    counts = [sum(id in chosen for chosen in draws) for id in (each.id for each in corpus(20, 20, 20))]
    assert max(counts) < 20 and min(counts) > 0  # 8.3 on average; no place in the corpus is preferred
    assert drawn(data("pool", size=100), corpus(3, 3), 2, 0) == {each.id for each in corpus(3, 3)}


@pytest.mark.parametrize("size", [1, 7, 2000, 9999])
def test_a_draw_takes_those_of_the_smallest_hash(size: int) -> None:
    candidates = corpus(4000, 4000, 10)
    expected = sorted(candidates, key=lambda each: hashlib.sha256(f"5 {each.id}".encode()).digest())[:size]
    assert drawn(data("pool", size=size), candidates, 3, 5) == {each.id for each in expected}


POLICIES = st.one_of(
    st.just({"type": "replace"}),
    st.builds(lambda kept: {"type": "accumulate", "only_kept": kept}, st.booleans()),
    st.builds(lambda rounds: {"type": "window", "rounds": rounds}, st.integers(1, 5)),
    st.builds(lambda size: {"type": "pool", "size": size}, st.integers(1, 60)),
    st.builds(lambda a, b: {"type": "mix", "earlier": a, "base": b}, st.floats(0.01, 0.49), st.floats(0, 0.49)),
).map(lambda table: DATA_POLICIES.build(table, WHERE))


@given(POLICIES, st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(0, 2**52), st.randoms())
def test_what_holds_for_every_draw(policy: Any, sizes: list[int], seed: int, shuffle: random.Random) -> None:
    newest = len(sizes)
    past = [PastRound(number, number % 2 == 0, number == 1) for number in range(1, newest)]
    wanted = {*policy.wanted(past), newest}
    assert wanted <= set(range(1, newest + 1))
    usable = [each for each in corpus(*sizes) if each.round in wanted]
    chosen = drawn(policy, usable, newest, seed)
    assert chosen <= {each.id for each in usable}
    shuffled = usable[:]
    shuffle.shuffle(shuffled)
    assert drawn(policy, shuffled, newest, seed) == chosen
    if policy.type in ("replace", "accumulate", "window"):
        assert chosen == {each.id for each in usable}
    if policy.type == "pool":
        assert len(chosen) == min(policy.size, len(usable))
    if policy.type == "mix":
        shares_hold(policy, usable, chosen, newest)


def shares_hold(policy: Mix, usable: list[CompletionFacts], chosen: set[str], newest: int) -> None:
    """All fresh completions; the others have their shares to within two rows, or there are no more of them."""
    fresh = {each.id for each in usable if each.round == newest}
    others = [each for each in usable if each.round != newest]
    assert fresh <= chosen
    total = len(fresh) / (1 - policy.earlier - policy.base)
    num_base = sum(each.from_base for each in others)
    num_drawn = len(chosen - fresh)
    assert num_drawn <= (policy.earlier + policy.base) * total + 1e-6
    if num_base >= policy.base * total and len(others) >= (policy.earlier + policy.base) * total:
        assert num_drawn > (policy.earlier + policy.base) * total - 2


@given(st.integers(0, 30), st.integers(0, 10), st.none() | st.integers(10, 20), st.booleans(), st.booleans(),
       st.sampled_from([None, "passed", "failed", "timeout"]))  # fmt: skip
def test_a_reason_there_is_exactly_where_a_rule_is_broken(
    num_tokens: int, low: int, high: int | None, passed: bool, drop: bool, verdict: str | None
) -> None:
    policy = data("replace", min_tokens=low, max_tokens=high, passed_tests=passed,
                  without_tests="drop" if drop else "keep")  # fmt: skip
    fits = low <= num_tokens <= (high or num_tokens)
    tested = not passed or verdict == "passed" or (verdict is None and not drop)
    assert (why_not(policy, candidate("a", num_tokens=num_tokens), verdict) is None) == (fits and tested)


@pytest.mark.parametrize(
    ("keys", "num_tokens", "verdict", "reason"),
    [
        ({"min_tokens": 5}, 4, None, "shorter than min_tokens (4 of 5 tokens)"),
        ({"max_tokens": 5}, 6, None, "longer than max_tokens (6 of 5 tokens)"),
        ({"passed_tests": True}, 6, "timeout", "did not pass its prompt's tests (timeout)"),
        ({"passed_tests": True, "without_tests": "drop"}, 6, None, "its prompt has no tests"),
    ],
)
def test_reasons(keys: dict[str, Any], num_tokens: int, verdict: str | None, reason: str) -> None:
    assert why_not(data("replace", **keys), candidate("a", num_tokens=num_tokens), verdict) == reason


def test_repeats_of_one_prompt() -> None:
    texts = {
        "new": "def f(a):\n    return a + 1\n",
        "same": "def f(a):\n    return a + 1\n",
        "spaced": "def f(a):\n        return a  +  1\n\n",
        "other": "for line in open(0):\n    print(line.upper())\n",
    }
    completions = [candidate("other", 1), candidate("same", 1), candidate("spaced", 2), candidate("new", 3)]
    for dedup, repeated in (("near", {"same", "spaced"}), ("exact", {"same"}), ("none", set())):
        originals = repeats(data("replace", dedup=dedup), completions, texts)
        assert {id: original.id for id, original in originals.items()} == dict.fromkeys(repeated, "new")


@given(st.lists(st.tuples(st.text("ab \n", max_size=12), st.integers(1, 3)), max_size=12),
       st.sampled_from(["exact", "near"]), st.floats(0.05, 1.0), st.randoms())  # fmt: skip
@settings(max_examples=200)
def test_what_holds_for_duplicates(
    given_texts: list[tuple[str, int]], dedup: str, least: float, shuffle: random.Random
) -> None:
    completions = [candidate(str(index), round) for index, (_, round) in enumerate(given_texts)]
    texts = {str(index): text for index, (text, _) in enumerate(given_texts)}
    policy = data("accumulate", dedup=dedup, near_similarity=least)
    repeated = repeats(policy, completions, texts)
    shuffled = completions[:]
    shuffle.shuffle(shuffled)
    assert repeats(policy, shuffled, texts) == repeated
    stay = [each for each in completions if each.id not in repeated]
    assert len({texts[each.id] for each in stay}) == len(stay)  # no duplicates are left
    if dedup == "near":
        alike = [similarity(shingles(texts[a.id]), shingles(texts[b.id])) for a in stay for b in stay if a.id < b.id]
        assert all(share < least for share in alike)
    for id, original in repeated.items():
        assert original.id not in repeated and by_age(original) < by_age(completions[int(id)])
