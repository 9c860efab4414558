"""The line: rounds whose gain could not be shown yet, continued, each of them compared with the head again.

Between two heads the rounds form a line. Its newest candidate, the tip, is where the next round samples from; the head stays
what has been shown. Small gains add up along the line until a look can see them.

A line gets SHARE of the error that is left to the run, and its looks share that: FIRST of it for the first look, and FIRST of
the rest for each later one. A line that fails has spent all of its share, a line that ends in a keep the part of its looks in
vain. So the chance that a run of any length keeps even one candidate that is no better is at most alpha; docs/decisions.md
has the proof, and what it assumes. It needs the depths at which a line is looked at to be fixed before it begins: they follow
from what the line before it showed (`first_look`), and not from what its own candidates showed, or luck would choose the
moment. A candidate that is not looked at is measured on fewer problems, which only have to tell that it is worse than the head.

A line ends where its candidate is worse than the head, or than the tip that it was trained from, or fails another gate. What
was carried until then is not lost with it: before the tip goes back to the head, the tip is looked at itself, with what the line
has not spent and with answers of their own for both.

What a line risks is machine time: by itself, the head moves forward by looks alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from policies.evidence import Line
from policies.statistics import Number

SHARE = 0.6
"""The share of the error that is left which a line gets."""
FIRST = 0.4
"""The share of a line's error that its first look gets, and each later look of the rest."""
GROWTH = 1.5
"""A line that was looked at in vain is looked at again when it is this many times as long."""
LEAST_POWER = 0.7
"""A line is first looked at where the gain that is hoped for would be shown with this probability."""
HOPE = 0.1
"""The gain a round that is hoped for where nothing was shown yet..."""
HOPED_SHARE = 0.7
"""...and the share of the last gain that is hoped for again: what was shown is flattered by having been shown."""
GLIMPSE = 0.5
"""The share of the problems on which a candidate is measured that is not looked at."""
WORSE = 0.1
"""The chance that a round ends its line although its candidate is as good as the head."""
TURN = 0.02
"""The chance that a round ends its line although its candidate is as good as the tip that it was trained from."""
PROMISING = 0.5
"""A line that ends has its tip looked at if the tip scored so many standard errors above the head when it was carried."""
CLOSING = 0.9
"""The part of a line's error not spent yet that the look at its tip gets: a tip that scored badly would not have become one."""
CHURN_VARIANCE = 0.012
"""The variance over problems by which one fine-tune moves success rates, beside their common gain: (11 points)^2."""
PASS_VARIANCE = 0.1
"""The mean over problems of p (1 - p) before anything is measured."""

MAX_CARRIED = 30
"""How many rounds of a line are carried; the one after them is its last."""

_NORMAL = NormalDist()
_LEAST_LEVEL = 1e-12  # below it nothing is shown by as many problems as there are


@dataclass(frozen=True, slots=True)
class Shown:
    """What made the head: a gain over `num_rounds` rounds, and the mean square of the problems' differences."""

    gain: float
    num_rounds: int
    mean_square: float
    num_samples: int  # of each problem


def share(line: Line) -> float:
    """The share of alpha that a look at this candidate may spend."""
    num_looks = line.depth if line.num_looks is None else line.num_looks
    rest = SHARE * left(line) * (1 - FIRST) ** num_looks
    return rest if line.last else FIRST * rest


def closing_share(line: Line) -> float:
    """The share of alpha that a look at the tip may spend where this candidate ends the line before its last look."""
    num_looks = (line.depth if line.num_looks is None else line.num_looks) + line.look
    return CLOSING * SHARE * left(line) * (1 - FIRST) ** num_looks


def promises(differences: Sequence[Number]) -> bool:
    """Whether a tip scored enough above the head, problem by problem, for a look at it to be worth its samples."""
    squares = float(sum(difference * difference for difference in differences))
    return squares > 0 and float(sum(differences)) >= PROMISING * math.sqrt(squares)


def left(line: Line) -> float:
    """The share of alpha that was left to the run when the line began; where that is not said, what failed lines left."""
    return (1 - SHARE) ** line.num_failed if line.left is None else line.left


def left_after(line: Line, *, kept: bool) -> float:
    """The share of alpha that is left when the line ends with this candidate."""
    num_looks = line.depth if line.num_looks is None else line.num_looks
    spent = 1 - (1 - FIRST) ** num_looks if kept else 1.0
    return left(line) * (1 - SHARE * spent)


def first_look(
    shown: Shown | None, min_gain: float, level: float, num_problems: int, num_samples: int, most: int
) -> int:
    """At which round of a new line a gain above `min_gain` is likely to be shown, at most `most`; from what was shown before."""
    a_round = HOPE if shown is None else HOPED_SHARE * shown.gain / shown.num_rounds
    sampling = 2 * PASS_VARIANCE / num_samples
    if shown is not None:
        sampling = max(shown.mean_square - shown.num_rounds * CHURN_VARIANCE, 0.2 * shown.mean_square)
        sampling *= shown.num_samples / num_samples
    if level < _LEAST_LEVEL:
        return most
    needed = _NORMAL.inv_cdf(LEAST_POWER) - _NORMAL.inv_cdf(level)  # standard errors
    return next(
        (
            num_rounds
            for num_rounds in range(1, most)
            if a_round * num_rounds - min_gain
            >= needed * math.sqrt((sampling + num_rounds * CHURN_VARIANCE) / num_problems)
        ),
        most,
    )


def continued(line: Line, num_failed: int | None = None, *, last: bool) -> Line:
    """Where the candidate stands that follows one that was carried. `last`: no round follows it in turn.

    A last candidate that was carried after all (the run was given more rounds) has spent the line's error: it gets another share.
    """
    again = line.last
    return Line(
        depth=line.depth + 1,
        num_failed=line.num_failed if num_failed is None else num_failed,
        left=left_after(line, kept=False) if again else left(line),
        num_looks=0 if again else (line.num_looks or 0) + line.look,
        next_look=max(line.depth + 2, math.ceil((line.depth + 1) * GROWTH)) if line.look else line.next_look,
        last=last,
    )
