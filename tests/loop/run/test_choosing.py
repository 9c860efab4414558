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

ROUND, SEED = 3, 99
TEXTS = ["", " \n", "x", "x = 1\ny = 2", "x = 1\ny = 3", "x = 1\ny = 2\nprint(x + y)\n", "```\nx\n```", "import x\ny\n"]

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
ROWS = st.tuples(st.integers(1, ROUND), st.sampled_from("pqr"), st.sampled_from(TEXTS), st.integers(0, 10))
COMPLETIONS = st.lists(ROWS, max_size=25)
VERDICTS = st.sampled_from([None, "passed", "failed", "timeout"])


def earlier_round(collected: list[Collected], number: int, from_base: bool) -> Earlier:
    """An earlier round as it is stored."""
    parts = parts_of(collected)
    left_out = sum((Counter(part.left_out) for part in parts), Counter[str]())
    num = sum(len(part.entries) for part in parts) // ENTRY.size
    return Earlier(Packed(number, from_base, num, lambda part: parts[part].entries), left_out)


def chosen_in_memory(
    policy: DataPolicy, collected: list[Collected], verdicts: dict[str, str], texts: dict[str, str]
) -> tuple[list[Selection], dict[str, int]]:
    """What `choose` means, with everything in memory at once: the selections, and why earlier ones are left out."""
    left_out: dict[str, str] = {}
    groups = defaultdict(list)
    for candidate, never, _, _ in collected:
        if why := never or why_not(policy, candidate, verdicts.get(candidate.id)):
            left_out[candidate.id] = why
        else:
            groups[candidate.prompt_id].append(candidate)
    for group in groups.values():
        for id, first in repeats(policy, group, texts).items():
            which = f"(round {first.round}, sample {first.sample_index})"
            left_out[id] = f"repeats another completion of its prompt {which}"
    candidates = sorted((c for c, *_ in collected), key=lambda c: (c.prompt_id, c.sample_index, c.round, c.id))
    usable = [c for c in candidates if c.id not in left_out]
    drawn = drawn_in_memory(policy, usable)
    left_out |= {c.id: policy.not_drawn() for c in usable if c.id not in drawn}
    arrivals = {each.candidate.id: each.arrival for each in collected if each.candidate.round != ROUND}
    selections = [
        Selection("run", ROUND, c.id, position, c.id in drawn, left_out.get(c.id), arrivals.get(c.id))
        for position, c in enumerate(c for c in candidates if c.round == ROUND or c.id in drawn)
    ]
    others = [c.id for c in candidates if c.round != ROUND and c.id not in drawn]
    return selections, dict(Counter(left_out[id].partition(" (")[0] for id in others))


def drawn_in_memory(policy: DataPolicy, usable: list[CompletionFacts]) -> set[str]:
    def sample(candidates: list[CompletionFacts], size: int) -> set[str]:
        places = ((hashlib.sha256(f"{SEED} {c.id}".encode()).digest(), c.id) for c in candidates)
        return {id for _, id in heapq.nsmallest(size, places)}

    if isinstance(policy, Pool):
        return sample(usable, policy.size)
    if isinstance(policy, Mix):
        chosen = {c.id for c in usable if c.round == ROUND}
        num_rows = len(chosen) / (1.0 - policy.earlier - policy.base)
        for share, only_base in ((policy.base, True), (policy.earlier, False)):
            left = [c for c in usable if c.id not in chosen and (c.from_base or not only_base)]
            chosen |= sample(left, int(share * num_rows + 1e-9))
        return chosen
    return {c.id for c in usable}


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

    def chosen_of(rows: list[tuple[int, CompletionText]]) -> tuple[list[Collected], Chosen]:
        def collected(number: int) -> list[Collected]:
            return collect([row for round, row in rows if round == number], {}, rule, number, number == 1)

        def verdicts_of(ids: list[str]) -> dict[str, str]:
            return {id: verdicts[id] for id in ids if id in verdicts}

        def texts_of(arrivals: list[int]) -> dict[int, str]:
            return {row.arrival: row.text for _, row in rows if row.arrival in arrivals}

        own, before = collected(ROUND), {number: collected(number) for number in wanted}
        earlier = [earlier_round(each, number, number == 1) for number, each in before.items()]
        chosen = choose(policy, own, earlier, verdicts_of, texts_of, "run", ROUND, SEED)
        return [completion for each in (*before.values(), own) for completion in each], chosen

    collected, chosen = chosen_of(rows)
    selections = list(chosen.selections())
    assert (selections, chosen.earlier_left_out) == chosen_in_memory(policy, collected, verdicts, texts)
    assert list(chosen.selections()) == selections, "they can be gone through again"
    shuffled = rows[:]
    shuffle.shuffle(shuffled)
    assert list(chosen_of(shuffled)[1].selections()) == selections

    used = {selection.completion_id for selection in selections if selection.used}
    of_round = {each.candidate.id: each.candidate.round for each in collected}
    assert used == {selection.completion_id for selection in selections if selection.reason is None}
    of_p = [c for c, *_ in collected if c.id in used and c.prompt_id == sha256_of("p")]
    assert repeats(policy, of_p, texts) == {}
    assert (chosen.num_used, chosen.num_earlier) == (len(used), sum(of_round[id] != ROUND for id in used))
    assert len(selections) + sum(chosen.earlier_left_out.values()) == len(of_round), "each has its line, or is counted"


def test_the_parts_of_a_round_hold_its_usable_completions_in_order() -> None:
    rows = [CompletionText(sha256_of(n), sha256_of(n // 3), n % 3, n % 7, "a\nb\n", n + 2**40) for n in range(200)]
    collected = collect(rows, {}, Collect(), 4, True)
    packed = earlier_round(collected, 4, True).usable
    usable = [(each.candidate, each.arrival, each.text) for each in collected if each.why is None]
    ids = [candidate.id for candidate, _, _ in usable]
    assert [tuple(described) for part in range(PARTS) for _, described in packed.described(part)] == usable
    assert list(packed) == ids and len(packed) == len(usable)
    packed.keep_only({*ids[:50]})
    packed.keep_only({*ids[40:]})
    assert list(packed) == ids[40:50] and len(packed) == 10
    at, first = next(placed for part in range(PARTS) for placed in packed.described(part))
    packed.drop(int(first.candidate.prompt_id[0], 16), at)
    assert list(packed) == ids[41:50] and len(packed) == 9


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
    [collected] = collect(rows, {"b2": opening}, Collect(), 1)
    assert collected.why == why
    assert (collected.candidate.round, collected.candidate.num_tokens) == (1, num_tokens)


def test_the_shortest_share() -> None:
    rows = [CompletionText(f"0{n}", f"1{n}", 0, n + 1, "a\nb\n") for n in range(10)]
    collected = collect(rows, {}, Collect(drop_shortest=0.25), 1)
    reasons = {"00": "among the shortest 25% (1 tokens)", "01": "among the shortest 25% (2 tokens)"}
    assert {each.candidate.id: each.why for each in collected if each.why} == reasons


def test_memory_is_that_of_a_part_and_of_what_is_drawn() -> None:
    rows = [CompletionText(sha256_of(n), sha256_of(n % 200), n, 5, "a\nb\n", n) for n in range(20_000)]
    earlier = [earlier_round(collect(rows[1000:], {}, Collect(), 1), 1, True)]
    own = collect(rows[:1000], {}, Collect(), 2)
    for table, most_bytes in (({"type": "accumulate"}, 1_000_000), ({"type": "mix", "earlier": 0.1}, 1_500_000)):
        policy = DATA_POLICIES.build(table, ("collect", "data"))
        tracemalloc.start()
        chosen = choose(policy, own, earlier, lambda ids: {}, lambda arrivals: {}, "run", 2, 7)
        num_used = sum(selection.used for selection in chosen.selections())
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert num_used == chosen.num_used and num_used in (20_000, 1111)
        assert peak_bytes < most_bytes, "the whole of it takes twice as much and more"
