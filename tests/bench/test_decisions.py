"""The benchmark's looks, computed for many runs at once, are those of `policies`."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy
import pytest

from tests.support import ROOT

sys.path.insert(0, str(ROOT))

from bench import decisions, simulation
from bench.simulation import CHURN, RULES, World
from policies.sequential import confidence_sequence
from policies.statistics import paired_gain


def drawn(num_runs: int, num_problems: int, num_samples: int, gain: float, seed: int) -> simulation.Ints:
    world = World(seed)
    head = world.log_odds(num_runs, num_problems)
    return world.scores(world.moved(head, gain, CHURN), head, num_samples)


def test_subset_bounds_are_those_of_paired_gain() -> None:
    for row in drawn(5, 131, 10, 0.03, seed=3):
        found = paired_gain([Fraction(int(score), 10) for score in row], 0.975)
        assert decisions.subset_bounds(row, 10, 0.025) == pytest.approx((found.lower, found.upper), abs=1e-12)


def test_ever_ruled_out_is_outside_the_confidence_sequence() -> None:
    scores = drawn(60, 200, 10, 0.05, seed=4)
    out = decisions.ever_ruled_out(scores / 10, 0.02, 0.03, 0.1)
    for row, ruled_out in zip(scores, out, strict=True):
        differences = (row / 10).tolist()
        lower, _ = confidence_sequence(differences, level=0.1)
        assert ruled_out == (lower > 0.02) or lower == pytest.approx(sum(differences) / 200)
    assert 0 < out.sum() < 60


def test_mcnemars_wins_are_the_exact_tests() -> None:
    from scipy.stats import binomtest

    needed = decisions._mcnemar_wins(60)
    for num in (3, 5, 17, 60):
        wins = [w for w in range(num + 1) if binomtest(w, num, alternative="greater").pvalue <= 0.05]
        assert needed[num] == min(wins, default=num + 1)


def test_candidates_gain_what_they_should() -> None:
    world = World(2)
    head = world.log_odds(400_000)
    rates = 1 / (1 + numpy.exp(-head))
    for gain, churn in ((0.0, CHURN), (0.03, CHURN), (0.03, 0.0), (-0.01, CHURN)):
        after = 1 / (1 + numpy.exp(-world.moved(head, gain, churn)))
        assert (after - rates).mean() == pytest.approx(gain, abs=0.001)
    fifth = 1 / (1 + numpy.exp(-world.moved_in_a_fifth(head, 0.03)))
    assert (fifth - rates).mean() == pytest.approx(0.03, abs=0.001)


def test_a_gain_worth_finding_is_mostly_found_at_the_first_look() -> None:
    """3pp on 500 problems with 10 samples, whichever way is chosen."""
    scores = drawn(1500, 500, 10, 0.03, seed=9)
    for rule in RULES:
        assert rule.decide(scores, 10, numpy.zeros(1500, dtype=numpy.int64))[0].mean() > 0.79, rule.name
