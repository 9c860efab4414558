"""A comparison that stops when it is clear: `policies.sequential` in both directions, each at half the level.

The problems come in parts, in an order that owes nothing to outcomes. After each part a gambler bets against "B is no better", another
against "A is no better"; and two against "the difference is as large as the one that is looked for". So the chance of naming a winner
where there is none is at most the level, however often it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from policies.sequential import look
from policies.statistics import Number

Finding = Literal["B is better", "A is better", "no difference of this size", "unclear"]

MISS = 0.1  # the chance at which a difference of the size that is looked for is missed because the comparison stopped
FINAL = 0.2  # the part of the level that is kept for the end, when all problems are there
TARGET = 0.03
NUM_LOOKS = 10


class Said(NamedTuple):
    """What the problems so far say, and bounds of the gain that hold wherever the comparison stops."""

    finding: Finding
    lower: float
    upper: float


def said_by(differences: Sequence[Number], *, complete: bool, level: float = 0.05, target: float = TARGET) -> Said:
    """What these problems say, from B's success rates less A's in drawing order. `complete`: they are all."""
    better, worse = (
        look(side, target_gain=target, level=level / 2, miss=MISS, final=FINAL, complete=complete)
        for side in (differences, [-each for each in differences])
    )
    finding: Finding = "unclear"
    if better.verdict == "gain":
        finding = "B is better"
    elif worse.verdict == "gain":
        finding = "A is better"
    elif better.verdict == worse.verdict == "no_gain":
        finding = "no difference of this size"
    return Said(finding, better.lower, -worse.lower)
