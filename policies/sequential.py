"""A look at problems that come in parts, and may end as soon as the answer is clear.

Two gamblers bet on the differences d of success rates, in drawing order, and never risk all. One bets against "the
gain is at most min_gain": its wealth, the product of 1 + bet * (d - min_gain), grows only if that is wrong. One bets
against "the gain is at least target_gain". If what it bets against is true, a gambler who starts with 1 ever reaches
1/level with a chance of at most `level` (Ville 1939), wherever the game ends: so the parts may be of any number and size.
Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2023).

That holds if each problem's difference has, given the earlier ones, a mean of at most min_gain: problems drawn from
many, in an order that owes nothing to outcomes, each sampled anew. Of the spread of d nothing is assumed.

Nothing here draws, samples or remembers; which problems come next is the caller's part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from policies.statistics import Number, sign_flip_p_value

Finding = Literal["gain", "no_gain", "unclear"]

MOST_AT_RISK = 0.9
"""The largest share of its wealth that a gambler can lose on one problem."""
EXPECTED_SPREAD = 0.04
"""The mean square of a difference that is assumed at first (about 10 samples a problem), as if of NUM_IMAGINED problems."""
NUM_IMAGINED = 10

_MOST_WEALTH = 1e300  # more is not needed, and the product must not overflow
_NUM_HALVINGS = 32


def drawing_order(round: int, task_ids: Sequence[str]) -> list[str]:
    """The order in which a round's look goes through problems, however they are given: by the SHA-256 of round and task id."""
    if len(set(task_ids)) < len(task_ids):
        raise ValueError("a task id is there twice")
    return sorted(task_ids, key=lambda task_id: hashlib.sha256(f"{round} task {task_id}".encode()).digest())


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict of the problems so far. Unclear: more problems may settle it; without any, the candidate is not kept."""

    verdict: Finding
    gain: float
    """The mean difference of all problems that were given."""
    lower: float
    """One-sided bound at the level of the look: the verdict is `gain` where it is above min_gain."""
    upper: float
    """One-sided bound at `miss`: the verdict is `no_gain` where it is below target_gain."""
    e_gain: float
    """The most that the gambler against "no more than min_gain" has owned."""
    e_none: float
    """The most that the gambler against "at least target_gain" has owned."""
    p_value: float | None
    """The sign-flip test's for all problems, where that decided; else None."""
    num_used: int
    """The number of problems after which the verdict stood."""
    level: float
    miss: float


def look(
    differences: Sequence[Number],
    *,
    target_gain: float,
    level: float,
    min_gain: float = 0.0,
    miss: float = 0.1,
    final: float = 0.8,
    complete: bool = True,
) -> Outcome:
    """Test "no gain of more than min_gain" at `level`, on differences of success rates in drawing order.

    `gain`: the chance of this verdict is at most `level` if the gain is min_gain or less. `no_gain`: a gain of
    target_gain or more is missed this way with a chance of at most `miss`. The gambler who wins first decides, and
    problems that come later cannot change it.

    The part `final` of the level is kept for the end: if all problems are there (`complete`) and neither gambler has
    won, the sign-flip test of `policies.statistics` decides at final * level. Its level is exact if candidate and
    head are alike, and right for many problems otherwise. final = 1 is a test of all problems at once.
    """
    if not differences:
        raise ValueError("a look at no problems")
    for name, value in (("level", level), ("miss", miss)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name} {value} is not between 0 and 1")
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final {final} is not between 0 and 1")
    if not -1.0 < min_gain < target_gain < 1.0:
        raise ValueError(f"target_gain {target_gain} is not above min_gain {min_gain}, or not all between -1 and 1")
    values = _floats(differences)
    mirrored = [-value for value in values]
    bets = _bets(values, target_gain - min_gain)
    early = level * (1 - final)
    against_gain = list(_wealth(values, bets, min_gain))
    against_none = list(_wealth(mirrored, bets, -target_gain))

    verdict: Finding = "unclear"
    num_used, p_value, floor = len(values), None, -1.0
    first_gain, first_none = _reaches(against_gain, early), _reaches(against_none, miss)
    if min(first_gain, first_none) <= len(values):
        num_used = min(first_gain, first_none)
        verdict = "gain" if first_gain < first_none else "no_gain"
    elif complete and final > 0:
        p_value = sign_flip_p_value(differences, min_gain)
        if p_value <= final * level:
            verdict, floor = "gain", min_gain
    gain = sum(values) / len(values)
    return Outcome(
        verdict=verdict,
        gain=gain,
        lower=min(gain, max(floor, _lower(values, bets, early))),
        upper=max(gain, -_lower(mirrored, bets, miss)),
        e_gain=max(against_gain),
        e_none=max(against_none),
        p_value=p_value,
        num_used=num_used,
        level=level,
        miss=miss,
    )


def confidence_sequence(differences: Sequence[Number], *, level: float, gap: float = 0.03) -> tuple[float, float]:
    """One-sided bounds for the gain, each at `level`, that hold at every number of problems at once.

    All gains that the gamblers have not yet ruled out. `gap`: the distance from the gain at which the bounds are
    wanted tight. Computed again with more problems in the same drawing order they never widen, but for one thing: they
    always hold the mean difference.
    """
    if not differences:
        raise ValueError("a confidence sequence of no problems")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level {level} is not between 0 and 1")
    if not 0.0 < gap < 2.0:
        raise ValueError(f"gap {gap} is not between 0 and 2")
    values = _floats(differences)
    bets = _bets(values, gap)
    gain = sum(values) / len(values)
    upper = -_lower([-value for value in values], bets, level)
    return min(gain, _lower(values, bets, level)), max(gain, upper)


def _floats(differences: Sequence[Number]) -> list[float]:
    if not all(-1 <= difference <= 1 for difference in differences):
        raise ValueError("differences must lie between -1 and 1")
    return [float(difference) for difference in differences]


def _bets(values: list[float], gap: float) -> list[float]:
    """For each problem, from the earlier ones: the bet that lets wealth grow fastest if the gain is `gap` more (Kelly 1956).

    gap / (mean square + gap^2). It is the same for both gamblers and for every gain that is tested, so that what is ruled
    out is an interval.
    """
    bets = []
    square_sum = 0.0
    for num_earlier, value in enumerate(values):
        mean_square = (square_sum + NUM_IMAGINED * EXPECTED_SPREAD) / (num_earlier + NUM_IMAGINED)
        bets.append(gap / (mean_square + gap * gap))
        square_sum += value * value
    return bets


def _wealth(values: list[float], bets: list[float], mean: float) -> Iterator[float]:
    """What a gambler against "the mean is at most `mean`" owns after each problem; never 0 or less.

    A bet is cut where a loss of 1 + mean would cost more than MOST_AT_RISK; cut like this, wealth falls with `mean`.
    """
    most = MOST_AT_RISK / (1 + mean) if mean > -1 else float("inf")
    owned = 1.0
    for value, bet in zip(values, bets, strict=True):
        owned *= 1 + (bet if bet < most else most) * (value - mean)
        if owned > _MOST_WEALTH:
            owned = _MOST_WEALTH
        yield owned


def _reaches(course: list[float], level: float) -> int:
    """The number of problems after which wealth is 1/level for the first time; one more than all if it never is."""
    return next((index for index, owned in enumerate(course, 1) if owned * level >= 1), len(course) + 1)


def _lower(values: list[float], bets: list[float], level: float) -> float:
    """The largest mean that is ruled out at `level`, to 2^-31; -1 if none is."""

    def ruled_out(mean: float) -> bool:
        return any(owned * level >= 1 for owned in _wealth(values, bets, mean))

    if not ruled_out(-1.0):
        return -1.0
    low, high = -1.0, 1.0
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low
