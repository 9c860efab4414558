"""The benchmark's looks, computed for many runs at once, are those of `policies`."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy
import pytest

from tests.support import ROOT

sys.path.insert(0, str(ROOT))

from bench import decisions, simulation
from bench.simulation import ALL_AT_ONCE, ALPHA, CHURN, RULES, SCREEN, SEQUENTIAL, SHARE, TARGET, Plan, World, looks
from policies.budget import level
from policies.evidence import read_evidence
from policies.gates import Improvement
from policies.policy import build_policy, next_part
from policies.sequential import confidence_sequence, drawing_order, look
from policies.statistics import paired_gain, sign_flip_p_value


def drawn(num_runs: int, num_problems: int, num_samples: int, gain: float, seed: int) -> simulation.Ints:
    world = World(seed)
    head = world.log_odds(num_runs, num_problems)
    return world.scores(world.moved(head, gain, CHURN), head, num_samples)


@pytest.mark.parametrize("plan", [ALL_AT_ONCE, SEQUENTIAL, Plan(miss=0.2, final=0.0, parts=3)])
@pytest.mark.parametrize(("num_problems", "num_samples"), [(33, 10), (131, 10), (250, 4)])
def test_looks_are_those_of_the_policies(plan: Plan, num_problems: int, num_samples: int) -> None:
    for seed, (at, gain) in enumerate([(0.25, 0.0), (0.05, 0.02), (level(0.05, 1), 0.03), (level(0.05, 12), 0.05)]):
        scores = drawn(10, num_problems, num_samples, gain, seed)
        found, used = looks(scores, num_samples, numpy.full(len(scores), at), plan)
        for row, kept, evaluated in zip(scores, found, used, strict=True):
            differences = [Fraction(int(score), num_samples) for score in row]
            alone = look(differences, target_gain=TARGET, level=at, miss=plan.miss, final=plan.final)
            assert (alone.verdict == "gain" and alone.gain > 0) == kept
            assert alone.num_used <= evaluated < alone.num_used + -(-num_problems // plan.parts)


@pytest.mark.parametrize("at", [0.3, 0.05, 0.025, 0.001, 1e-5])
def test_the_normal_approximation_is_used_only_where_it_leaves_no_doubt(at: float) -> None:
    scores = drawn(400, 33 if at > 0.1 else 131, 10, {0.3: 0.01, 0.05: 0.02}.get(at, 0.05), seed=7)
    exact = [sign_flip_p_value([Fraction(int(score), 10) for score in row]) <= at for row in scores]
    assert simulation.sign_flips_reach(scores, 10, numpy.full(400, at)).tolist() == exact
    assert 0 < sum(exact) < 400


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


@pytest.mark.parametrize("parts", [1, 6])
@pytest.mark.parametrize("confirms", [False, True])
def test_rounds_are_decided_as_the_default_gate_decides_them(parts: int, confirms: bool) -> None:
    """From the first part of select to the verdict, through the policy."""
    policy = build_policy([{"type": "improvement"}], "select", "confirm" if confirms else None)
    (gate,) = policy.gates
    assert isinstance(gate, Improvement) and (gate.alpha, gate.target, gate.screen) == (ALPHA, TARGET, SCREEN)
    rule = next(rule for rule in RULES if (rule.plan.parts, rule.screen is not None) == (parts, confirms))
    num_problems, num_samples, num_fruitless = 120, 10, 1
    world = World(8)
    head = world.log_odds(12, num_problems)
    sides = [world.correct(world.moved(head, 0.06, CHURN), num_samples), world.correct(head, num_samples)]
    kept, opened, used = rule.decide(sides[0] - sides[1], num_samples, numpy.full(12, num_fruitless))
    at = round(SHARE * num_problems) if confirms else num_problems
    names = {"select": list(range(at)), "confirm": list(range(at, num_problems))}
    for run in range(12):
        drawn = {}
        for name, problems in names.items():
            order = drawing_order(1, [f"{name}{index}" for index in range(len(problems))])
            drawn[name] = [
                {
                    "task_id": task,
                    **{who: [1] * int(side[run, problem]) + [0] * (num_samples - int(side[run, problem]))
                       for who, side in zip(("candidate", "head"), sides, strict=True)},
                }
                for task, problem in zip(order, problems, strict=True)
            ]  # fmt: skip
        there = {"select": next_part(0, at, parts)}
        while True:
            splits = {
                name: {"suite": "s", "problems": drawn[name][:num], "num_planned": len(names[name]), "num_looks": parts}
                for name, num in there.items()
            }
            fruitless = {"confirm" if confirms else "select": num_fruitless}
            decision = policy.decide(
                read_evidence({"round": 1, "rounds_so_far": 1, "splits": splits, "fruitless_looks": fruitless})
            )
            need = decision.need or {}
            if decision.action == "confirm":
                there["confirm"] = next_part(0, len(names["confirm"]), parts)
            elif decision.action == "sample_more":
                there[str(need["split"])] += int(str(need["num_problems"]))
            else:
                break
        assert (decision.verdict == "keep") == kept[run]
        assert ("confirm" in there) == (opened[run] and confirms)
        assert sum(there.values()) == used[run]
    assert 0 < kept.sum() < 12


def test_a_gain_worth_finding_is_mostly_found_at_the_first_look() -> None:
    """3pp on 500 problems with 10 samples, whichever way is chosen."""
    scores = drawn(1500, 500, 10, 0.03, seed=9)
    for rule in RULES:
        assert rule.decide(scores, 10, numpy.zeros(1500, dtype=numpy.int64))[0].mean() > 0.79, rule.name
