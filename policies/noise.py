"""What chance alone does to a figure, and which gain an evaluation of some size can tell from it.

A candidate that is no better than the head differs from it as one checkpoint, measured twice, differs from itself. With n
samples of a problem that is solved with the chance p, the difference of the two success rates has the variance
2 p (1 - p) / n; `variance` below is the mean of p (1 - p) over the problems. A true gain that is larger on some problems
than on others adds to that, whatever the number of samples: `churn` below is its variance over the problems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from policies.gates.collapse import Limit
from policies.statistics import Number

PRIOR_VARIANCE = 0.10
"""The mean of p (1 - p) before anything was measured: most problems are nearly always or nearly never solved."""
ROOM = 4.0
"""How many standard deviations of noise a limit leaves at least: one signal in 30,000 is beyond them by chance."""


def variance_within(outcomes: Sequence[Sequence[int]]) -> float:
    """The mean of p (1 - p) over problems, from at least two samples of each; unbiased."""
    if not outcomes or any(len(samples) < 2 for samples in outcomes):
        raise ValueError("the variance within problems wants at least two samples of each")
    return fmean(sum(each) * (len(each) - sum(each)) / (len(each) * (len(each) - 1)) for each in outcomes)


def variance_between(differences: Sequence[Number], num_samples: int) -> float:
    """The same from per-problem differences of two measurements: less exact, but right for any metric."""
    if len(differences) < 2:
        raise ValueError("the spread of fewer than two problems")
    return stdev(map(float, differences)) ** 2 * num_samples / 2


def variance_from(detectable: float, num_problems: int, num_samples: int, level: float, power: float) -> float:
    """The variance with which an evaluation of that size detects that gain: the inverse of `detectable_gain`."""
    return (detectable / _reach(level, power)) ** 2 * num_problems * num_samples / 2


def detectable_gain(
    variance: float, num_problems: int, num_samples: int, level: float, power: float, churn: float = 0.0
) -> float:
    """The gain that is found with probability `power` at one-sided `level`; see `statistics.smallest_detectable_gain`."""
    fewest = math.ceil(-math.log2(level))
    if num_problems < fewest:
        return 1.0
    spread = math.sqrt((2 * variance / num_samples + churn) / num_problems)
    return min(1.0, max(fewest / (num_problems * num_samples), _reach(level, power) * spread))


def problems_needed(
    variance: float, num_samples: int, gain: float, level: float, power: float, churn: float = 0.0
) -> int:
    """How many problems it takes to find that gain, with `num_samples` of each."""
    fewest = math.ceil(-math.log2(level))
    by_spread = (_reach(level, power) / gain) ** 2 * (2 * variance / num_samples + churn)
    return max(fewest, math.ceil(fewest / (gain * num_samples) - 1e-9), math.ceil(by_spread - 1e-9))


def samples_needed(
    variance: float, num_problems: int, gain: float, level: float, power: float, churn: float = 0.0
) -> int | None:
    """How many samples of each of `num_problems` it takes to find that gain; None where no number is enough."""
    fewest = math.ceil(-math.log2(level))
    left = (gain / _reach(level, power)) ** 2 * num_problems - churn  # for chance within problems
    if num_problems < fewest or left <= 0:
        return None
    by_spread = 2 * variance / left
    return max(1, math.ceil(fewest / (gain * num_problems) - 1e-9), math.ceil(by_spread - 1e-9))


def _reach(level: float, power: float) -> float:
    """How many standard errors a gain must be away from 0."""
    return NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(power)


# Signals


@dataclass(frozen=True, slots=True)
class SignalNoise:
    """A signal of one checkpoint, and the standard deviation of the difference of two measurements of it."""

    value: float
    sd: float


def signal_noise(first: Sequence[float], second: Sequence[float]) -> SignalNoise:
    """From each problem's value in two measurements; the signal is the mean over problems."""
    if len(first) < 2 or len(first) != len(second):
        raise ValueError("the noise of a signal wants two values of each of at least two problems")
    differences = [before - after for before, after in zip(first, second, strict=True)]
    return SignalNoise(sum((*first, *second)) / (2 * len(first)), stdev(differences) / math.sqrt(len(first)))


def roomy_limits(limits: Mapping[str, Limit], noise: Mapping[str, SignalNoise], room: float = ROOM) -> dict[str, Limit]:
    """The limits of the signals that were measured, each widened where it leaves less than `room` standard deviations.

    No limit is made stricter: a round is meant to move signals by more than noise, for example towards shorter answers.
    """
    roomy = {}
    for name, limit in limits.items():
        if name not in noise:
            continue
        signal = noise[name]
        share = room * signal.sd / abs(signal.value) if signal.value else 0.0
        wider: dict[str, float] = {}
        for key, value in limit.given().items():
            match key.partition("_")[0], key:
                case "min", _:
                    wider[key] = min(value, max(0.0, _down(1 - share)))
                case "max", "max_fall" | "max_rise":
                    wider[key] = max(value, _up(room * signal.sd))
                case _:
                    wider[key] = max(value, _up(1 + share))
        roomy[name] = limit.model_copy(update=wider)
    return roomy


def _down(value: float) -> float:
    return math.floor(value * 100 + 1e-9) / 100


def _up(value: float) -> float:
    return math.ceil(value * 100 - 1e-9) / 100
