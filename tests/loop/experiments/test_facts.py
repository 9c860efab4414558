"""The arithmetic of experiments on made-up runs: pairing by problem and seed, correction, words."""

from __future__ import annotations

from fractions import Fraction
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.experiments.arithmetic import Head, comparisons, differences, in_words, interval, lines_of
from loop.experiments.arithmetic import correction_in_words as correction

FIGURES = {"pass@1": 0.5, "pass@4": 0.75, "pass@1_interval": [0.1, 0.9], "distinct_rate": 0.5, "mean_tokens": 20.0}
NONE, HALF, ONE = Fraction(0), Fraction(1, 2), Fraction(1)


def head(rates: dict[str, Fraction], kept: bool = True) -> Head:
    return Head(kept, rates, FIGURES)


def test_a_line_averages_the_seeds_problem_by_problem() -> None:
    runs = {
        1: [head({"a": NONE, "b": HALF}), head({"a": HALF, "b": HALF})],
        2: [head({"a": HALF, "b": HALF}), head({"a": HALF, "b": ONE}, kept=False)],
    }
    base, after = lines_of("arm", runs, (1, 2))
    assert (base["round"], base["pass@1"], base["change"], base["change_interval"]) == (0, 0.375, 0.0, None)
    assert (after["round"], after["pass@1"], after["change"]) == (1, 0.625, 0.25)
    assert after["change_by_seed"] == [0.25, 0.25] and (after["num_kept"], after["num_seeds"]) == (1, 2)
    assert after["pass@k"] == {"1": 0.5, "4": 0.75} and after["spread"] is None and after["distinct_rate"] == 0.5
    assert after["change_interval"][0] <= 0.25 <= after["change_interval"][1]


def test_a_seed_that_is_behind_is_left_out_and_its_base_with_it() -> None:
    runs = {1: [head({"a": NONE}), head({"a": ONE})], 2: [head({"a": HALF})]}
    lines = lines_of("arm", runs, (1, 2, 3))
    assert [line["num_seeds"] for line in lines] == [2, 1]
    assert lines[1]["change"] == 1.0 and lines[1]["change_by_seed"] == [1.0, None, None]
    assert lines_of("arm", {}, (1,)) == [] and lines_of("arm", {1: []}, (1,)) == []


def test_differences_pair_seed_with_seed_and_leave_out_what_one_side_lacks() -> None:
    ours = [{"a": ONE, "b": ONE}, {"a": NONE, "b": ONE, "c": ONE}]
    theirs = [{"a": HALF, "b": ONE}, {"a": NONE, "b": HALF, "c": NONE}]
    assert differences(ours, theirs) == [Fraction(1, 4), Fraction(1, 4)]


FLAT = head({f"task/{n}": HALF for n in range(60)})
BETTER = head({f"task/{n}": HALF if n % 5 else ONE for n in range(60)})
MADE_UP = {
    "replace": {seed: [FLAT, FLAT] for seed in (1, 2)},
    "mix": {seed: [FLAT, BETTER] for seed in (1, 2)},
    "same": {seed: [FLAT, FLAT] for seed in (1, 2)},
    "behind": {1: [FLAT, BETTER], 2: [FLAT]},
}


def test_arms_are_compared_in_words_after_the_last_round_that_all_seeds_of_both_have() -> None:
    pairs = [("mix", "replace"), ("replace", "mix"), ("same", "replace"), ("behind", "replace"), ("gone", "mix")]
    won, lost, same = comparisons(MADE_UP, pairs, (1, 2))
    assert won["change"] == pytest.approx(0.1) and won["by_seed"] == pytest.approx([0.1, 0.1])
    low, high = won["interval"]
    assert won["words"] == f"mix beats replace at round 1 by 10.0pp, 95% interval {100 * low:.1f} to {100 * high:.1f}"
    assert lost["words"] == won["words"] and lost["interval"] == pytest.approx([-high, -low])
    assert same["words"].startswith("same and replace cannot be told apart at round 1: +0.0pp, 95% interval -")
    assert (won["round"], won["level"], won["num_problems"]) == (1, 0.95, 60)


def test_more_comparisons_make_wider_intervals() -> None:
    pairs = [("mix", "replace"), *[("same", "replace")] * 9]
    alone, among_ten = (comparisons(MADE_UP, pairs[:number], (1, 2))[0]["interval"] for number in (1, 10))
    assert among_ten[0] < alone[0] and among_ten[1] > alone[1]
    assert correction(10).startswith("Bonferroni: each of the 10 intervals is at 99.5%")
    assert "no correction" in correction(1)


def test_words_never_say_minus_nought() -> None:
    words = "a and b cannot be told apart at round 3: +0.0pp, 95% interval +0.0 to +2.0"
    assert in_words("a", "b", 3, -0.0001, [-0.0004, 0.02]) == words
    assert in_words("a", "b", 3, -0.02, [-0.03, -0.01]) == "b beats a at round 3 by 2.0pp, 95% interval 1.0 to 3.0"


RATES = st.lists(st.sampled_from([NONE, HALF, ONE]), min_size=8, max_size=8)


@settings(max_examples=30)
@given(st.lists(st.tuples(RATES, RATES), min_size=1, max_size=3))
def test_swapping_the_arms_swaps_the_signs(seeds: list[tuple[list[Fraction], list[Fraction]]]) -> None:
    ours = [{str(n): rate for n, rate in enumerate(mine)} for mine, _ in seeds]
    theirs = [{str(n): rate for n, rate in enumerate(its)} for _, its in seeds]
    forth, back = differences(ours, theirs), differences(theirs, ours)
    assert forth == [-value for value in back]
    low, high = interval(forth, 3)
    assert interval(back, 3) == pytest.approx([-high, -low])
    assert low <= float(fmean(forth)) <= high
