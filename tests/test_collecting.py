"""Collecting and choosing together: whatever arrives in whatever order, what is left out has a reason and is not used."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.config import Collect
from loop.stages.collecting import choose, collect
from policies.data import build_data, repeats, why_not
from store.records import CompletionText

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


@given(TYPES, OPTIONS, COMPLETIONS, st.integers(0, 2), st.sampled_from([0.0, 0.3]), st.randoms(), st.data())
@settings(max_examples=300, deadline=None)
def test_what_holds_for_every_selection(
    type: dict[str, Any], options: dict[str, Any], given_rows: Any, min_lines: int, shortest: float,
    shuffle: random.Random, data: st.DataObject,
) -> None:  # fmt: skip
    policy = build_data(type | options, ("collect", "data"))
    rule = Collect(min_lines=min_lines, drop_shortest=shortest)
    rows = [
        (round, CompletionText(f"id{n}", prompt, n, num_tokens, text))
        for n, (round, prompt, text, num_tokens) in enumerate(given_rows)
    ]
    verdicts = {row.id: word for _, row in rows if (word := data.draw(VERDICTS)) is not None}
    texts = {row.id: row.text for _, row in rows}

    def chosen(rows: list[tuple[int, CompletionText]]) -> Any:
        wanted = [1, 2, 3] if policy.type != "replace" else [3]
        collected = [
            one
            for number in wanted
            for one in collect([row for round, row in rows if round == number], {}, rule, number, number == 1)
        ]

        def lookup(ids: Any) -> Any:
            return {id: texts[id] for id in ids}

        return collected, choose(policy, collected, verdicts, lookup, "run", 3, 99)

    collected, found = chosen(rows)
    shuffled = rows[:]
    shuffle.shuffle(shuffled)
    assert chosen(shuffled)[1] == found

    never = {candidate.id: why for candidate, why in collected if why is not None}
    candidates = {candidate.id: candidate for candidate, _ in collected}
    used = {one.completion_id for one in found.selections if one.used}
    fresh = {row.id for round, row in rows if round == 3}
    assert fresh <= {one.completion_id for one in found.selections}, "every fresh completion has its line"
    assert len({one.completion_id for one in found.selections}) == len(found.selections)
    assert [one.position for one in found.selections] == list(range(len(found.selections)))
    assert not used & never.keys(), "what collecting leaves out is never used"
    assert all(why_not(policy, candidates[id], verdicts.get(id)) is None for id in used)
    assert repeats(policy, [one for one in candidates.values() if one.id in used and one.prompt_id == "p"], texts) == {}
    for one in found.selections:
        assert one.used == (one.reason is None) and (one.used or one.completion_id in fresh)
        if one.completion_id in never:
            assert one.reason == never[one.completion_id]
    assert found.num_earlier == len(used - fresh)
    assert sum(found.earlier_left_out.values()) == len(candidates.keys() - fresh - used)


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
    [(candidate, found)] = collect([CompletionText("id", "p", 0, num_tokens, text)], {"p": opening}, Collect(), 1)
    assert found == why and (candidate.round, candidate.num_tokens) == (1, num_tokens)


def test_the_shortest_share() -> None:
    rows = [CompletionText(f"id{n}", f"p{n}", 0, n + 1, "a\nb\n") for n in range(10)]
    found = collect(rows, {}, Collect(drop_shortest=0.25), 1)
    assert {candidate.id: why for candidate, why in found if why} == {
        "id0": "among the shortest 25% (1 tokens)", "id1": "among the shortest 25% (2 tokens)"
    }  # fmt: skip
