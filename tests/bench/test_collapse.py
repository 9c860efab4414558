"""The simulated collapses: counted as the loop counts, narrow where they should be, and told from healthy runs."""

from __future__ import annotations

import sys

import pytest

from tests.loop.run.test_comparison import said
from tests.support import ROOT

sys.path.insert(0, str(ROOT))

from bench.collapse import COLLAPSES, GAIN, NARROWS, WORLDS, World, caught, collapsed, different_right, false_alarms
from loop.stages.deciding import signals_of
from loop.stages.evaluating import figures

ONE_LINERS, PROGRAMS = WORLDS


def test_signals_are_those_of_the_loop() -> None:
    world = World(PROGRAMS, 30, 4, seed=1)
    drawn = world.draw(world.base().chances)
    answers = [
        [(f"{one}", "passed" if one < PROGRAMS.num_right else "failed") for one in row] for row in drawn.tolist()
    ]
    there = signals_of(figures(*said(*answers), (1, 4)))
    ours = world.signals(drawn, 1.0)
    for name in ("distinct_solution_rate", "distinct_correct_rate", "spread"):
        for key in (name, f"{name}_error"):
            assert ours[key] == pytest.approx(there[key]), key
    assert (ours["pass@1"], ours["num_samples"]) == (there["pass@1"], there["num_samples"])


def test_a_healthy_round_gains_as_the_study_did_and_collapses_lose_right_answers() -> None:
    world = World(ONE_LINERS, 4000, 4, seed=2)
    base = world.base()
    healthy = world.changed(base, GAIN, NARROWS)
    before, after = (world.measured(model)["pass@1"] for model in (base, healthy))
    assert (before, after) == pytest.approx((0.714, 0.813), abs=0.02)
    for how, speeds in COLLAPSES.items():
        if how != "shorter":
            world = World(PROGRAMS, 1000, 4, seed=3)
            base = world.base()
            left = [different_right(world, collapsed(world, base, how, speed)) for speed in speeds]
            assert left == sorted(left, reverse=True) and left[-1] < 0.6 * different_right(world, base)
            assert world.measured(collapsed(world, base, how, speeds[-1]))["pass@1"] > world.measured(base)["pass@1"]


def test_a_planted_collapse_is_caught_within_two_rounds_and_healthy_runs_go_on() -> None:
    for kind in WORLDS:
        alarms = false_alarms(kind, (200, 4), num_runs=20, num_rounds=10, seed=4)
        assert alarms[3].startswith("0.000"), alarms
    for how, speed in (("onto modes", 2.0), ("onto a template", 0.7), ("shorter", 0.4)):
        for before in (0, 3):
            found = caught(PROGRAMS, (200, 4), how, speed, before, num_runs=20, seed=5)
            assert float(found[7].split()[0]) >= 0.95, found
