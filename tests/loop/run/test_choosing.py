"""Collecting and choosing together: whatever arrives in whatever order, what is left out has a reason and is not used."""

from __future__ import annotations

import hashlib
import heapq
import random
import tracemalloc
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.config.settings import Collect
from loop.stages.collecting import Chosen, Collected, Earlier, choose, collect, parts_of
from loop.stages.packed import ENTRY, PARTS, Packed
from policies.data import DATA_POLICIES, CompletionFacts, DataPolicy, Mix, Pool, repeats, why_not
from store.canonical import sha256_of
from store.records import CompletionText, Selection

TEXTS = [
    "",
    " \n",
    "x = 1",
    "x = 1\ny = 2",
    "x = 1\ny = 3",
    "x = 1\ny = 2\nprint(x + y)\n",
    "```\nx\n```",
    "import this\nx\ny\n",
]

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dedup": st.sampled_from(["exact", "near"]),
        "near_similarity": st.floats(0.2, 1.0),
        "min_tokens": st.integers(0, 3),
        "max_tokens": st.integers(3, 9),
        "passed_tests": st.booleans(),
        "without_tests": st.sampled_from(["keep", "drop"]),
    },
)
TYPES: Any = st.sampled_from(
    [{"type": "replace"}, {"type": "accumulate"}, {"type": "window", "rounds": 2}, {"type": "pool", "size": 4},
     {"type": "mix", "earlier": 0.4, "base": 0.2}]
)  # fmt: skip
COMPLETIONS = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from("pqr"), st.sampled_from(TEXTS), st.integers(0, 10)), max_size=25
)
VERDICTS = st.sampled_from([None, "passed", "failed", "timeout"])


def earlier_round(collected: list[Collected], number: int, from_base: bool) -> Earlier:
    """An earlier round as it is stored."""
    parts = parts_of(collected)
    left_out: Counter[str] = Counter()
    for part in parts:
        left_out.update(part.left_out)
    num = sum(len(part.entries) for part in parts) // ENTRY.size
    return Earlier(Packed(number, from_base, num, lambda part: parts[part].entries), left_out)


def chosen_in_memory(
    policy: DataPolicy,
    collected: list[Collected],
    verdicts: dict[str, str],
    texts: dict[str, str],
    round: int,
    seed: int,
) -> tuple[list[Selection], dict[str, int]]:
    """What `choose` means, with everything in memory at once: the selections, and why earlier ones are left out."""
    left_out = {one.candidate.id: one.why for one in collected if one.why is not None}
    for one in collected:
        id = one.candidate.id
        if id not in left_out and (why := why_not(policy, one.candidate, verdicts.get(id))):
            left_out[id] = why
    groups = defaultdict(list)
    for one in collected:
        if one.candidate.id not in left_out:
            groups[one.candidate.prompt_id].append(one.candidate)
    for group in groups.values():
        for id, original in repeats(policy, group, texts).items():
            left_out[id] = (
                f"repeats another completion of its prompt (round {original.round}, sample {original.sample_index})"
            )
    usable = [one.candidate for one in collected if one.candidate.id not in left_out]
    drawn = drawn_in_memory(policy, usable, round, seed)
    left_out |= {one.id: policy.not_drawn() for one in usable if one.id not in drawn}
    candidates = sorted(
        (one.candidate for one in collected), key=lambda c: (c.prompt_id, c.sample_index, c.round, c.id)
    )
    arrivals = {one.candidate.id: one.arrival for one in collected if one.candidate.round != round}
    selections = [
        Selection("run", round, one.id, position, one.id in drawn, left_out.get(one.id), arrivals.get(one.id))
        for position, one in enumerate(one for one in candidates if one.round == round or one.id in drawn)
    ]
    others = [one.id for one in candidates if one.round != round and one.id not in drawn]
    return selections, dict(Counter(left_out[id].partition(" (")[0] for id in others))


def drawn_in_memory(policy: DataPolicy, usable: list[CompletionFacts], round: int, seed: int) -> set[str]:
    def sample(candidates: list[CompletionFacts], size: int) -> set[str]:
        places = ((hashlib.sha256(f"{seed} {one.id}".encode()).digest(), one.id) for one in candidates)
        return {id for _, id in heapq.nsmallest(size, places)}

    if isinstance(policy, Pool):
        return sample(usable, policy.size)
    if isinstance(policy, Mix):
        chosen = {one.id for one in usable if one.round == round}
        num_rows = len(chosen) / (1.0 - policy.earlier - policy.base)
        for share, only_base in ((policy.base, True), (policy.earlier, False)):
            left = [one for one in usable if one.id not in chosen and (one.from_base or not only_base)]
            chosen |= sample(left, int(share * num_rows + 1e-9))
        return chosen
    return {one.id for one in usable}


@given(TYPES, OPTIONS, COMPLETIONS, st.integers(0, 2), st.sampled_from([0.0, 0.3]), st.randoms(), st.data())
@settings(max_examples=300)
def test_what_holds_for_every_selection(
    type: dict[str, Any], options: dict[str, Any], given_rows: Any, min_lines: int, shortest: float,
    shuffle: random.Random, data: st.DataObject,
) -> None:  # fmt: skip
    policy = DATA_POLICIES.build(type | options, ("collect", "data"))
    rule = Collect(min_lines=min_lines, drop_shortest=shortest)
    rows = [
        (round, CompletionText(sha256_of(n), sha256_of(prompt), n % 5, num_tokens, text, n))
        for n, (round, prompt, text, num_tokens) in enumerate(given_rows, start=1)
    ]
    verdicts = {row.id: word for _, row in rows if (word := data.draw(VERDICTS)) is not None}
    texts = {row.id: row.text for _, row in rows}
    wanted = [1, 2] if policy.type != "replace" else []

    def chosen(rows: list[tuple[int, CompletionText]]) -> tuple[list[Collected], Chosen]:
        def collected(number: int) -> list[Collected]:
            return collect([row for round, row in rows if round == number], {}, rule, number, number == 1)

        own, earlier = collected(3), {number: collected(number) for number in wanted}
        found = choose(
            policy,
            own,
            [earlier_round(each, number, number == 1) for number, each in earlier.items()],
            lambda ids: {id: verdicts[id] for id in ids if id in verdicts},
            lambda arrivals: {row.arrival: row.text for _, row in rows if row.arrival in arrivals},
            "run",
            3,
            99,
        )
        return [one for each in (*earlier.values(), own) for one in each], found

    collected, found = chosen(rows)
    selections = list(found.selections())
    expected = chosen_in_memory(policy, collected, verdicts, texts, 3, 99)
    assert (selections, found.earlier_left_out) == expected
    assert list(found.selections()) == selections, "they can be gone through again"
    shuffled = rows[:]
    shuffle.shuffle(shuffled)
    assert list(chosen(shuffled)[1].selections()) == selections

    never = {one.candidate.id: one.why for one in collected if one.why is not None}
    candidates = {one.candidate.id: one.candidate for one in collected}
    used = {one.completion_id for one in selections if one.used}
    fresh = {row.id for round, row in rows if round == 3}
    assert fresh <= {one.completion_id for one in selections}, "every fresh completion has its line"
    assert len({one.completion_id for one in selections}) == len(selections)
    assert [one.position for one in selections] == list(range(len(selections)))
    assert not used & never.keys(), "what collecting leaves out is never used"
    assert all(why_not(policy, candidates[id], verdicts.get(id)) is None for id in used)
    of_p = [one for one in candidates.values() if one.id in used and one.prompt_id == sha256_of("p")]
    assert repeats(policy, of_p, texts) == {}
    for one in selections:
        assert one.used == (one.reason is None) and (one.used or one.completion_id in fresh)
        if one.completion_id in never:
            assert one.reason == never[one.completion_id]
    assert (found.num_used, found.num_earlier) == (len(used), len(used - fresh))
    assert sum(found.earlier_left_out.values()) == len(candidates.keys() - fresh - used)


def test_the_parts_of_a_round_hold_its_usable_completions_in_order() -> None:
    rows = [CompletionText(sha256_of(n), sha256_of(n // 3), n % 3, n % 7, "a\nb\n", n + 2**40) for n in range(200)]
    collected = collect(rows, {}, Collect(), 4, True)
    packed = earlier_round(collected, 4, True).usable
    found = [one for part in range(PARTS) for _, one in packed.described(part)]
    usable = [one for one in collected if one.why is None]
    assert [tuple(one) for one in found] == [(one.candidate, one.arrival, one.text) for one in usable]
    assert list(packed) == [one.candidate.id for one in usable] and len(packed) == len(usable)
    packed.keep_only({one.candidate.id for one in usable[:50]})
    packed.keep_only({one.candidate.id for one in usable[40:]})
    assert list(packed) == [one.candidate.id for one in usable[40:50]] and len(packed) == 10
    at, first = next((at, one) for part in range(PARTS) for at, one in packed.described(part))
    packed.drop(int(first.candidate.prompt_id[0], 16), at)
    assert list(packed) == [one.candidate.id for one in usable[41:50]] and len(packed) == 9


@pytest.mark.parametrize(
    ("text", "num_tokens", "opening", "why"),
    [
        ("", 0, "", "empty"),
        (" \n", 2, "", "empty"),
        ("x", 0, "", "empty"),
        ("x = 1", 3, "", "a stub of 1 line (fewer than 2)"),
        ("```\n\n```", 3, "", "a stub of 0 lines (fewer than 2)"),
        ("    return 1", 3, "```python\ndef f():\n", None),  # the opened line counts
        ("x = 1\ny = 2", 3, "", None),
    ],
)
def test_what_no_training_sees(text: str, num_tokens: int, opening: str, why: str | None) -> None:
    rows = [CompletionText("a1", "b2", 0, num_tokens, text)]
    [one] = collect(rows, {"b2": opening}, Collect(), 1)
    assert one.why == why and (one.candidate.round, one.candidate.num_tokens) == (1, num_tokens)


def test_the_shortest_share() -> None:
    rows = [CompletionText(f"0{n}", f"1{n}", 0, n + 1, "a\nb\n") for n in range(10)]
    found = collect(rows, {}, Collect(drop_shortest=0.25), 1)
    assert {one.candidate.id: one.why for one in found if one.why} == {
        "00": "among the shortest 25% (1 tokens)", "01": "among the shortest 25% (2 tokens)"
    }  # fmt: skip


def test_memory_is_that_of_a_part_and_of_what_is_drawn() -> None:
    rows = [CompletionText(sha256_of(n), sha256_of(n % 200), n, 5, "a\nb\n", n) for n in range(20_000)]
    earlier = [earlier_round(collect(rows[1000:], {}, Collect(), 1), 1, True)]
    own = collect(rows[:1000], {}, Collect(), 2)
    for table, most_bytes in (({"type": "accumulate"}, 1_000_000), ({"type": "mix", "earlier": 0.1}, 1_500_000)):
        policy = DATA_POLICIES.build(table, ("collect", "data"))
        tracemalloc.start()
        chosen = choose(policy, own, earlier, lambda ids: {}, lambda arrivals: {}, "run", 2, 7)
        num_used = sum(one.used for one in chosen.selections())
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert num_used == chosen.num_used and num_used in (20_000, 1111)
        assert peak_bytes < most_bytes, "the whole of it takes twice as much and more"
