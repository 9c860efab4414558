"""The arithmetic of an experiment's tables: arms by round, and one arm against another. Reads no store and no clock.

Figures are paired by problem and by seed. A problem's difference is the mean of its differences over the seeds, and
intervals are over problems: they generalise to other problems, not to other seeds or another base. The change of each seed
stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from statistics import fmean
from typing import Any

from policies.statistics import mean_interval, paired_gain

CONFIDENCE = 0.95

Rates = Mapping[str, Fraction]  # by problem


@dataclass(frozen=True, slots=True)
class Head:
    """The head after a round (round 0: the base), on the suite that figures come from.

    `figures`: the evaluation's. `kept`: whether this round moved the head.
    """

    kept: bool
    rates: Rates
    figures: Mapping[str, Any]


HeadsBySeed = Mapping[int, Sequence[Head]]  # the heads of a run by seed, the base first; as many as are known


def over_seeds(per_seed: Sequence[Rates]) -> dict[str, Fraction]:
    """Each problem's mean over the seeds, for the problems that all seeds have."""
    common = [task for task in per_seed[0] if all(task in rates for rates in per_seed)]
    return {task: sum((rates[task] for rates in per_seed), Fraction()) / len(per_seed) for task in common}


def differences(ours: Sequence[Rates], theirs: Sequence[Rates]) -> list[Fraction]:
    """Ours minus theirs for each problem, as the mean over the seeds, which come in the same order in both."""
    paired = [
        {task: mine[task] - its[task] for task in mine if task in its} for mine, its in zip(ours, theirs, strict=True)
    ]
    return list(over_seeds(paired).values())


def mean_difference(ours: Sequence[Rates], theirs: Sequence[Rates]) -> float | None:
    """Ours minus theirs, as the mean over problems and seeds; None if no problem is in all of them."""
    by_problem = differences(ours, theirs)
    return float(fmean(by_problem)) if by_problem else None


def interval(values: Sequence[Fraction], num_comparisons: int = 1) -> list[float]:
    """A two-sided interval of the mean over problems, so wide that `num_comparisons` hold together at 95% (Bonferroni)."""
    return list(_interval(tuple(values), num_comparisons))


@lru_cache(maxsize=10_000)  # arms have rounds in common, and a live page asks again and again
def _interval(values: tuple[Fraction, ...], num_comparisons: int) -> tuple[float, float]:
    gain = paired_gain(values, 1 - (1 - CONFIDENCE) / 2 / num_comparisons)
    return gain.lower, gain.upper


def lines_of(arm: str, runs: HeadsBySeed, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A line per round of an arm (0: the base), over the seeds that have come so far.

    `change`, `change_interval`: over the base. `change_by_seed`: in the order of `seeds`, None where a seed has not come so
    far. `num_kept`: the seeds in which this round was kept; `num_moved`: those whose head is no longer the base.
    """
    lines = []
    for number in range(max((len(heads) for heads in runs.values()), default=0)):
        measured = [seed for seed in seeds if len(runs.get(seed, ())) > number]
        now, base = [runs[seed][number] for seed in measured], [runs[seed][0] for seed in measured]
        rates = [float(rate) for rate in over_seeds([head.rates for head in now]).values()]
        if not rates:
            continue
        moved = differences([head.rates for head in now], [head.rates for head in base])
        line: dict[str, Any] = {
            "arm": arm,
            "round": number,
            "num_seeds": len(measured),
            "pass@1": fmean(rates),
            "pass@1_interval": list(mean_interval(rates)),
            "pass@k": {
                name.removeprefix("pass@"): fmean(head.figures[name] for head in now)
                for name in now[0].figures
                if name.startswith("pass@") and name[5:].isdigit()
            },
            "change": float(fmean(moved)) if moved else None,
            "change_interval": interval(moved) if number and moved else None,
            "change_by_seed": [
                mean_difference([runs[seed][number].rates], [runs[seed][0].rates]) if seed in measured else None
                for seed in seeds
            ],
            "num_kept": sum(head.kept for head in now) if number else 0,
            "num_moved": sum(any(head.kept for head in runs[seed][1 : number + 1]) for seed in measured),
        }
        for name in ("distinct_rate", "mean_tokens", "spread"):
            values = [head.figures[name] for head in now if head.figures.get(name) is not None]
            line[name] = fmean(values) if len(values) == len(now) else None
        lines.append(line)
    return lines


def comparisons(
    heads: Mapping[str, HeadsBySeed], pairs: Sequence[tuple[str, str]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Compare each pair after the last round that all seeds of both have. Intervals are corrected for the number of pairs.

    `by_seed`: the change of each seed, in the order of `seeds`. `words`: the comparison as a sentence.
    """
    compared = []
    for ours, theirs in pairs:
        number = min((len(heads.get(arm, {}).get(seed, ())) - 1 for arm in (ours, theirs) for seed in seeds), default=0)
        if number < 1:
            continue
        mine, its = ([heads[arm][seed][number].rates for seed in seeds] for arm in (ours, theirs))
        if not (moved := differences(mine, its)):
            continue
        change, ends = float(fmean(moved)), interval(moved, len(pairs))
        compared.append(
            {
                "ours": ours,
                "theirs": theirs,
                "round": number,
                "change": change,
                "interval": ends,
                "level": CONFIDENCE,
                "num_problems": len(moved),
                "by_seed": [mean_difference([a], [b]) for a, b in zip(mine, its, strict=True)],
                "words": in_words(ours, theirs, number, change, ends),
            }
        )
    return compared


def in_words(ours: str, theirs: str, number: int, change: float, ends: Sequence[float]) -> str:
    """A comparison as a sentence; differences in percentage points."""
    low, high = ends
    if low > 0 or high < 0:
        first, second = (ours, theirs) if low > 0 else (theirs, ours)
        low, high = sorted((abs(low), abs(high)))
        return f"{first} beats {second} at round {number} by {_points(abs(change))}pp, 95% interval {_points(low)} to {_points(high)}"
    return (
        f"{ours} and {theirs} cannot be told apart at round {number}: {_points(change, '+')}pp, "
        f"95% interval {_points(low, '+')} to {_points(high, '+')}"
    )


def correction_in_words(num: int) -> str:
    """How the number of comparisons widened the intervals, and what the intervals are about."""
    if not num:
        return "nothing is compared"
    about = "over problems, seeds averaged: they say nothing of other seeds or another base"
    if num == 1:
        return f"one comparison, no correction; the interval is {about.replace('they say', 'it says')}"
    level = 100 * (1 - (1 - CONFIDENCE) / num)
    return (
        f"Bonferroni: each of the {num} intervals is at {level:.4g}%, so that with 95% confidence all hold together; "
        f"they are {about}"
    )


def _points(rate: float, sign: str = "") -> str:
    return f"{100 * rate:{sign}z.1f}"
