"""Simulated runs for the benches of decisions: problems, candidates, and looks at them, computed for many runs at once.

Problems have success rates from Beta(.35, .35): many nearly always solved, many nearly never. A candidate moves each
problem's log odds by a shift that all share (its gain) and by a normal amount of its own (its churn: .85 moves success
rates by 11 points a problem, with no change on average). Every comparison draws fresh samples of both checkpoints.

The looks are those of `loopctl simulate`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from loop.experiments.simulating import SELECT_SHARE, Looks
from loop.experiments.worlds import Bools, Floats, Ints, rates
from policies.gates import Improvement

ALPHA = 0.05  # as the gate has it
CHURN = 0.85


# the simulated world


class World:
    """Difficulties, candidates and samples; all from one seed."""

    def __init__(self, seed: int) -> None:
        self.numbers = numpy.random.default_rng(seed)

    def log_odds(self, *shape: int) -> Floats:
        drawn = numpy.clip(self.numbers.beta(0.35, 0.35, shape), 1e-9, 1 - 1e-9)
        return numpy.log(drawn) - numpy.log1p(-drawn)

    def moved(self, log_odds: Floats, gain: float, churn: float) -> Floats:
        """The log odds of a candidate whose mean gain over the whole population of problems is `gain`."""
        after = log_odds + shift_for(gain, churn)
        return after + churn * self.numbers.standard_normal(log_odds.shape) if churn else after

    def moved_in_a_fifth(self, log_odds: Floats, gain: float) -> Floats:
        """The gain comes from a random fifth of the problems, each failing less often by one share."""
        before = rates(log_odds)
        changed = self.numbers.random(log_odds.shape) < 0.2
        after = numpy.clip(before + changed * (1 - before) * gain / 0.2 / 0.5, 1e-9, 1 - 1e-9)
        return numpy.log(after) - numpy.log1p(-after)

    def correct(self, log_odds: Floats, num_samples: int) -> Ints:
        return self.numbers.binomial(num_samples, rates(log_odds)).astype(numpy.int64)

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
        more = (rates(before + middle + noise) - rates(before)).mean() < gain
        low, high = (middle, high) if more else (low, middle)
    return low


@dataclass(frozen=True)
class Rule:
    """A way to decide: in so many parts, on one split at the budget's level or by a screen that opens a confirmation."""

    name: str
    parts: int
    confirms: bool

    def decide(self, scores: Ints, num_samples: int, fruitless: Ints) -> tuple[Bools, Bools, Ints]:
        """(keep, budget look taken, problems evaluated) for each run, given its number of fruitless looks."""
        levels = ALPHA / ((fruitless + 1.0) * (fruitless + 2.0))
        screening = round(SELECT_SHARE * scores.shape[1]) if self.confirms else 0
        looks = Looks(Improvement(), self.parts, scores.shape[1], num_samples, screening)
        return looks.taken(scores / num_samples, levels)


PARTS = 6
FIXED_1 = Rule("fixed, one split", 1, False)
FIXED_2 = Rule("fixed, select then confirm", 1, True)
SEQUENTIAL_1 = Rule("sequential, one split", PARTS, False)
SEQUENTIAL_2 = Rule("sequential, select then confirm", PARTS, True)
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
