"""Budgets and sequential looks: against numpy, by exact enumeration, and by simulation."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import sequential
from policies.budget import level
from policies.sequential import Outcome, confidence_sequence, drawing_order, look
from policies.statistics import sign_flip_p_value
from tests.support.evidence import simulated_differences

tenths = st.integers(-10, 10).map(lambda score: Fraction(score, 10))
several = st.lists(tenths, min_size=1, max_size=40)


# the budget


def test_levels_sum_to_alpha() -> None:
    spent = sum((Fraction(1, (m + 1) * (m + 2)) for m in range(1000)), Fraction())
    assert spent == 1 - Fraction(1, 1001)
    assert [level(0.06, m) for m in range(3)] == pytest.approx([0.03, 0.01, 0.005])
    assert sum(level(0.05, m) for m in range(1000)) == pytest.approx(0.05 * float(spent))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=7))
def test_no_course_of_true_keeps_lets_the_chance_of_a_false_one_pass_alpha(rounds: list[tuple[bool, bool]]) -> None:
    """Each round is a null look, or one at a better candidate that is kept or not; null looks err at their level."""
    chance, num_fruitless = Fraction(0), 0
    none_so_far = Fraction(1)
    for null, kept in rounds:
        if null:
            at = Fraction(1, 20) / ((num_fruitless + 1) * (num_fruitless + 2))
            chance += none_so_far * at
            none_so_far *= 1 - at
        num_fruitless += null or not kept
    assert chance <= Fraction(1, 20)
    assert chance + none_so_far == 1


# the drawing order

ids = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=30, unique=True)


@given(ids, st.integers(1, 99), st.randoms(use_true_random=False))
def test_the_drawing_order_depends_on_round_and_ids_only(task_ids: list[str], round: int, order: random.Random) -> None:
    drawn = drawing_order(round, task_ids)
    assert sorted(drawn) == sorted(task_ids)
    shuffled = list(task_ids)
    order.shuffle(shuffled)
    assert drawing_order(round, shuffled) == drawn
    kept = [task_id for task_id in drawn if task_id != task_ids[0]]  # the others stay as they were
    assert drawing_order(round, task_ids[1:]) == kept


def test_the_drawing_order_is_frozen() -> None:
    """A change here changes which problems a recorded round saw."""
    assert drawing_order(3, [f"HumanEval/{n}" for n in range(4)]) == [f"HumanEval/{n}" for n in (1, 0, 3, 2)]
    assert drawing_order(1, [str(n) for n in range(50)]) != drawing_order(2, [str(n) for n in range(50)])
    with pytest.raises(ValueError, match="twice"):
        drawing_order(1, ["a", "a"])


def test_every_problem_is_as_often_early_as_late() -> None:
    task_ids = [f"task/{n}" for n in range(10)]
    places = numpy.array([[drawing_order(round, task_ids).index(t) for t in task_ids] for round in range(1000)])
    assert numpy.abs(places.mean(axis=0) - 4.5).max() < 0.4  # the standard error is .09


# the gamblers


def numpy_wealth(differences: list[Fraction], mean: float, gap: float) -> numpy.ndarray:
    """The product, written once more from its definition."""
    d = numpy.array([float(difference) for difference in differences])
    before = numpy.array([numpy.sum(d[:t] ** 2) for t in range(len(d))])
    mean_square = (before + 10 * 0.04) / (numpy.arange(len(d)) + 10)
    bets = numpy.minimum(gap / (mean_square + gap**2), 0.9 / (1 + mean))
    return numpy.cumprod(1 + bets * (d - mean))


@given(several, st.sampled_from([0.0, 0.01, -0.02]), st.sampled_from([0.02, 0.03, 0.1]))
def test_e_values_are_the_largest_products(differences: list[Fraction], min_gain: float, target_gain: float) -> None:
    outcome = look(differences, min_gain=min_gain, target_gain=target_gain, level=0.05, complete=False)
    gap = target_gain - min_gain
    assert outcome.e_gain == pytest.approx(numpy_wealth(differences, min_gain, gap).max(), rel=1e-12)
    mirrored = [-difference for difference in differences]
    assert outcome.e_none == pytest.approx(numpy_wealth(mirrored, -target_gain, gap).max(), rel=1e-12)


@pytest.mark.parametrize("mean", [Fraction(0), Fraction(1, 50), Fraction(-1, 50)])
@pytest.mark.parametrize("values", [(-1, 1), (-1, Fraction(1, 2)), (Fraction(-1, 10), 1)])
def test_wealth_is_a_martingale_if_the_gain_is_what_is_bet_against(
    mean: Fraction, values: tuple[Fraction, Fraction]
) -> None:
    """Over all courses of 9 problems with two outcomes whose mean is `mean`: expected wealth is 1 after each."""
    low, high = values
    chance_high = (mean - low) / (high - low)
    expected = [0.0] * 9
    reached = 0.0
    for course in itertools.product((low, high), repeat=9):
        chance = float(numpy.prod([float(chance_high if value == high else 1 - chance_high) for value in course]))
        floats = [float(value) for value in course]
        bets = sequential._bets(floats, 0.1)
        wealth = list(sequential._wealth(floats, bets, float(mean)))
        assert min(wealth) > 0
        expected = [total + chance * owned for total, owned in zip(expected, wealth, strict=True)]
        reached += chance * (max(wealth) >= 4)
    assert expected == pytest.approx([1.0] * 9, abs=1e-12)
    assert reached <= 1 / 4  # Ville


def test_wealth_shrinks_on_average_if_the_gain_is_less() -> None:
    expected = 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=7):
        bets = sequential._bets(list(signs), 0.1)
        expected += list(sequential._wealth(list(signs), bets, 0.02))[-1] / 2**7
    assert 0.7 < expected < 1.0


def test_wealth_does_not_overflow() -> None:
    outcome = look([1] * 3000, target_gain=0.9, level=0.01)
    assert outcome.verdict == "gain" and outcome.e_gain == 1e300


# looks


@given(several, st.integers(1, 40), st.sampled_from([0.01, 0.2]))
def test_later_problems_cannot_change_a_verdict(differences: list[Fraction], num_first: int, at: float) -> None:
    def early(number: int) -> Outcome:
        return look(differences[:number], target_gain=0.1, level=at, miss=0.2, complete=False)

    first, whole = early(num_first), early(len(differences))
    if first.verdict != "unclear":
        assert (whole.verdict, whole.num_used) == (first.verdict, first.num_used)
    assert whole.e_gain >= first.e_gain and whole.e_none >= first.e_none
    if whole.verdict != "unclear":  # it stood after num_used problems and not before
        assert early(whole.num_used).verdict == whole.verdict
        assert whole.num_used == 1 or early(whole.num_used - 1).verdict == "unclear"


@given(several, st.sampled_from([0.01, 0.2]), st.sampled_from([0.0, 0.5]))
def test_verdicts_agree_with_bounds(differences: list[Fraction], at: float, final: float) -> None:
    outcome = look(differences, target_gain=0.1, level=at, miss=0.2, final=final, complete=False)
    assert -1 <= outcome.lower <= outcome.gain <= outcome.upper <= 1
    assert outcome.gain == pytest.approx(float(sum(differences) / len(differences)), abs=1e-12)
    if outcome.num_used == len(differences):
        early = at * (1 - final)
        assert (outcome.verdict == "gain") == (outcome.e_gain * early >= 1)
        assert (outcome.verdict == "no_gain") == (outcome.e_none * 0.2 >= 1 and outcome.e_gain * early < 1)
    if outcome.lower > 0:
        assert outcome.e_gain * at * (1 - final) >= 1
    if outcome.upper < 0.1 - 1e-9:
        assert outcome.e_none * 0.2 >= 1


@given(several)
@settings(max_examples=50)
def test_all_at_once_is_the_sign_flip_test(differences: list[Fraction]) -> None:
    outcome = look(differences, target_gain=0.1, level=0.05, miss=1e-9, final=1.0)
    p_value = sign_flip_p_value(differences)
    assert outcome.p_value == p_value
    assert outcome.verdict == ("gain" if p_value <= 0.05 else "unclear")
    assert outcome.lower >= 0 or outcome.verdict == "unclear"


def test_the_final_test_waits_for_all_problems_and_gets_its_part_of_the_level() -> None:
    differences = [0.1] * 6 + [0.0] * 4  # p = 2^-6 = .0156
    open_still = look(differences, target_gain=0.03, level=0.05, complete=False)
    assert (open_still.verdict, open_still.p_value) == ("unclear", None)
    closed = look(differences, target_gain=0.03, level=0.05, final=0.5)
    assert (closed.verdict, closed.p_value, closed.num_used) == ("gain", 2**-6, 10)
    assert closed.lower == 0.0  # above it not by the gamblers, but by the test
    assert look(differences, target_gain=0.03, level=0.03, final=0.5).verdict == "unclear"
    assert look(differences, target_gain=0.03, level=0.05, final=0.3).verdict == "unclear"


def test_a_look_is_frozen_to_the_bit() -> None:
    """A change here changes how recorded rounds replay."""
    differences = [Fraction(score, 10) for score in (1, 0, 0, 2, -1, 3, 0, 0, 1, -2) * 6]
    assert look(differences, target_gain=0.03, level=0.025) == Outcome(
        verdict="gain", gain=0.04, lower=0.0, upper=0.08924354705959558, e_gain=6.604876097646527,
        e_none=0.9959434023710646, p_value=0.01718897775572259, num_used=60, level=0.025, miss=0.1,
    )  # fmt: skip


# the confidence sequence


@given(several, st.integers(1, 40), st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=50)
def test_bounds_only_narrow_and_hold_the_mean(differences: list[Fraction], num_first: int, at: float) -> None:
    lower, upper = confidence_sequence(differences, level=at)
    gain = float(sum(differences) / len(differences))
    assert -1 <= lower <= gain + 1e-12 and gain - 1e-12 <= upper <= 1
    before = confidence_sequence(differences[:num_first], level=at)
    assert before[0] <= lower + 1e-9 or lower == pytest.approx(gain)
    assert upper <= before[1] + 1e-9 or upper == pytest.approx(gain)
    wider = confidence_sequence(differences, level=at / 2)
    assert wider[0] <= lower + 1e-9 and upper <= wider[1] + 1e-9
    mirrored = confidence_sequence([-difference for difference in differences], level=at)
    assert mirrored == pytest.approx((-upper, -lower), abs=1e-9)


@given(several, st.sampled_from([0.01, 0.2]))
@settings(max_examples=50)
def test_what_is_outside_the_bounds_is_ruled_out_and_what_is_inside_is_not(
    differences: list[Fraction], at: float
) -> None:
    lower, upper = confidence_sequence(differences, level=at, gap=0.05)
    gain = float(sum(differences) / len(differences))
    mirrored = [-difference for difference in differences]
    for mean in numpy.linspace(-0.9, 0.9, 19):
        if mean < lower - 1e-9:
            assert numpy_wealth(differences, mean, 0.05).max() >= (1 - 1e-9) / at
        elif lower < gain - 1e-9 and mean > lower + 1e-9:
            assert numpy_wealth(differences, mean, 0.05).max() < (1 + 1e-9) / at
        if mean > upper + 1e-9:
            assert numpy_wealth(mirrored, -mean, 0.05).max() >= (1 - 1e-9) / at
        elif upper > gain + 1e-9 and mean < upper - 1e-9:
            assert numpy_wealth(mirrored, -mean, 0.05).max() < (1 + 1e-9) / at


def test_bounds_close_in_on_the_gain() -> None:
    numbers = random.Random(4)
    differences = [Fraction(numbers.choice([-3, -1, 0, 0, 1, 1, 4]), 10) for _ in range(3000)]
    gain = float(sum(differences)) / 3000
    lower, upper = confidence_sequence(differences, level=0.025)
    assert gain - 0.03 < lower < gain < upper < gain + 0.03
    assert confidence_sequence([0.0] * 5, level=0.025) == (-1.0, 1.0)


LOOK = {"differences": [0.5, 0.5], "target_gain": 0.03, "level": 0.05}
SEQUENCE = {"differences": [0.5], "level": 0.05, "gap": 0.03}
BUDGET = {"alpha": 0.05, "num_fruitless": 0}


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [
        (look, LOOK, {"differences": []}), (look, LOOK, {"differences": [1.5]}), (look, LOOK, {"differences": [math.nan]}),
        (look, LOOK, {"level": 0.0}), (look, LOOK, {"level": 1.0}), (look, LOOK, {"miss": 0.0}), (look, LOOK, {"final": 1.5}),
        (look, LOOK, {"min_gain": 0.03}), (look, LOOK, {"target_gain": 1.0}),
        (confidence_sequence, SEQUENCE, {"differences": []}), (confidence_sequence, SEQUENCE, {"level": 0.0}),
        (confidence_sequence, SEQUENCE, {"gap": 0.0}),
        (level, BUDGET, {"alpha": 0.0}), (level, BUDGET, {"alpha": 1.0}), (level, BUDGET, {"num_fruitless": -1}),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(function: Any, right: dict[str, Any], wrong: dict[str, Any]) -> None:
    function(**right)
    with pytest.raises(ValueError):
        function(**{**right, **wrong})


# error rates


def drawn_look(gain: float, numbers: random.Random, num_problems: int, at: float) -> Outcome:
    differences = simulated_differences(numbers, gain, num_problems, 5, (0.35, 0.35))
    return look(differences, target_gain=0.1, level=at)


def test_a_look_errs_no_more_often_than_promised() -> None:
    numbers = random.Random(1)
    verdicts = [drawn_look(0.0, numbers, 80, at=0.1).verdict for _ in range(400)]
    assert 0.005 <= verdicts.count("gain") / 400 <= 0.1 + 3 * (0.09 / 400) ** 0.5  # neither too often nor never
    assert verdicts.count("no_gain") > 200


def test_a_look_finds_what_there_is_and_stops() -> None:
    numbers = random.Random(2)
    looks = [drawn_look(0.3, numbers, 200, at=0.01) for _ in range(50)]
    assert [outcome.verdict for outcome in looks].count("gain") >= 49
    assert sum(outcome.num_used for outcome in looks) / 50 < 60
