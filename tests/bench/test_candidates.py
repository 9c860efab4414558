"""The simulated trainings: they gain what they should, and their candidates compete as those of a round do."""

from __future__ import annotations

import sys
from typing import Any

import numpy
import pytest

from tests.support import ROOT

sys.path.insert(0, str(ROOT))

from bench.candidates import WORLDS, Size, gains_at, runs, trained, winners
from bench.simulation import World
from loop.config.settings import Decide
from policies.halving import better_ones, rungs, score

SIZE = Size(num_problems=400, select_share=0.5, num_samples=4, num_rounds=4)


def decide(**more: Any) -> Decide:
    return Decide.model_validate({"suite": "s", "confirm": "confirm", "unclear": "rollback"} | more)


def test_a_training_gains_what_its_world_says() -> None:
    for course in WORLDS.values():
        assert gains_at(course, 1).tolist() == [course[-1]]
        assert gains_at(course, 8).tolist() == pytest.approx(course)
    world = World(2)
    parent = world.log_odds(1, 200_000)
    before = (1 / (1 + numpy.exp(-parent))).mean()
    gains = gains_at(WORLDS["overshoots"], 4)
    after = (1 / (1 + numpy.exp(-trained(world, parent, gains)))).mean(axis=(1, 2))
    assert after - before == pytest.approx(gains, abs=0.002)


def test_the_winner_is_that_of_the_policy() -> None:
    correct = numpy.random.default_rng(3).binomial(4, 0.5, (5, 30, 24))
    for run, winner in enumerate(winners(correct)):
        left = list(range(5))
        for rung in rungs(5, 24):
            answers = {at: [[1] * n + [0] * (4 - n) for n in correct[at, run, : rung.num_problems]] for at in left}
            left = better_ones({at: score(outcomes, 1) for at, outcomes in answers.items()}, rung.num_left)
        assert left == [winner]
    assert winners(correct[:1]).tolist() == [0] * 30


def test_what_overshoots_is_kept_from_its_middle_and_what_is_worth_nothing_hardly_ever() -> None:
    alone, four = (runs(WORLDS["overshoots"], num, decide(), SIZE, 200, seed=1) for num in (1, 4))
    assert alone.gain.max() == 0.0 and four.gain.mean() > 0.005 and four.kept.mean() > 0.3
    assert not four.worthless.any() or (four.worthless > 0).mean() < 0.05
    nothing = runs(WORLDS["never gains"], 4, decide(), SIZE, 300, seed=2)
    assert (nothing.worthless > 0).mean() < 0.09, "alpha is .05, and these are 300 runs"
    assert nothing.gain.max() == 0.0 and nothing.completions.mean() > 4 * 400
