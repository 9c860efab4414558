"""Several candidates inside a round, tried on simulated runs: `python bench/candidates.py [--quick]`.

A training moves each problem's log odds by a shift, whose course over the training is the world's, and by a random walk of its
own (the churn of bench/simulation.py at its end). Candidates are left at even steps; those of one training share its walk. They
compete as in a round, by policies/halving.py on the problems of select; the winner is compared with the head by the rules of
`loopctl simulate`. Gains are those of the whole population of problems, so that no luck of a suite is in them.
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.simulation import CHURN, Floats, Ints, World, share, shift_for, table
from loop.config.settings import Decide
from loop.experiments.simulating import Fresh, Memory, rules_of
from loop.experiments.worlds import World as Measured
from policies.halving import better_ones, num_asked, rungs

WORLDS: dict[str, tuple[float, ...]] = {  # the gain of a round after each eighth of its training
    "overshoots": (0.018, 0.028, 0.024, 0.014, 0.002, -0.008, -0.016, -0.02),
    "overshoots a little": (0.006, 0.012, 0.018, 0.024, 0.028, 0.03, 0.026, 0.018),
    "rises to its end": (0.006, 0.011, 0.015, 0.019, 0.022, 0.025, 0.028, 0.03),
    "never gains": (0.0,) * 8,
    "only does harm": (-0.002, -0.005, -0.007, -0.01, -0.012, -0.015, -0.017, -0.02),
}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    num_problems: int
    select_share: float
    num_samples: int
    num_rounds: int

    @property
    def num_select(self) -> int:
        """Of the problems."""
        return round(self.select_share * self.num_problems)


@dataclass(frozen=True)
class Ended:
    """What became of each run: the head's gain over the base, worthless keeps, keeps, completions; and the gain of a chosen
    candidate over what it was trained from, on the average over rounds."""

    gain: Floats
    worthless: Ints
    kept: Ints
    completions: Floats
    offered: Floats


def gains_at(course: tuple[float, ...], num_candidates: int) -> Floats:
    """The gain at each candidate's step: in straight lines between those of the world, from 0 at the beginning."""
    places = numpy.arange(1, num_candidates + 1) / num_candidates
    found: Floats = numpy.interp(places, numpy.linspace(0, 1, len(course) + 1), (0.0, *course))
    return found


def trained(world: World, parent: Floats, gains: Floats) -> Floats:
    """(candidates, runs, problems): the log odds along one training of each run."""
    num = len(gains)
    walk, after = numpy.zeros_like(parent), numpy.empty((num, *parent.shape))
    for place, gain in enumerate(gains, start=1):
        walk = walk + CHURN / numpy.sqrt(num) * world.numbers.standard_normal(parent.shape)
        after[place - 1] = parent + walk + shift_for(float(gain), CHURN * float(numpy.sqrt(place / num)))
    return after


def winners(correct: Ints) -> Ints:
    """Of (candidates, runs, problems) right answers: which candidate of each run wins."""
    num, num_runs, num_problems = correct.shape
    planned = rungs(num, num_problems)
    sums = numpy.array([correct[:, :, : rung.num_problems].sum(axis=2) for rung in planned])
    chosen = numpy.full(num_runs, num - 1)
    for run in range(num_runs):
        left = list(range(num))
        for number, rung in enumerate(planned):
            left = better_ones({step: Fraction(int(sums[number, step, run])) for step in left}, rung.num_left)
        chosen[run] = left[0]
    return chosen


def runs(course: tuple[float, ...], num_candidates: int, decide: Decide, size: Size, num_runs: int, seed: int) -> Ended:
    """Runs from the base to their end. A head is measured afresh, and its answers serve all candidates that follow."""
    world, gains = World(seed), gains_at(course, num_candidates)
    measured = Measured(
        name="candidates", gains=(0.0,), num_problems=size.num_problems, num_samples=size.num_samples,
        num_rounds=size.num_rounds, select_share=size.select_share,
    )  # fmt: skip
    rule, memory = rules_of(decide, measured)["configured"], Memory.empty(num_runs, size.num_problems)
    head = tip = world.log_odds(num_runs, size.num_problems)
    head_gain, tip_gain, offered = numpy.zeros(num_runs), numpy.zeros(num_runs), numpy.zeros(num_runs)
    worthless, kept = numpy.zeros(num_runs, dtype=numpy.int64), numpy.zeros(num_runs, dtype=numpy.int64)
    answers, asked = world.correct(head, size.num_samples), numpy.full(num_runs, float(size.num_problems))
    more_asked = num_asked(num_candidates, size.num_select) - size.num_select
    everybody = numpy.arange(num_runs)
    for number in range(size.num_rounds):
        several = trained(world, tip, gains)
        on_select = world.correct(several[:, :, : size.num_select], size.num_samples)
        best = winners(on_select)
        candidate = several[best, everybody]
        on_confirm = world.correct(candidate[:, size.num_select :], size.num_samples)
        correct = numpy.concatenate([on_select[best, everybody], on_confirm], axis=1)
        fresh = Fresh(*(functools.partial(_fresh, world, weights, head) for weights in (candidate, tip)))
        is_last = number + 1 == size.num_rounds
        outcome = rule(memory, (correct - answers) / size.num_samples, fresh, is_last=is_last)
        memory, moved, carry = outcome.memory, outcome.keep | outcome.tip, outcome.carry
        gain = tip_gain + gains[best]
        new, new_gain = numpy.where(outcome.tip[:, None], tip, candidate), numpy.where(outcome.tip, tip_gain, gain)
        worthless += moved & (new_gain - head_gain <= 1e-12)
        kept, offered = kept + moved, offered + gains[best] / size.num_rounds
        asked += outcome.num_measured + more_asked
        head, head_gain = numpy.where(moved[:, None], new, head), numpy.where(moved, new_gain, head_gain)
        tip, tip_gain = numpy.where(carry[:, None], candidate, head), numpy.where(carry, gain, head_gain)
        if not is_last:
            answers = numpy.where(moved[:, None], world.correct(head, size.num_samples), answers)
            asked += moved * size.num_problems
    return Ended(head_gain, worthless, kept, asked * size.num_samples, offered)


def _fresh(world: World, candidate: Floats, head: Floats, num_samples: int) -> Floats:
    return world.scores(candidate, head, num_samples) / num_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--select", type=float, default=0.4, help="the share of the problems that choose")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs: figures are rough")
    asked = parser.parse_args()
    num_runs = asked.runs // 10 if asked.quick else asked.runs
    size = Size(asked.problems, asked.select, asked.samples, asked.rounds)
    print(f"seed {asked.seed}; ± is one binomial standard error")
    for unclear in ("carry", "rollback"):
        decide = Decide.model_validate({"suite": "s", "confirm": "confirm", "unclear": unclear})
        rows = []
        for name in asked.worlds:
            for num in asked.candidates:
                ended = runs(WORLDS[name], num, decide, size, num_runs, asked.seed)
                rows.append(
                    [
                        name,
                        str(num),
                        f"{100 * ended.offered.mean():+.2f}",
                        f"{100 * ended.gain.mean():+.1f} (sd {100 * ended.gain.std():.1f})",
                        f"{ended.kept.mean():.1f}",
                        share(ended.worthless > 0),
                        f"{ended.completions.mean():,.0f}",
                    ]
                )
        table(
            f"unclear = {unclear}: {num_runs} runs of {size.num_rounds} rounds, {size.num_problems} problems ({size.num_select} "
            f"of them in select) x {size.num_samples} samples; gains in pp",
            ["world", "candidates", "gain of the chosen", "head's gain at the end", "keeps", "runs with a worthless keep", "completions"],
            rows,
        )  # fmt: skip


if __name__ == "__main__":
    main()
