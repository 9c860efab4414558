"""The looks that are computed for many runs at once are those of `policies`, and runs come out as a world demands."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy
import pytest

from loop.config.settings import Decide
from loop.errors import LoopError
from loop.experiments.simulating import Fresh, Looks, Memory, not_simulated, rows, rules_of, sign_flips_reach, simulated
from loop.experiments.worlds import Floats, Population, World
from policies.budget import level
from policies.evidence import Line, read_evidence
from policies.gates import Collapse, Improvement
from policies.policy import next_part
from policies.sequential import drawing_order
from policies.statistics import sign_flip_p_value

RULES = ["configured", "keep_if_higher", "rollback", "ungated"]


def world_of(gain: float, num_problems: int = 120, num_samples: int = 10, num_rounds: int = 4) -> World:
    return World(name="w", gains=(gain,), num_problems=num_problems, num_samples=num_samples, num_rounds=num_rounds)


def sides(world: World, num_runs: int, seed: int) -> tuple[Floats, Floats]:
    """Right samples of candidate and head, (runs, problems)."""
    population = Population(world, num_runs, numpy.random.default_rng(seed))
    head = population.base()
    candidate = population.trained(head, numpy.zeros(num_runs, dtype=int))
    return population.correct(candidate, world.num_samples), population.correct(head, world.num_samples)


@pytest.mark.parametrize("at", [0.3, 0.05, 0.025, 0.001, 1e-5])
def test_the_normal_approximation_is_used_only_where_it_leaves_no_doubt(at: float) -> None:
    world = world_of({0.3: 0.01, 0.05: 0.02}.get(at, 0.05), 33 if at > 0.1 else 131)
    candidate, head = sides(world, 400, seed=7)
    scores = candidate - head
    exact = [sign_flip_p_value([Fraction(int(score), 10) for score in row]) <= at for row in scores]
    assert sign_flips_reach(scores / 10, numpy.full(400, at), 0.1).tolist() == exact
    assert 0 < sum(exact) < 400


@pytest.mark.parametrize("min_gain", [0.0, 0.01, -0.02])
@pytest.mark.parametrize("parts", [1, 6])
@pytest.mark.parametrize("confirms", [False, True])
def test_rounds_are_decided_as_the_policy_decides_them(min_gain: float, parts: int, confirms: bool) -> None:
    """From the first part of select to the verdict."""
    gate = Improvement(min_gain=min_gain)
    policy = Decide(suite="s", unclear="rollback", confirm="confirm" if confirms else None, gates=(gate,)).policy()
    world, num_runs, num_fruitless = world_of(0.06), 12, 1
    at = 24 if confirms else world.num_problems
    looks = Looks(gate, parts, world.num_problems, world.num_samples, at if confirms else 0)
    candidate, head = sides(world, num_runs, seed=8)
    levels = numpy.full(num_runs, level(gate.alpha, num_fruitless))
    kept, opened, used = looks.taken((candidate - head) / world.num_samples, levels)
    names = {"select": list(range(at)), "confirm": list(range(at, world.num_problems))}
    for run in range(num_runs):
        drawn = {}
        for name, problems in names.items():
            order = drawing_order(1, [f"{name}{index}" for index in range(len(problems))])
            drawn[name] = [
                {"task_id": task, "candidate": _graded(candidate[run, at]), "head": _graded(head[run, at])}
                for task, at in zip(order, problems, strict=True)
            ]
        asked = {"select": next_part(0, len(names["select"]), parts)}
        while True:
            splits = {
                name: {"suite": "s", "problems": drawn[name][:num], "num_planned": len(names[name]), "num_looks": parts}
                for name, num in asked.items()
            }
            fruitless = {"confirm" if confirms else "select": num_fruitless}
            decision = policy.decide(
                read_evidence({"round": 1, "rounds_so_far": 1, "splits": splits, "fruitless_looks": fruitless})
            )
            need = decision.need or {}
            if decision.action == "confirm":
                asked["confirm"] = next_part(0, len(names["confirm"]), parts)
            elif decision.action == "sample_more":
                asked[str(need["split"])] += int(str(need["num_problems"]))
            else:
                break
        assert (decision.verdict == "keep") == kept[run]
        assert ("confirm" in asked) == (opened[run] and confirms)
        assert sum(asked.values()) == used[run]
    assert kept.any()


@pytest.mark.parametrize("line", [{"next_look": 2}, {"next_look": 4}, {"next_look": 4, "last": True}])
@pytest.mark.parametrize("gain", [-0.05, 0.0, 0.05])
def test_carried_rounds_are_decided_as_the_policy_decides_them(line: dict[str, Any], gain: float) -> None:
    """One round after a carried one: looked at, not looked at, and the last one, with twice the samples."""
    decide, world, num_runs = Decide(suite="s", last_samples=2), world_of(gain, 100, 5), 12
    policy, rule = decide.policy(), rules_of(decide, world)["configured"]
    is_last, looked = line.get("last", False), line["next_look"] == 2 or line.get("last", False)
    num_samples = 10 if is_last else 5
    population = Population(world, num_runs, numpy.random.default_rng(9))
    head = population.base()
    candidate = population.trained(head, numpy.zeros(num_runs, dtype=int))
    right = [population.correct(side, num_samples) for side in (candidate, head)]
    differences = (right[0] - right[1]) / num_samples
    before = Line(
        depth=0, num_failed=0, left=0.8, num_looks=0 if line["next_look"] == 4 else 1, next_look=line["next_look"]
    )
    memory = replace(Memory.empty(num_runs, 100), before=((before, "carry"),) * num_runs)
    outcome = rule(memory, differences, Fresh(lambda num: differences, lambda num: differences), is_last=is_last)
    of_round = policy.next_line(1, 0, (before, "carry"), None, 100, 5, is_last=is_last)
    assert of_round is not None and of_round.look == looked
    for run in range(num_runs):
        drawn = range(100 if looked else 50)
        problems = [
            {
                "task_id": str(at),
                **{
                    who: _graded(side[run, at], num_samples)
                    for who, side in zip(("candidate", "head"), right, strict=True)
                },
            }
            for at in drawn
        ]
        told = {"suite": "s", "problems": problems} | ({} if looked else {"num_planned": 100, "num_looks": 1})
        evidence = {
            "round": 2,
            "rounds_so_far": 1,
            "splits": {"select": told},
            "line": of_round.model_dump(exclude_none=True),
        }
        action = policy.decide(read_evidence(evidence)).action
        assert action == ("keep" if outcome.keep[run] else "carry" if outcome.carry[run] else "rollback")
    assert (outcome.num_measured == {(False, False): 50, (True, False): 100, (True, True): 400}[looked, is_last]).all()
    assert outcome.keep.any() <= looked and outcome.keep.sum() >= (4 if looked and gain > 0 else 0)
    assert (~outcome.keep & ~outcome.carry).sum() >= (4 if gain < 0 else 0), "what is worse ends the line"


@pytest.mark.parametrize(("change", "gain"), [(-0.08, 0.06), (-0.03, 0.03), (-0.1, 0.0)])
@pytest.mark.parametrize("tip_used", [50, 100])
def test_lines_end_as_the_policy_ends_them(change: float, gain: float, tip_used: int) -> None:
    """A candidate that may be worse than head or tip; and what a look at the tip then shows."""
    decide, num_runs, num_samples = Decide(suite="s", last_samples=2), 20, 5
    world = World(name="w", gains=(gain, change), num_problems=100, num_samples=num_samples, num_rounds=2, churn=0.05)
    policy, rule = decide.policy(), rules_of(decide, world)["configured"]
    population = Population(world, num_runs, numpy.random.default_rng(3))
    head = population.base()
    tip = population.trained(head, numpy.zeros(num_runs, dtype=int))
    candidate = population.trained(tip, numpy.ones(num_runs, dtype=int))
    right = {who: population.correct(side, 5) for who, side in (("candidate", candidate), ("head", head), ("tip", tip))}
    again = {who: population.correct(side, 10) for who, side in (("candidate", tip), ("head", head))}
    before = Line(depth=0, num_failed=0, left=0.9, num_looks=0, next_look=1)
    memory = replace(
        Memory.empty(num_runs, 100), before=((before, "carry"),) * num_runs, tip=(right["tip"] - right["head"]) / 5,
        tip_used=numpy.full(num_runs, tip_used),
    )  # fmt: skip
    fresh = Fresh(lambda num: 1 / 0, lambda num: (again["candidate"] - again["head"]) / num)
    outcome = rule(memory, (right["candidate"] - right["head"]) / 5, fresh, is_last=False)
    line = policy.next_line(1, 0, (before, "carry"), None, 100, 5, closing=True)
    assert line is not None and line.look
    num_looked = 0
    for run in range(num_runs):
        problems = [
            {"task_id": f"{at:03}", "candidate": _graded(right["candidate"][run, at], 5), "head": _graded(right["head"][run, at], 5)}
            | ({"tip": _graded(right["tip"][run, at], 5)} if at < tip_used else {})
            for at in range(100)
        ]  # fmt: skip
        splits: dict[str, Any] = {"select": {"suite": "s", "problems": problems}}
        told = {"round": 2, "rounds_so_far": 1, "line": line.model_dump(exclude_none=True)}
        decision = policy.decide(read_evidence(told | {"splits": splits}))
        if looked := decision.action == "sample_more":
            num_looked += 1
            sides = ({who: _graded(side[run, at], 10) for who, side in again.items()} for at in range(100))
            splits["the tip"] = {
                "suite": "s",
                "problems": [{"task_id": str(at), **each} for at, each in enumerate(sides)],
            }
            decision = policy.decide(read_evidence(told | {"splits": splits}))
        assert decision.action == ("keep" if outcome.keep[run] else "carry" if outcome.carry[run] else "rollback")
        assert ((decision.need or {}).get("head") == "tip") == outcome.tip[run]
        assert outcome.num_measured[run] == 100 + looked * 2 * 2 * 100
    assert num_looked >= (4 if gain > 0.05 else 1 if gain else 0)
    assert outcome.tip.sum() >= (2 if gain > 0.05 else 0) and (gain > 0 or outcome.tip.sum() <= 2)


def test_small_gains_add_up_along_a_line() -> None:
    decide, small = Decide(suite="s"), world_of(0.02, 300, 4, 10)
    line, rollback = (simulated(small, name, decide, 60, 1) for name in ("configured", "rollback"))
    assert (
        line["head_gain_mean"] > 0.15 > 0.05 > rollback["head_gain_mean"]
        and line["head_gain_mean"] <= line["tip_gain_mean"]
    )
    assert rollback["tip_gain_mean"] == rollback["head_gain_mean"] and rollback["tip_over_head_lowest"] == 0
    worse = simulated(world_of(-0.02, 300, 4, 10), "configured", decide, 60, 1)
    assert worse["head_gain_mean"] == 0 and -0.05 < worse["tip_over_head_lowest"] < 0


def _graded(num_right: int, num_samples: int = 10) -> list[int]:
    return [1] * int(num_right) + [0] * (num_samples - int(num_right))


def test_rules_differ_in_what_they_pass_on() -> None:
    """Small gains are lost to gates; keeping what is higher pays for them where nothing is gained."""
    decide = Decide(suite="s")
    small, none = world_of(0.01, 300, 4, 10), world_of(0.0, 100, 4, 10)
    gains = {name: simulated(small, name, decide, 60, 1)["head_gain_mean"] for name in RULES}
    assert gains["ungated"] == pytest.approx(0.1)
    assert gains["rollback"] < 0.02 < gains["keep_if_higher"] < gains["ungated"]
    worthless = {name: simulated(none, name, decide, 200, 1)["worthless_keep_share"] for name in RULES}
    assert worthless["rollback"] <= 0.05 + 3 * 0.016 and worthless["keep_if_higher"] > 0.8


def test_damage_is_what_kept_candidates_lose() -> None:
    decide, worse = Decide(suite="s"), world_of(-0.02, 100, 2, 5)
    assert simulated(worse, "ungated", decide, 20, 1)["damage_mean"] == pytest.approx(0.1)
    higher = simulated(worse, "keep_if_higher", decide, 100, 1)
    assert higher["damage_mean"] == pytest.approx(-higher["head_gain_mean"]) and higher["damage_mean"] > 0
    assert higher["worthless_keep_share"] > 0.4


def test_what_is_not_inferior_is_kept_where_that_is_configured() -> None:
    world = world_of(0.0, 100, 2, 3)
    lenient = Decide(suite="s", unclear="keep_if_not_inferior", margin=0.2)
    assert simulated(world, "configured", lenient, 40, 1)["num_kept_mean"] > 1
    assert simulated(world, "rollback", lenient, 40, 1)["num_kept_mean"] < 0.3


@pytest.mark.filterwarnings("error")
def test_a_model_that_falls_for_ever_ends_with_nothing_right() -> None:
    falling = world_of(-0.3, 50, 2, 100)
    assert simulated(falling, "ungated", Decide(suite="s"), 5, 1)["head_gain_mean"] == pytest.approx(-0.499)


def test_many_runs_are_computed_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world, sizes = world_of(0.1, 50, 2, 2), []
    drawn = Population.base
    monkeypatch.setattr("loop.experiments.simulating.MOST_CELLS", 50 * 4)
    monkeypatch.setattr(Population, "base", lambda self: sizes.append(self.num_runs) or drawn(self))
    assert simulated(world, "ungated", Decide(suite="s"), 10, 1)["num_kept_mean"] == 2
    assert sizes == [4, 4, 2]


def test_completions_are_counted_for_candidates_and_for_each_new_head() -> None:
    world, decide = world_of(0.3, 50, 2, 3), Decide(suite="s")
    always = simulated(world, "ungated", decide, 5, 1)
    assert always["num_completions_mean"] == (3 + 3) * 50 * 2  # three candidates, three heads
    rolled = simulated(world_of(-0.3, 50, 2, 3), "rollback", decide, 5, 1)
    assert rolled["num_completions_mean"] == (3 + 1) * 50 * 2


def test_a_row_for_each_world_and_rule_and_the_same_for_the_same_seed() -> None:
    worlds = [world_of(0.02, 40, 2), world_of(0.0, 40, 2)]
    first = list(rows(worlds, Decide(suite="s"), 20, 5))
    assert [row["rule"] for row in first] == RULES * 2
    assert first == list(rows(worlds, Decide(suite="s"), 20, 5)) != list(rows(worlds, Decide(suite="s"), 20, 6))
    lenient = Decide(suite="s", unclear="keep_if_not_inferior")
    assert [row["rule"] for row in rows(worlds[:1], lenient, 5, 5)] == RULES


def test_what_cannot_be_simulated_is_refused_or_named() -> None:
    world = world_of(0.0)
    with pytest.raises(LoopError, match="improvement"):
        rules_of(Decide(suite="s", gates=(Collapse(),)), world)
    with pytest.raises(LoopError, match="too few"):
        rules_of(Decide(suite="s", confirm="confirm"), world_of(0.0, 2))
    left_out = not_simulated(Decide(suite="s", unclear="pause", gates=(Improvement(metric="pass@4"), Collapse())))
    assert [next(word for word in ("collapse", "pause", "pass@4") if word in line) for line in left_out] == [
        "collapse", "pause", "pass@4",
    ]  # fmt: skip
