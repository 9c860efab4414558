"""Successive halving: which of several candidates of one fine-tune is the best, on few problems first and then on more.

All candidates answer the first problems; the better half goes on to twice as many, until two compare on all of them (Jamieson
and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016). Each rung asks about as much
as one candidate on all problems, so that 2^n candidates cost n + 1 times what one costs.

The winner's score is flattered: it was chosen for being high. It may pick a candidate, and must show nothing; other
problems do that (`Policy.confirm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from policies.statistics import pass_at_k


@dataclass(frozen=True, slots=True)
class Rung:
    """How many problems the candidates that are left answer, those of earlier rungs among them, and how many go on."""

    num_problems: int
    num_left: int


def rungs(num_candidates: int, num_problems: int) -> tuple[Rung, ...]:
    """The rungs up to the one winner; none where a single candidate leaves nothing to choose."""
    if num_candidates < 1 or num_problems < 1:
        raise ValueError(f"{num_candidates} candidates on {num_problems} problems")
    planned: list[Rung] = []
    num_rungs, num_left = (num_candidates - 1).bit_length(), num_candidates
    for doublings_left in reversed(range(num_rungs)):
        num_left = -(-num_left // 2)
        planned.append(Rung(-(-num_problems // 2**doublings_left), num_left))
    return tuple(planned)


def num_asked(num_candidates: int, num_problems: int) -> int:
    """How often a problem is asked on all rungs together. A candidate that goes on is asked only what is new to it."""
    if num_candidates == 1:
        return num_problems
    total, before, num_left = 0, 0, num_candidates
    for rung in rungs(num_candidates, num_problems):
        total += num_left * (rung.num_problems - before)
        before, num_left = rung.num_problems, rung.num_left
    return total


def score(outcomes: Sequence[Sequence[int]], k: int) -> Fraction:
    """The mean over problems of pass@k, exact: equal answers tie, in whatever order the problems come."""
    if not outcomes:
        raise ValueError("a score on no problems")
    each = (
        Fraction(sum(samples), len(samples)) if k == 1 else Fraction(pass_at_k(len(samples), sum(samples), k))
        for samples in outcomes
    )
    return sum(each, Fraction(0)) / len(outcomes)


def better_ones(scores: Mapping[int, Fraction], num_left: int) -> list[int]:
    """The steps of those that go on, in order. Of equals the later step does: a round without candidates has the last one."""
    if not 1 <= num_left <= len(scores):
        raise ValueError(f"{num_left} of {len(scores)} candidates cannot go on")
    return sorted(sorted(scores, key=lambda step: (scores[step], step))[-num_left:])
