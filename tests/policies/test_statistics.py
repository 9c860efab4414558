"""The arithmetic of the policies against enumeration, against scipy, and by simulation."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest
import scipy.stats
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from policies import statistics
from policies.statistics import (
    PairedGain,
    mean_interval,
    mean_pass_at_k,
    paired_gain,
    pass_at_k,
    sign_flip_p_value,
    smallest_detectable_gain,
)
from tests.support.evidence import simulated_differences

quarters = st.integers(-4, 4).map(lambda score: Fraction(score, 4))
some = st.lists(quarters, min_size=1, max_size=40)  # enumerated or drawn


def brute_force_p_value(differences: list[Fraction], delta: Fraction) -> float:
    """One-sided p-value of "the gain is delta", by brute force."""
    shifted = [difference - delta for difference in differences]
    flips = list(itertools.product((1, -1), repeat=len(shifted)))
    sums = [sum(sign * value for sign, value in zip(signs, shifted, strict=True)) for signs in flips]
    return sum(total >= sum(shifted) for total in sums) / len(flips)


def num_changed(differences: list[Fraction]) -> int:
    return sum(difference != 0 for difference in differences)


@pytest.fixture
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "NUM_DRAWS", 2000)


# pass@k


@given(st.lists(st.integers(0, 1), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(outcomes: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(outcomes)))
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(5000, 1, 2500) == 0.5
    assert pass_at_k(5000, 0, 2500) == 0.0
    assert pass_at_k(5000, 2501, 2500) == 1.0


def test_mean_pass_at_k_is_over_problems_not_samples() -> None:
    assert mean_pass_at_k([[1], [0, 0, 0]], 1) == 0.5
    assert mean_pass_at_k([[1, 0], [0, 0]], 2) == 0.5


# intervals for a mean


@given(st.integers(1, 200), st.data())
def test_mean_interval_of_single_samples_is_wilsons(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    wilson = scipy.stats.binomtest(c, n).proportion_ci(method="wilson")
    assert mean_interval([1.0] * c + [0.0] * (n - c)) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


@given(st.lists(st.integers(0, 4).map(lambda passed: passed / 4), min_size=1, max_size=60))
def test_mean_interval_brackets_the_mean_and_has_a_width(values: list[float]) -> None:
    low, high = mean_interval(values)
    assert 0.0 <= low <= fmean(values) <= high <= 1.0
    assert high - low > 0.2 / len(values)
    assert mean_interval([1 - value for value in values]) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider = mean_interval(values, confidence=0.99)
    assert wider[0] <= low and high <= wider[1]


def test_mean_interval_covers_and_counts_problems_not_samples() -> None:
    numbers = random.Random(5)
    missed = 0
    for _ in range(1000):
        rates = [numbers.betavariate(0.3, 0.6) for _ in range(60)]  # U-shaped difficulty, mean 1/3
        values = [sum(numbers.random() < rate for _ in range(10)) / 10 for rate in rates]
        low, high = mean_interval(values)
        missed += not low <= 1 / 3 <= high
    assert 0.025 <= missed / 1000 <= 0.075
    pooled = scipy.stats.binomtest(200, 600).proportion_ci(method="wilson")
    assert high - low > 1.5 * (pooled.high - pooled.low)


# the paired comparison


@given(st.lists(quarters, min_size=5, max_size=9), st.sampled_from([0.8, 0.9, 0.95]))
@settings(max_examples=60)
def test_the_lower_bound_inverts_the_sign_flip_test(differences: list[Fraction], confidence: float) -> None:
    """Every gain below the bound is rejected, the bound itself is not. A bound that is off by one rank fails."""
    assume(num_changed(differences) >= 5)  # with fewer it is widened on purpose
    result = paired_gain(differences, confidence)
    lower = Fraction(result.lower).limit_denominator(1000)
    assert brute_force_p_value(differences, lower) > 1 - confidence
    assert brute_force_p_value(differences, lower - Fraction(1, 10**6)) <= 1 - confidence


@given(some, st.sampled_from([0.6, 0.9, 0.95, 0.975]))
@example([Fraction(index * 5 % 9 - 4, 4) for index in range(40)], 0.95)  # drawn
@settings(max_examples=60)
def test_what_holds_for_every_comparison(differences: list[Fraction], confidence: float) -> None:
    result = paired_gain(differences, confidence)
    assert result.p_value == sign_flip_p_value(differences)
    assert (result.lower > 0) == (result.p_value <= 1 - confidence)
    assert -1 <= result.lower <= result.gain <= result.upper <= 1
    assert result.gain == float(sum(differences) / len(differences))
    swapped = paired_gain([-difference for difference in differences], confidence)
    assert (swapped.gain, swapped.lower, swapped.upper) == (-result.gain, -result.upper, -result.lower)
    assert (result.upper < 0) == (swapped.p_value <= 1 - confidence)
    assert (swapped.num_improved, swapped.num_worsened) == (result.num_worsened, result.num_improved)
    assert result.num_improved + result.num_worsened + result.num_equal == len(differences)
    assert paired_gain(sorted(differences), confidence) == result  # in any order


@given(some, st.data())
@settings(max_examples=60)
def test_better_results_never_look_worse(differences: list[Fraction], data: st.DataObject) -> None:
    raised = list(differences)
    index = data.draw(st.integers(0, len(raised) - 1))
    raised[index] = Fraction(data.draw(st.integers(int(4 * raised[index]), 4)), 4)
    before, after = paired_gain(differences), paired_gain(raised)
    assert after.gain >= before.gain
    assert after.p_value <= before.p_value
    if min(num_changed(differences), num_changed(raised)) >= 5:
        assert after.lower >= before.lower
        assert after.upper >= before.upper


def test_drawn_subsets_agree_with_enumerated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [Fraction(score, 4) for score in (1, 2, -1, 0, 3, 0, 1, -2, 4, 1, 0, 2, -1, 1)]
    exact = paired_gain(differences)
    assert 2 ** len(differences) <= statistics.NUM_DRAWS
    monkeypatch.setattr(statistics, "NUM_DRAWS", 16_000)
    drawn = paired_gain(differences)
    assert drawn.p_value == exact.p_value
    assert (drawn.lower, drawn.upper) == pytest.approx((exact.lower, exact.upper), abs=0.02)


# the exact test


def counted_p_value(differences: list[Fraction], scale: int) -> Fraction:
    """By the distribution of the flipped sum, in a dict, without truncation or packing."""
    scores = [int(difference * scale) for difference in differences]
    counts = {0: 1}
    for score in scores:
        grown: dict[int, int] = {}
        for total, count in counts.items():
            for flipped in (total + score, total - score):
                grown[flipped] = grown.get(flipped, 0) + count
        counts = grown
    return Fraction(sum(count for total, count in counts.items() if total >= sum(scores)), 2 ** len(scores))


tenths = st.integers(-10, 10).map(lambda score: Fraction(score, 10))


@given(st.lists(tenths, min_size=1, max_size=10), st.sampled_from([Fraction(0), Fraction(1, 100), Fraction(-1, 5)]))
@settings(max_examples=60)
def test_exact_p_value_is_the_share_of_flips(differences: list[Fraction], delta: Fraction) -> None:
    assert sign_flip_p_value(differences, delta) == brute_force_p_value(differences, delta)
    floats = [float(difference) for difference in differences]
    assert sign_flip_p_value(floats, float(delta)) == sign_flip_p_value(differences, delta)


@pytest.mark.parametrize(
    ("num_problems", "loss"), [(20, 0.4), (60, 0.4), (140, 0.4), (300, 0.2), (300, 0.05), (400, 0.5), (600, 0.42)]
)
def test_exact_p_value_of_many_problems(num_problems: int, loss: float) -> None:
    """Down to levels that no number of random flips would show, and past 150 problems, where counts are cut."""
    numbers = random.Random(num_problems)
    signs = [-1 if numbers.random() < loss else 1 for _ in range(num_problems)]
    differences = [Fraction(numbers.randint(1, 10) * sign, 10) for sign in signs]
    exact = counted_p_value(differences, 10)
    result = sign_flip_p_value(differences)
    assert float(exact) <= result <= float(exact) + 1e-18 or result == pytest.approx(float(exact), rel=1e-14)
    assert num_problems < 300 or loss > 0.4 or exact < 1e-12


def test_exact_p_value_of_single_samples_is_the_sign_tests() -> None:
    """With one sample a problem it is McNemar's exact test, one-sided."""
    for wins, losses in ((7, 2), (40, 20), (130, 90), (9, 9), (4, 0), (5, 0), (6, 0), (40, 0)):
        differences = [1] * wins + [-1] * losses + [0] * 50
        theirs = scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue
        assert sign_flip_p_value(differences) == pytest.approx(theirs, rel=1e-12)
        assert (paired_gain(differences).lower > 0) == (theirs <= 0.05)


def test_exact_p_value_of_numbers_without_a_common_denominator() -> None:
    numbers = random.Random(6)
    differences = [Fraction(numbers.randint(-500, 600), 997 + index) for index in range(12)]
    assert sign_flip_p_value(differences) == pytest.approx(brute_force_p_value(differences, Fraction(0)), abs=0.002)
    mirrored = [-difference for difference in differences]
    assert sign_flip_p_value(differences) + sign_flip_p_value(mirrored) >= 1


def test_exact_p_value_counts_the_observed_flip_itself() -> None:
    assert sign_flip_p_value([0] * 30) == 1.0
    assert sign_flip_p_value([Fraction(1, 2)]) == 0.5
    assert sign_flip_p_value([1.0] * 200) > 0.0
    assert sign_flip_p_value([-1.0] * 200) == 1.0


def test_large_comparisons_agree_with_the_normal_approximation() -> None:
    numbers = random.Random(8)
    differences = [numbers.choice([-0.4, -0.1, 0.0, 0.1, 0.2, 0.5]) for _ in range(1000)]
    result = paired_gain(differences)
    half = NormalDist().inv_cdf(0.95) * stdev(differences) / math.sqrt(1000)
    assert result.gain - result.lower == pytest.approx(half, rel=0.05)
    assert result.upper - result.gain == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize(
    ("differences", "lower", "upper"),
    [
        ([0.0] * 50, -0.043, 0.043),  # nothing differed: about the rule of three over two
        ([1.0] + [0.0] * 49, -0.040, 0.077),
        ([1.0] * 4, -1.0, 1.0),  # four problems cannot reject anything at .95
        ([1.0] * 5, 1.0, 1.0),
        ([0.0], -1.0, 1.0),
    ],
)
def test_bounds_with_few_changes(differences: list[float], lower: float, upper: float) -> None:
    result = paired_gain(differences)
    assert (result.lower, result.upper) == pytest.approx((lower, upper), abs=0.003)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (paired_gain, ([],), "no problems"), (paired_gain, ([1.5],), ""), (paired_gain, ([math.nan],), ""),
        (paired_gain, ([0.5], 0.5), ""), (paired_gain, ([0.5], 1.0), ""),
        (mean_interval, ([],), ""), (mean_interval, ([1.5],), ""), (mean_interval, ([-0.1],), ""),
        (mean_interval, ([math.nan],), ""),
        (pass_at_k, (4, 1, 5), ""), (pass_at_k, (4, 1, 0), ""), (pass_at_k, (4, 5, 1), ""), (pass_at_k, (4, -1, 1), ""),
        (pass_at_k, (0, 0, 1), ""), (mean_pass_at_k, ([[1], [0, 0, 0]], 2), "pass@2 needs"),
        (mean_pass_at_k, ([], 1), "no problems"), (sign_flip_p_value, ([],), "no problems"),
        (smallest_detectable_gain, ([],), "no problems"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message or None):
        function(*arguments)


def test_a_comparison_is_frozen_to_the_bit() -> None:
    """A change here changes how recorded rounds replay."""
    differences = [Fraction(score, 4) for score in (1, 0, 0, 2, -1, 3, 0, 0, 1, -2) * 4]
    assert paired_gain(differences) == PairedGain(
        gain=0.1, lower=0.011363636363636364, upper=0.19117647058823528, confidence=0.95, p_value=0.04661327600479126,
        num_improved=16, num_worsened=8, num_equal=16,
    )  # fmt: skip


# what a comparison could have seen


def test_smallest_detectable_gain_is_found_with_about_that_power(fewer_draws: None) -> None:
    numbers = random.Random(9)
    spread = [numbers.gauss(0, 0.2) for _ in range(2000)]
    detectable = smallest_detectable_gain(spread[:100] + [-value for value in spread[:100]]) * math.sqrt(200 / 80)
    looks = [[max(-1.0, min(1.0, numbers.gauss(detectable, 0.2))) for _ in range(80)] for _ in range(300)]
    assert 0.7 <= fmean(paired_gain(differences).lower > 0 for differences in looks) <= 0.9


@pytest.mark.parametrize(
    ("differences", "detectable"),
    [
        ([1.0, -1.0] * 50, 2.4865 * stdev([1.0, -1.0] * 50) / 10),
        ([0.0] * 100, 0.05),  # nothing differed: five problems must turn
        ([0.25] * 100, 0.0125),  # no spread: five must turn by a quarter
        ([0.25] + [0.0] * 99, 0.0125),
        ([0.0] * 4, 1.0),  # too few problems to see anything
        ([1.0], 1.0),
    ],
)
def test_smallest_detectable_gain(differences: list[float], detectable: float) -> None:
    assert smallest_detectable_gain(differences) == pytest.approx(detectable, abs=1e-4)


def test_smallest_detectable_gain_shrinks_with_problems_and_grows_with_power() -> None:
    once, fourfold = [0.5, -0.25, 0.0, 0.25] * 10, [0.5, -0.25, 0.0, 0.25] * 40
    assert smallest_detectable_gain(fourfold) == pytest.approx(smallest_detectable_gain(once) / 2, rel=0.02)
    assert smallest_detectable_gain(once, power=0.9) > smallest_detectable_gain(once)
    assert smallest_detectable_gain(once, alpha=0.01) > smallest_detectable_gain(once)


# error rates


CHANCE = 3 * math.sqrt(0.05 * 0.95 / 500)


@pytest.mark.parametrize(
    ("gain", "num_runs", "num_problems", "seed", "least", "most"),
    [
        (0.0, 500, 50, 1, 0.05 - CHANCE, 0.05 + CHANCE),  # a bound that never lets anything pass is broken too
        (0.2, 100, 100, 2, 0.98, 1.0),
        (-0.2, 100, 100, 3, 0.0, 0.0),
    ],
)
def test_false_keeps_stay_at_the_promised_rate_and_a_large_gain_is_kept(
    fewer_draws: None, gain: float, num_runs: int, num_problems: int, seed: int, least: float, most: float
) -> None:
    """How often a candidate is kept whose success rates are higher by `gain`, where there is room."""
    numbers = random.Random(seed)
    looks = [simulated_differences(numbers, gain, num_problems, 4, (0.3, 0.6)) for _ in range(num_runs)]
    assert least <= fmean(paired_gain(differences).lower > 0 for differences in looks) <= most
