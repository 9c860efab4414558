"""Simulated runs for the benches of decisions: problems, candidates, and looks at them, computed for many runs at once.

Problems have success rates from Beta(.35, .35): many nearly always solved, many nearly never. A candidate moves each
problem's log odds by a shift that all share (its gain) and by a normal amount of its own (its churn: .85 moves success
rates by 11 points a problem, with no change on average). Every comparison draws fresh samples of both checkpoints.

`tests/bench/test_decisions.py` proves that these looks are those of `policies`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy
from numpy.typing import NDArray

from policies.gates import Improvement
from policies.gates.improvement import FINAL, SCREEN_FINAL
from policies.sequential import EXPECTED_SPREAD, MOST_AT_RISK, NUM_IMAGINED
from policies.statistics import sign_flip_p_value

ALPHA = 0.05
TARGET = 0.03  # both as the gate has them
CHURN = 0.85
Floats = NDArray[numpy.float64]
Bools = NDArray[numpy.bool_]
Ints = NDArray[numpy.int64]


# the simulated world


class World:
    """Difficulties, candidates and samples; all from one seed."""

    def __init__(self, seed: int) -> None:
        self.numbers = numpy.random.default_rng(seed)

    def log_odds(self, *shape: int) -> Floats:
        rates = numpy.clip(self.numbers.beta(0.35, 0.35, shape), 1e-9, 1 - 1e-9)
        return numpy.log(rates) - numpy.log1p(-rates)

    def moved(self, log_odds: Floats, gain: float, churn: float) -> Floats:
        """The log odds of a candidate whose mean gain over the whole population of problems is `gain`."""
        after = log_odds + shift_for(gain, churn)
        return after + churn * self.numbers.standard_normal(log_odds.shape) if churn else after

    def moved_in_a_fifth(self, log_odds: Floats, gain: float) -> Floats:
        """The gain comes from a random fifth of the problems, each failing less often by one share."""
        rates = _rates(log_odds)
        changed = self.numbers.random(log_odds.shape) < 0.2
        rates = numpy.clip(rates + changed * (1 - rates) * gain / 0.2 / 0.5, 1e-9, 1 - 1e-9)
        return numpy.log(rates) - numpy.log1p(-rates)

    def correct(self, log_odds: Floats, num_samples: int) -> Ints:
        return self.numbers.binomial(num_samples, _rates(log_odds)).astype(numpy.int64)

    def scores(self, candidate: Floats, head: Floats, num_samples: int) -> Ints:
        """(runs, problems): correct samples of the candidate less those of the head."""
        return self.correct(candidate, num_samples) - self.correct(head, num_samples)


@functools.cache
def shift_for(gain: float, churn: float) -> float:
    """The shift of all log odds that gives this gain on average; from a sample of its own, the same for every seed."""
    if gain == 0:
        return 0.0
    world = World(0)
    before = world.log_odds(200_000)
    noise = churn * world.numbers.standard_normal(before.shape)
    low, high = -3.0, 3.0
    for _ in range(25):
        middle = (low + high) / 2
        more = (_rates(before + middle + noise) - _rates(before)).mean() < gain
        low, high = (middle, high) if more else (low, middle)
    return low


def _rates(log_odds: Floats) -> Floats:
    return 1 / (1 + numpy.exp(-log_odds))


# looks, many runs at once


@dataclass(frozen=True)
class Plan:
    """How one split is looked at. parts = 1 and final = 1: all problems at once."""

    miss: float
    final: float
    parts: int


ALL_AT_ONCE = Plan(miss=1e-300, final=1.0, parts=1)


def sign_flips_reach(scores: Ints, num_samples: int, levels: Floats) -> Bools:
    """For each run: is the p-value at most its level? By the normal approximation where that leaves no doubt."""
    total = scores.sum(axis=1)
    square = (scores.astype(numpy.float64) ** 2).sum(axis=1)
    z = (total - 1) / numpy.sqrt(numpy.maximum(square, 1))  # half a step of the flipped sum for continuity
    near = numpy.array([0.5 * math.erfc(value / math.sqrt(2)) for value in z])
    doubt = numpy.where(levels >= 0.1, 1.15, numpy.where(levels >= 0.01, 1.6, 4.0))
    reach = near <= levels / doubt
    few = (scores != 0).sum(axis=1) < 20
    for run in numpy.flatnonzero(few | ((near > levels / doubt) & (near < levels * doubt))):
        changed = [Fraction(int(score), num_samples) for score in scores[run] if score]
        reach[run] = (sign_flip_p_value(changed) if changed else 1.0) <= levels[run]
    return reach


def gamblers_reach(differences: Floats, target_gain: float, levels: Floats, miss: float) -> tuple[Ints, Ints]:
    """After how many problems each gambler has won, as in policies.sequential; one more than all problems if never."""
    num_problems = differences.shape[1]
    before = numpy.zeros_like(differences)
    numpy.cumsum(differences[:, :-1] ** 2, axis=1, out=before[:, 1:])
    mean_square = (before + NUM_IMAGINED * EXPECTED_SPREAD) / (numpy.arange(num_problems) + NUM_IMAGINED)
    bets = target_gain / (mean_square + target_gain * target_gain)
    gain = numpy.cumprod(1 + numpy.minimum(bets, MOST_AT_RISK) * differences, axis=1)
    against = numpy.minimum(bets, MOST_AT_RISK / (1 - target_gain))
    none = numpy.cumprod(1 + against * (target_gain - differences), axis=1)
    return _first(gain * levels[:, None] >= 1), _first(none * miss >= 1)


def _first(reached: Bools) -> Ints:
    return numpy.where(reached.any(axis=1), reached.argmax(axis=1) + 1, reached.shape[1] + 1)


def looks(scores: Ints, num_samples: int, levels: Floats, plan: Plan) -> tuple[Bools, Ints]:
    """For each run: does the look say gain, and how many problems were evaluated (whole parts)?"""
    num_runs, num_problems = scores.shape
    if plan.final == 1.0 and plan.parts == 1:
        found = sign_flips_reach(scores, num_samples, levels) & (scores.sum(axis=1) > 0)
        return found, numpy.full(num_runs, num_problems)
    gain, none = gamblers_reach(scores / num_samples, TARGET, levels * (1 - plan.final), plan.miss)
    found, used = gain < none, numpy.minimum(numpy.minimum(gain, none), num_problems)
    open_still = numpy.flatnonzero(numpy.minimum(gain, none) > num_problems)
    if plan.final and open_still.size:
        found[open_still] = sign_flips_reach(scores[open_still], num_samples, levels[open_still] * plan.final)
    ends = -(-numpy.arange(1, plan.parts + 1) * num_problems // plan.parts)
    return found, ends[numpy.searchsorted(ends, used)]


@dataclass(frozen=True)
class Rule:
    """A way to decide: on one split at the budget's level, or by a screen that opens a confirmation."""

    name: str
    plan: Plan
    screen: Plan | None = None  # how select is looked at, where two splits are used

    def decide(self, scores: Ints, num_samples: int, fruitless: Ints) -> tuple[Bools, Bools, Ints]:
        """(keep, budget look taken, problems evaluated) for each run, given its number of fruitless looks."""
        levels = ALPHA / ((fruitless + 1.0) * (fruitless + 2.0))
        if self.screen is None:
            keep, used = looks(scores, num_samples, levels, self.plan)
            return keep, numpy.ones(len(keep), dtype=bool), used
        at = round(SHARE * scores.shape[1])
        opened, used = looks(scores[:, :at], num_samples, numpy.full(len(scores), SCREEN), self.screen)
        keep = numpy.zeros_like(opened)
        if opened.any():
            found, more = looks(scores[opened, at:], num_samples, levels[opened], self.plan)
            keep[opened] = found
            used = used.copy()
            used[opened] += more
        return keep, opened, used


PARTS = 6
GATE = Improvement()
SCREEN, SHARE = GATE.screen, 0.2  # the share of the problems that select has
SEQUENTIAL = Plan(GATE.miss, FINAL, PARTS)
FIXED_1 = Rule("fixed, one split", ALL_AT_ONCE)
FIXED_2 = Rule("fixed, select then confirm", ALL_AT_ONCE, ALL_AT_ONCE)
SEQUENTIAL_1 = Rule("sequential, one split", SEQUENTIAL)
SEQUENTIAL_2 = Rule("sequential, select then confirm", SEQUENTIAL, Plan(GATE.miss, SCREEN_FINAL, PARTS))
RULES = (FIXED_1, FIXED_2, SEQUENTIAL_1, SEQUENTIAL_2)


# tables


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    print(f"\n{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(widths[0]) if not n else cell.rjust(widths[n]) for n, cell in enumerate(row)))


def share(hits: Bools | Sequence[bool]) -> str:
    """A share with its binomial standard error."""
    hits = numpy.asarray(hits)
    p = hits.mean()
    return f"{p:.3f} ±{math.sqrt(max(p * (1 - p), 1 / len(hits) / 4) / len(hits)):.3f}"
