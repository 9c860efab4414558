"""What the statistics of decisions promise, tried on simulated runs: `python bench/decisions.py [--quick]`.

The runs are those of bench/simulation.py.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.simulation import (
    ALPHA,
    CHURN,
    FIXED_1,
    PARTS,
    RULES,
    SEQUENTIAL_1,
    SEQUENTIAL_2,
    Bools,
    Floats,
    Ints,
    Rule,
    World,
    share,
    shift_for,
    table,
)
from loop.config.settings import Decide
from loop.experiments.simulating import Row, rows, sign_flips_reach, simulated
from loop.experiments.worlds import SHIPPED
from loop.experiments.worlds import World as WholeWorld
from policies.budget import level as budget_level
from policies.sequential import EXPECTED_SPREAD, MOST_AT_RISK, NUM_IMAGINED
from policies.statistics import NUM_DRAWS, mean_interval


def worthless_keeps(world: World, num_runs: int, num_rounds: int, sizes: Sequence[int]) -> None:
    """1: no candidate is better; how many runs keep any?"""
    num_samples = 10
    for churn, what in ((0.0, "candidates equal to the head"), (CHURN, "candidates with churn and no gain on average")):
        rows: dict[str, list[str]] = {}
        for num_problems in sizes:
            kept = _null_runs(world, num_runs, num_rounds, num_problems, num_samples, churn)
            for name, counts in kept.items():
                rows.setdefault(name, [name]).extend([share(counts > 0), f"{counts.mean():.2f}"])
        header = ["rule"] + [cell for size in sizes for cell in (f"any, {size} problems", "keeps")]
        title = (
            f"1. {what}: share of runs of {num_rounds} rounds with a worthless keep, and keeps a run; {num_runs} runs"
        )
        table(title, header, list(rows.values()))


def _null_runs(
    world: World, num_runs: int, num_rounds: int, num_problems: int, num_samples: int, churn: float
) -> dict[str, Ints]:
    """Keeps of each run by each rule. Heads stay as they are after a keep; the first keep is what counts."""
    head = world.log_odds(num_runs, num_problems)
    baselines = ("higher, head refreshed", "higher, head cached", "paired test at .05", "McNemar at .05, 1 sample")
    once_measured = {f"{rule.name}, head once": rule for rule in (FIXED_1, SEQUENTIAL_1, SEQUENTIAL_2)}
    rules = {rule.name: rule for rule in RULES} | once_measured
    kept = {name: numpy.zeros(num_runs, dtype=numpy.int64) for name in (*baselines, *rules)}
    fruitless = {name: numpy.zeros(num_runs, dtype=numpy.int64) for name in rules}
    first_head = world.correct(head, num_samples)  # as in the loop: a head's answers serve all its candidates
    cached = world.correct(head, num_samples).sum(axis=1)
    wins_needed = _mcnemar_wins(num_problems)
    for _ in range(num_rounds):
        candidate = world.moved(head, 0.0, churn) if churn else head
        correct = world.correct(candidate, num_samples)
        scores = correct - world.correct(head, num_samples)
        kept[baselines[0]] += scores.sum(axis=1) > 0
        better = correct.sum(axis=1) > cached
        cached = numpy.where(better, correct.sum(axis=1), cached)
        kept[baselines[1]] += better
        kept[baselines[2]] += sign_flips_reach(scores / num_samples, numpy.full(num_runs, 0.05), 1 / num_samples)
        once = world.scores(candidate, head, 1)
        wins, losses = (once > 0).sum(axis=1), (once < 0).sum(axis=1)
        kept[baselines[3]] += wins >= wins_needed[wins + losses]
        for name, rule in rules.items():
            seen = correct - first_head if name in once_measured else scores
            keep, looked, _ = rule.decide(seen, num_samples, fruitless[name])
            kept[name] += keep
            fruitless[name] += looked & ~keep
    return kept


def _mcnemar_wins(most: int) -> Ints:
    """For each number of problems that differ: the wins that the exact one-sided test at .05 asks for."""
    needed = []
    for num in range(most + 1):
        tail, wins, ways = 0, num + 1, 1  # ways: how often exactly wins - 1 of num are won
        while wins > 0 and (tail + ways) * 20 <= 1 << num:
            wins -= 1
            tail += ways
            ways = ways * wins // (num - wins + 1)
        needed.append(wins)
    return numpy.array(needed)


def power(world: World, num_runs: int) -> None:
    """2: a gain of 3pp on 500 problems."""
    spreads: dict[str, Callable[[Floats], Floats]] = {
        "shift and churn": lambda head: world.moved(head, 0.03, CHURN),
        "shift only": lambda head: world.moved(head, 0.03, 0.0),
        "a fifth of problems": lambda head: world.moved_in_a_fifth(head, 0.03),
    }
    for num_samples in (10, 20):
        rows = []
        drawn = {}
        for what, move in spreads.items():
            head = world.log_odds(num_runs, 500)
            drawn[what] = world.scores(move(head), head, num_samples)
        for rule in RULES:
            for num_fruitless in (0, 4, 10):
                before = numpy.full(num_runs, num_fruitless)
                found = [rule.decide(scores, num_samples, before)[0] for scores in drawn.values()]
                rows.append([rule.name, str(num_fruitless), *map(share, found)])
        title = (
            f"2. a gain of 3pp: share of rounds kept; 500 problems in all x {num_samples} samples; {num_runs} rounds"
        )
        table(title, ["rule", "fruitless before", *spreads], rows)


SCENARIOS = {"0": 0.0, "-1pp": -0.01, "+1.5pp": 0.015, "+3pp": 0.03, "+6pp": 0.06}
MIX = {"0": 0.5, "-1pp": 0.2, "+1.5pp": 0.15, "+3pp": 0.1, "+6pp": 0.05}
_POOL = 1600


def completions(world: World, num_runs: int) -> None:
    """3: completions of each rule, at sizes that give each the same power."""
    drawn = {}
    for what, gain in SCENARIOS.items():
        head = world.log_odds(num_runs, _POOL)
        drawn[what] = world.scores(world.moved(head, gain, CHURN), head, 10)
    for num_fruitless in (0, 4, 10):
        before = numpy.full(num_runs, num_fruitless)
        rows = []
        base = 0.0
        for rule in RULES:
            size = _size_for(
                lambda n, rule=rule, before=before: rule.decide(drawn["+3pp"][:, :n], 10, before)[0].mean()
            )
            used = {what: rule.decide(scores[:, :size], 10, before)[2].mean() for what, scores in drawn.items()}
            keep = rule.decide(drawn["+3pp"][:, :size], 10, before)[0]
            base = base or float(size)
            mixed = sum(used[what] * weight for what, weight in MIX.items())
            cells = [f"{number / base:.2f}" for number in (*used.values(), mixed)]
            rows.append([rule.name, str(size), share(keep), *cells])
        title = (
            f"3. completions of a round after {num_fruitless} fruitless looks, as a share of those of the first rule; "
            f"problems such that 80% of +3pp are kept; {PARTS} parts; {num_runs} rounds each; 10 samples"
        )
        table(title, ["rule", "problems", "+3pp kept", *SCENARIOS, "mix"], rows)


def completions_of_runs(world: World, num_runs: int, num_rounds: int) -> None:
    """3, over whole runs, where levels fall as looks are spent."""
    kinds = world.numbers.choice(len(MIX), size=(num_rounds, num_runs), p=list(MIX.values()))
    gains = list(SCENARIOS.values())
    shifts = numpy.array([shift_for(gain, CHURN) for gain in gains])
    drawn = numpy.empty((num_rounds, num_runs, _POOL), dtype=numpy.int8)
    for number in range(num_rounds):
        head = world.log_odds(num_runs, _POOL)
        candidate = world.moved(head, 0.0, CHURN) + shifts[kinds[number]][:, None]
        drawn[number] = world.scores(candidate, head, 10)
    plus_three = kinds == list(MIX).index("+3pp")
    rows = []
    base = 0.0
    for rule in RULES:

        def run(size: int, rule: Rule = rule) -> tuple[Bools, float, float]:
            fruitless = numpy.zeros(num_runs, dtype=numpy.int64)
            kept, used = numpy.zeros_like(plus_three), 0.0
            for number in range(num_rounds):
                scores = drawn[number, :, :size].astype(numpy.int64)
                kept[number], looked, more = rule.decide(scores, 10, fruitless)
                fruitless += looked & ~kept[number]
                used += more.mean() / num_rounds
            return kept, used, float(fruitless.mean())

        size = _size_for(lambda n, run=run: run(n)[0][plus_three].mean())
        kept, used, fruitless = run(size)
        base = base or used
        rows.append(
            [rule.name, str(size), share(kept[plus_three]), f"{fruitless:.1f}", f"{used:.0f}", f"{used / base:.2f}"]
        )
    mix = ", ".join(f"{weight:.0%} {what}" for what, weight in MIX.items())
    title = (
        f"3. over {num_runs} whole runs of {num_rounds} rounds ({mix}); problems such that 80% of the +3pp rounds are "
        "kept over the run"
    )
    header = ["rule", "problems", "+3pp kept", "fruitless looks", "problems a round", "of the first rule"]
    table(title, header, rows)


def _size_for(chance: Callable[[int], float], wanted: float = 0.8) -> int:
    low, high = 40, _POOL
    while high - low > 4:
        middle = (low + high) // 2
        low, high = (middle, high) if chance(middle) < wanted else (low, middle)
    return high


def damage(world: World, num_runs: int, num_rounds: int = 10, num_problems: int = 500) -> None:
    """4: every candidate is 1pp worse than its head."""
    rows = []
    for rule in (*RULES, None):
        head = world.log_odds(num_runs, num_problems)
        fruitless = numpy.zeros(num_runs, dtype=numpy.int64)
        kept = numpy.zeros(num_runs, dtype=numpy.int64)
        for _ in range(num_rounds):
            candidate = world.moved(head, -0.01, CHURN)
            scores = world.scores(candidate, head, 10)
            if rule is None:
                keep = looked = scores.sum(axis=1) > 0
            else:
                keep, looked, _ = rule.decide(scores, 10, fruitless)
            fruitless += looked & ~keep
            kept += keep
            head = numpy.where(keep[:, None], candidate, head)
        error = kept.std() / math.sqrt(num_runs)
        rows.append(
            [rule.name if rule else "higher, head refreshed", f"{kept.mean():.4f} ±{error:.4f}", share(kept > 0)]
        )
    title = (
        f"4. every candidate 1pp worse: mean damage in pp after {num_rounds} rounds (1pp a keep); "
        f"{num_problems} problems x 10; {num_runs} runs"
    )
    table(title, ["rule", "damage", "runs with a keep"], rows)


def coverage(world: World, num_runs: int) -> None:
    """5: intervals."""
    rows = []
    for num_problems in (131, 374):
        for num_samples in (1, 10):
            rates = world.correct(world.log_odds(num_runs, num_problems), num_samples) / num_samples
            inside = [low <= 0.5 <= high for low, high in (mean_interval(row.tolist()) for row in rates)]
            rows.append(["mean_interval", str(num_problems), str(num_samples), share(inside), ""])
    for num_problems in (131, 374):
        head = world.log_odds(num_runs, num_problems)
        scores = world.scores(world.moved(head, 0.03, CHURN), head, 10)
        bounds = numpy.array([subset_bounds(row, 10, 0.025) for row in scores])
        inside = (bounds[:, 0] <= 0.03) & (bounds[:, 1] >= 0.03)
        rows.append(["paired_gain at .975", str(num_problems), "10", share(inside), f"{numpy.diff(bounds).mean():.3f}"])
    for gain in (0.0, 0.03):
        head = world.log_odds(num_runs, 1000)
        differences = world.scores(world.moved(head, gain, CHURN), head, 10) / 10
        never = numpy.ones(num_runs, dtype=bool)
        for sign in (1, -1):
            never &= ~ever_ruled_out(sign * differences, sign * gain, 0.03, 0.025)
        rows.append([f"confidence sequence, gain {gain:g}", "1 to 1000", "10", share(never), ""])
    title = f"5. coverage of 95% intervals; {num_runs} draws of the problems too (the sequence: at all sizes at once)"
    table(title, ["interval", "problems", "samples", "covers", "mean width"], rows)


def subset_bounds(scores: Ints, num_samples: int, alpha: float) -> tuple[float, float]:
    """The bounds of paired_gain where it draws subsets (more than 14 problems), from the same draws."""
    ordered = numpy.sort(scores)
    width = -(-len(ordered) // 8)
    draws = hashlib.shake_128(b"subsets of %d" % len(ordered)).digest(width * (NUM_DRAWS // 2))
    bits = numpy.unpackbits(numpy.frombuffer(draws, dtype=numpy.uint8).reshape(-1, width), axis=1, bitorder="little")
    picked = bits[:, : len(ordered)].astype(numpy.float32)
    sums = numpy.concatenate([picked @ ordered.astype(numpy.float32), picked @ ordered[::-1].astype(numpy.float32)])
    counts = numpy.tile(picked.sum(axis=1), 2)
    means = numpy.sort(sums[counts > 0].astype(float) / (counts[counts > 0].astype(float) * num_samples))
    rank = math.floor(alpha * (len(means) + 1) + 1e-9)
    return float(means[rank - 1]), float(means[-rank])


def ever_ruled_out(differences: Floats, mean: float, gap: float, level: float) -> Bools:
    """Does the lower confidence sequence ever pass `mean`?"""
    before = numpy.zeros_like(differences)
    numpy.cumsum(differences[:, :-1] ** 2, axis=1, out=before[:, 1:])
    mean_square = (before + NUM_IMAGINED * EXPECTED_SPREAD) / (numpy.arange(differences.shape[1]) + NUM_IMAGINED)
    bets = numpy.minimum(gap / (mean_square + gap * gap), MOST_AT_RISK / (1 + mean))
    reached: Bools = (numpy.cumprod(1 + bets * (differences - mean), axis=1) * level >= 1).any(axis=1)
    return reached


def slide(world: World, num_runs: int, num_rounds: int = 40) -> None:
    """6: each candidate is .2pp worse than its head, and a gate that allows 1pp lets it pass."""
    rows = []
    for num_problems in (374, 1000):
        best = world.log_odds(num_runs, num_problems)
        head = best
        noticed = numpy.full(num_runs, num_rounds + 1)
        refused = numpy.zeros(num_runs)
        for number in range(1, num_rounds + 1):
            candidate = world.moved(head, -0.002, 0.2)
            against_head = world.scores(candidate, head, 10)
            mean = against_head.mean(axis=1) / 10
            error = against_head.std(axis=1) / 10 / math.sqrt(num_problems)
            refused += mean + NormalDist().inv_cdf(0.95) * error < -0.01  # worse by more than 1pp at .05
            against_best = world.scores(best, candidate, 10)  # fresh samples of the best kept round too
            lost = sign_flips_reach(against_best / 10, numpy.full(num_runs, budget_level(ALPHA, number - 1)), 0.1)
            noticed = numpy.where(lost & (noticed > number), number, noticed)
            head = candidate
        quarter, median, three = numpy.quantile(noticed, [0.25, 0.5, 0.75])
        rows.append(
            [
                str(num_problems),
                f"{refused.mean() / num_rounds:.4f}",
                f"{quarter:.0f}, {median:.0f}, {three:.0f}",
                f"{0.2 * median:.1f}",
                share(noticed <= num_rounds),
            ]
        )
    title = (
        f"6. a slide of .2pp a round: the round in which a comparison with the best kept round (one-sided, budget of "
        f"{ALPHA:g}) sees a loss; a gate with a margin of 1pp against the head; {num_runs} runs of {num_rounds} rounds"
    )
    header = [
        "problems",
        "rounds the gate refused",
        "noticed in round (quartiles)",
        "pp lost by then",
        "noticed at all",
    ]
    table(title, header, rows)


def whole_runs(num_runs: int, seed: int) -> None:
    """7: what the head has gained when a run ends, under the default policy and under three rules; `loopctl simulate`."""
    told: dict[str, dict[str, Row]] = {}
    for row in rows(SHIPPED, Decide(suite="s"), num_runs, seed):
        told.setdefault(row["world"], {})[row["rule"]] = row
    table(
        f"7. whole runs: the head's mean gain over the base (pp), and the share of runs that keep what is no better; {num_runs} runs",
        ["world", "possible", "default", "worthless", "lowest tip", "completions", "rollback", "completions", "if higher", "worthless", "damage"],
        [
            [
                world,
                _pp(by_rule["configured"]["possible_gain"]),
                f"{_pp(by_rule['configured']['head_gain_mean'])} (sd {100 * by_rule['configured']['head_gain_sd']:.1f})",
                f"{by_rule['configured']['worthless_keep_share']:.3f}",
                _pp(by_rule["configured"]["tip_over_head_lowest"]),
                f"{by_rule['configured']['num_completions_mean']:,.0f}",
                _pp(by_rule["rollback"]["head_gain_mean"]),
                f"{by_rule['rollback']['num_completions_mean']:,.0f}",
                _pp(by_rule["keep_if_higher"]["head_gain_mean"]),
                f"{by_rule['keep_if_higher']['worthless_keep_share']:.3f}",
                f"{100 * by_rule['keep_if_higher']['damage_mean']:.2f}",
            ]
            for world, by_rule in told.items()
        ],
    )  # fmt: skip


def promise(num_runs: int, seed: int) -> None:
    """8: where nothing is gained, or only at first: the share of whole runs that keep what is no better, as lines are configured."""
    size = {"num_problems": 374, "num_samples": 10, "num_rounds": 50}
    worlds = [
        WholeWorld.model_validate({"name": "no gain", "gains": (0.0,), **size}),
        WholeWorld.model_validate({"name": "131 problems", "gains": (0.0,), **size, "num_problems": 131}),
        WholeWorld.model_validate({"name": "churn .2", "gains": (0.0,), **size, "churn": 0.2}),
        WholeWorld.model_validate({"name": "+3pp, then none", "gains": (0.03, 0.0), **size}),
        WholeWorld.model_validate({"name": "none, then -.5pp", "gains": (0.0, 0.0, 0.0, -0.005), **size}),
        WholeWorld.model_validate({"name": "-1pp", "gains": (-0.01,), **size}),
    ]
    settings: list[tuple[str, dict[str, Any]]] = [
        ("default", {}),
        ("looks = 6", {"looks": 6}),
        ("confirm", {"confirm": "confirm"}),
        ("confirm, looks = 6", {"confirm": "confirm", "looks": 6}),
        ("max_carried = 3", {"max_carried": 3}),
        ("last_samples = 1", {"last_samples": 1}),
    ]
    table(
        f"8. carry: the share of runs with a worthless keep; {num_runs} runs of 50 rounds, 374 problems x 10 samples unless it says so",
        ["decide", *(world.name for world in worlds)],
        [
            [name]
            + [
                f"{simulated(world, 'configured', Decide(suite='s', **changed), num_runs, seed)['worthless_keep_share']:.3f}"
                for world in worlds
            ]
            for name, changed in settings
        ],
    )


def _pp(gain: float) -> str:
    return f"{100 * gain:+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs: figures are rough")
    parser.add_argument("--only", help="experiments, such as 1 or 245")
    asked = parser.parse_args()
    num_runs = asked.runs // 10 if asked.quick else asked.runs
    print(f"seed {asked.seed}; ± is one binomial standard error")
    experiments: list[tuple[str, Callable[[World], None]]] = [
        ("1", lambda world: worthless_keeps(world, num_runs, 50, (131, 374, 1000))),
        ("2", lambda world: power(world, num_runs)),
        ("3", lambda world: completions(world, num_runs)),
        ("3 over runs", lambda world: completions_of_runs(world, num_runs, 30)),
        ("4", lambda world: damage(world, num_runs)),
        ("5", lambda world: coverage(world, num_runs)),
        ("6", lambda world: slide(world, num_runs)),
        ("7", lambda world: whole_runs(num_runs, asked.seed)),
        ("8", lambda world: promise(num_runs, asked.seed)),
    ]
    for name, experiment in experiments:
        if asked.only and name[0] not in asked.only:
            continue
        started = time.monotonic()
        experiment(World(asked.seed))
        print(f"\n({name}: {time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
