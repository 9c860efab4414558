"""Successive halving: who goes on, on how many problems, and what it asks in all."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.halving import better_ones, num_asked, rungs, score

CANDIDATES, PROBLEMS = st.integers(1, 16), st.integers(1, 1000)
SCORES = st.dictionaries(st.integers(1, 3000), st.fractions(0, 1), min_size=1, max_size=16)


@given(CANDIDATES, PROBLEMS)
def test_rungs_end_with_two_on_all_problems_and_leave_one(num: int, num_problems: int) -> None:
    planned = rungs(num, num_problems)
    sizes = [rung.num_problems for rung in planned]
    left = [num, *(rung.num_left for rung in planned)]
    assert sizes == sorted(sizes) and all(1 <= size <= num_problems for size in sizes)
    assert left[-1] == 1 and all(after == -(-before // 2) for before, after in pairwise(left))
    if num > 1:
        assert sizes[-1] == num_problems and left[-2] == 2
        assert all(abs(2 * few - many) <= 1 for few, many in pairwise(sizes))


@given(CANDIDATES, PROBLEMS)
def test_it_asks_what_its_rungs_ask(num: int, num_problems: int) -> None:
    """Each problem once of each candidate; never more than all of all."""
    answered = dict.fromkeys(range(num), 0)
    left = list(range(num))
    for rung in rungs(num, num_problems):
        answered |= dict.fromkeys(left, rung.num_problems)
        left = left[-rung.num_left :]
    answered[left[0]] = num_problems
    assert num_asked(num, num_problems) == sum(answered.values()) <= num * num_problems


@pytest.mark.parametrize(("num", "times"), [(1, 1), (2, 2), (4, 3), (8, 4), (16, 5)])
def test_twice_as_many_cost_once_more(num: int, times: int) -> None:
    assert num_asked(num, 160) == times * 160


@given(SCORES, st.data())
def test_no_one_that_stays_behind_is_better_or_as_good_and_later(
    scores: dict[int, Fraction], data: st.DataObject
) -> None:
    num_left = data.draw(st.integers(1, len(scores)))
    left = better_ones(scores, num_left)
    assert left == sorted(left) and len(left) == num_left
    behind = scores.keys() - set(left)
    assert all((scores[one], one) > (scores[other], other) for one in left for other in behind)


def test_of_equals_the_last_step_wins() -> None:
    assert better_ones(dict.fromkeys((10, 20, 30, 40), Fraction(1, 2)), 1) == [40]
    assert better_ones({10: Fraction(1, 2), 20: Fraction(1, 3), 30: Fraction(1, 2)}, 2) == [10, 30]


OUTCOMES = st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=30)


@given(OUTCOMES, st.sampled_from([1, 2, 4]), st.randoms())
def test_a_score_does_not_depend_on_the_order(outcomes: list[list[int]], k: int, random: object) -> None:
    shuffled = sorted(outcomes, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert score(outcomes, k) == score(shuffled, k) and 0 <= score(outcomes, k) <= 1
    if k == 1:
        assert score(outcomes, k) == Fraction(sum(map(sum, outcomes)), 4 * len(outcomes))


@given(OUTCOMES, OUTCOMES)
def test_a_score_counts_problems_alike(one: list[list[int]], other: list[list[int]]) -> None:
    both = score(one + other, 1)
    assert both * len(one + other) == score(one, 1) * len(one) + score(other, 1) * len(other)


def test_nothing_to_choose_from_is_refused() -> None:
    for wrong in (
        lambda: rungs(0, 5),
        lambda: rungs(3, 0),
        lambda: score([], 1),
        lambda: better_ones({1: Fraction(0)}, 2),
    ):
        with pytest.raises(ValueError):
            wrong()
    assert rungs(1, 5) == ()
