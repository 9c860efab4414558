"""The arithmetic under the gates: pass@k, intervals, and a paired comparison of two checkpoints.

Problems are the unit: samples of one problem are not independent of each other, so every spread here is a spread
between problems (Miller, arXiv 2411.00640). All of it is deterministic: the same numbers give the same answer, bit by
bit, in any order of the problems. Looking several times at growing evidence is not corrected for here (see
`policies.sequential`), nor is looking in every round (see `policies.budget`).
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist, fmean, stdev

NUM_DRAWS = 20_000
"""Random subsets of problems behind the bounds of a paired comparison; at .05 the standard error of a level is .0015."""
FINEST = 1000
"""Differences without a common denominator up to this one are rounded to its multiples in the exact test."""

Number = Fraction | float

_BARELY = 1e-9  # a bound above 0 of which no more is known


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that one of k samples, drawn without return from num_samples, is correct: 1 - C(n-c, k) / C(n, k).

    Unbiased (Chen et al., arXiv 2107.03374). ValueError for k > num_samples: it cannot be estimated.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} correct of {num_samples} samples is impossible")
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples and k >= 1; there are {num_samples} samples")
    total = math.comb(num_samples, k)
    return (total - math.comb(num_samples - num_correct, k)) / total


def mean_pass_at_k(outcomes: Sequence[Sequence[int]], k: int) -> float:
    """The mean over problems of pass@k; outcomes holds each problem's 0s and 1s."""
    if not outcomes:
        raise ValueError("pass@k of no problems")
    return fmean(pass_at_k(len(samples), sum(samples), k) for samples in outcomes)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval for the mean of per-problem values in [0, 1], such as success rates or pass@k.

    Wilson's score interval (1927) on the effective sample size n * p(1-p) / variance (Kish's design effect; Dean and
    Pagano 2015), which counts problems and not samples. p and variance there include one imagined problem that fails
    and one that passes, so that the interval has a width even when all problems agree. With one sample a problem it
    is Wilson's own interval.
    """
    if not values:
        raise ValueError("an interval for the mean of no values")
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError("values must lie between 0 and 1")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    mean = fmean(values)
    padded = [*values, 0.0, 1.0]
    p = fmean(padded)
    size = len(values) * p * (1 - p) / fmean((value - p) ** 2 for value in padded)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (mean + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(mean * (1 - mean) / size + z * z / (4 * size * size))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


@dataclass(frozen=True, slots=True)
class PairedGain:
    """Candidate against head on the same problems. lower and upper are one-sided bounds, each at `confidence`."""

    gain: float
    lower: float
    upper: float
    confidence: float
    p_value: float
    num_improved: int
    num_worsened: int
    num_equal: int


def _subset_draws(num_scores: int) -> bytes:
    """The random subsets of `num_scores` scores: NUM_DRAWS / 2 rows of whole bytes, a bit for each score, the low bits first."""
    return hashlib.shake_128(b"subsets of %d" % num_scores).digest(-(-num_scores // 8) * (NUM_DRAWS // 2))


def paired_gain(differences: Sequence[Number], confidence: float = 0.95) -> PairedGain:
    """The mean of per-problem differences of success rates, its bounds, and the one-sided p-value of "no gain".

    The sign-flip test of a gain delta flips the signs of a subset S of the d_i - delta; the flipped sum reaches the
    observed one exactly where mean(d_S) <= delta. So p(delta) is the share of subsets, the empty one among them, with
    a mean of at most delta, and the bounds that invert the test are quantiles of the subset means (Hartigan 1969,
    "Using subsample values as typical values"). `p_value` is p(0), exact (`sign_flip_p_value`). The bounds come from
    all subsets where there are no more than NUM_DRAWS, else from NUM_DRAWS random ones, which are too few for a
    1 - confidence below 1e-3 or so: decide by the p-value there. Where a random bound and the exact test disagree
    about 0, the bound gives way: lower > 0 exactly where p_value <= 1 - confidence, and likewise upper < 0.

    The two bounds together are an interval at 2 * confidence - 1: for a two-sided 95% ask for .975.

    Where fewer problems differ than the test needs to reject anything (4 or less at .95), its interval is too narrow,
    of no width if none differs. Then two imagined problems, one won and one lost outright, join each subset at random
    (the idea of Agresti and Coull's interval), and the wider of the two bounds counts. Where enough problems differ,
    and all by the same amount, the test sees no spread and both bounds are that amount.
    """
    if not differences:
        raise ValueError("a paired comparison of no problems")
    if not all(-1 <= difference <= 1 for difference in differences):
        raise ValueError("differences must lie between -1 and 1")
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} is not between 0.5 and 1")
    alpha = 1 - confidence
    exact = [Fraction(difference) for difference in differences]
    scale = math.lcm(*(value.denominator for value in exact))
    scores = sorted(_scaled(value, scale) for value in exact)  # whole numbers: sums are exact, ties stay ties
    gain = sum(scores) / (len(scores) * scale)
    num_equal = scores.count(0)

    lower, upper = _bounds(sorted(total / (count * scale) for total, count in _subset_sums(scores)), alpha)
    if len(scores) - num_equal < _fewest_discordant(alpha):
        wide = sorted(
            (total + won_and_lost * scale) / ((count + joined) * scale)
            for total, count in _subset_sums(scores)
            for won_and_lost, joined in ((0, 0), (1, 1), (-1, 1), (0, 2))
        )
        lower, upper = min(lower, _bounds(wide, alpha)[0]), max(upper, _bounds(wide, alpha)[1])
    p_value = sign_flip_p_value(differences)
    lower = _agreeing(lower, p_value, alpha)
    upper = -_agreeing(-upper, sign_flip_p_value([-difference for difference in differences]), alpha)
    return PairedGain(
        gain=gain,
        lower=min(lower, gain),
        upper=max(upper, gain),
        confidence=confidence,
        p_value=p_value,
        num_improved=sum(score > 0 for score in scores),
        num_worsened=sum(score < 0 for score in scores),
        num_equal=num_equal,
    )


def sign_flip_p_value(differences: Sequence[Number], delta: Number = 0) -> float:
    """One-sided p-value of "the gain is at most delta": the share of sign flips that reach the sum observed. Exact.

    Each d_i - delta keeps or changes its sign with a chance of a half; if candidate and head are alike, so does it in
    truth. The sum is as large as the observed one exactly where those that change it have a sum of at most 0; equally
    often (the others' complement) the sizes picked sum to at most that of the negative ones. All 2^n subsets are
    counted by their sums: the coefficients of the product of 1 + x^size, packed side by side into one whole number.

    Floats stand for the fraction that they are meant to be. Where there is no common denominator up to FINEST, all
    are rounded to its multiples first; that treats both signs alike, so the test stays a sign-flip test.
    """
    if not differences:
        raise ValueError("a sign-flip test of no problems")
    limit = _fraction(delta)
    shifted = [_fraction(difference) - limit for difference in differences]
    scale = min(FINEST, math.lcm(*(value.denominator for value in shifted)))
    scores = [_scaled(value, scale) for value in shifted]
    return _share_of_subsets([abs(score) for score in scores], -sum(score for score in scores if score < 0))


def _fraction(number: Number) -> Fraction:
    """The number itself; for a float that prints like a simple fraction, that fraction."""
    exact = Fraction(number)
    if isinstance(number, float):
        simple = exact.limit_denominator(FINEST)
        if abs(simple - exact) < Fraction(1, 10**12):
            return simple
    return exact


def _scaled(value: Fraction, scale: int) -> int:
    """The value times the scale, rounded where it is not whole."""
    times, rest = divmod(scale, value.denominator)
    return _rounded(value * scale) if rest else value.numerator * times


def _rounded(value: Fraction) -> int:
    """The nearest whole number, halves away from 0: the negated value gives the negated number."""
    nearest = math.floor(abs(value) + Fraction(1, 2))
    return nearest if value >= 0 else -nearest


def _share_of_subsets(sizes: list[int], most: int) -> float:
    """The share of subsets of sizes >= 0 whose sum is at most `most`; above it by less than 1e-18 where it is not exact.

    Counts beyond 150 bits lose their last 64, and the answer is raised by all that may have been lost.
    """
    changing = sorted(size for size in sizes if size)
    divisor = math.gcd(*changing) or 1
    most //= divisor
    width = min(len(changing) + 2, 160)  # bits of a count
    slots = (1 << width * (most + 1)) - 1
    kept = slots // ((1 << width) - 1) * ((1 << max(0, width - 64)) - 1)
    counts, bits, lost = (
        1,
        0,
        Fraction(),
    )  # bits [width * s, width * (s + 1)) of counts: how many subsets have the sum s
    for size in changing:
        if size <= most * divisor:
            counts += (counts << width * (size // divisor)) & slots
        bits += 1  # there are at most 2^bits subsets
        if bits > 150:
            counts, bits = (counts >> 64) & kept, bits - 64
            lost += Fraction(most + 1, 1 << bits)
    total = counts % ((1 << width) - 1)  # casting out (2^width - 1)s leaves the sum of all counts
    return float(min(Fraction(1), Fraction(total, 1 << bits) + lost))


def smallest_detectable_gain(differences: Sequence[Number], alpha: float = 0.05, power: float = 0.8) -> float:
    """The gain that a comparison with this spread finds with probability `power` at one-sided `alpha`.

    (z_{1-alpha} + z_power) * sd / sqrt(n), at least what the sign-flip test needs to reject at all: the fewest
    problems m with 2^-m <= alpha, each better by the mean size of the differences seen (by 1 where none was), and
    at most 1.
    """
    if not differences:
        raise ValueError("the power of a comparison of no problems")
    values = [float(difference) for difference in differences]
    num_problems = len(values)
    changed = [abs(value) for value in values if value]
    least = _fewest_discordant(alpha) * (fmean(changed) if changed else 1.0) / num_problems
    if num_problems < _fewest_discordant(alpha):
        return 1.0
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
    return min(1.0, max(least, z * stdev(values) / math.sqrt(num_problems)))


def _fewest_discordant(alpha: float) -> int:
    """The fewest problems that must differ, all in one direction, for the sign-flip test to reject at alpha."""
    fewest = 1
    while 2.0**-fewest > alpha:
        fewest += 1
    return fewest


def _bounds(means: Sequence[float], alpha: float) -> tuple[float, float]:
    """The ends of all delta that the sign-flip test does not reject, from the sorted means of non-empty subsets."""
    rank = math.floor(alpha * (len(means) + 1) + 1e-9)
    return (means[rank - 1], means[-rank]) if rank else (-1.0, 1.0)


def _agreeing(lower: float, p_value: float, alpha: float) -> float:
    """The lower bound, on the side of 0 where the exact test sees it."""
    return max(lower, _BARELY) if p_value <= alpha else min(lower, 0.0)


def _subset_sums(scores: list[int]) -> Iterator[tuple[int, int]]:
    """(sum, count) of non-empty subsets of the sorted scores: all of them, or NUM_DRAWS random ones.

    Every draw is used twice, from the low end and from the high end of the scores. So negated scores give exactly
    the negated sums, and raised scores never lower sums. A byte of the draw picks from 8 scores at once, through a
    table of 256 packed sums. The draws come from SHAKE-128, which gives the same bytes in every version of Python.
    """
    num_scores = len(scores)
    if 2**num_scores <= NUM_DRAWS:
        sums = [(0, 0)]
        for score in scores:
            sums += [(total + score, count + 1) for total, count in sums]
        yield from sums[1:]
        return
    width = -(-num_scores // 8)
    draws = _subset_draws(num_scores)
    pack = 1 << num_scores.bit_length()
    for ordered in (scores, scores[::-1]):
        tables = [_byte_sums(ordered[start : start + 8], pack) for start in range(0, num_scores, 8)]
        for start in range(0, len(draws), width):
            total, count = divmod(sum(map(operator.getitem, tables, draws[start : start + width])), pack)
            if count:
                yield total, count


def _byte_sums(scores: list[int], pack: int) -> list[int]:
    """For each byte: the sum of the scores that its bits pick, times pack, plus how many they are."""
    sums = [0]
    for score in scores:
        sums += [packed + score * pack + 1 for packed in sums]
    return sums * (256 // len(sums))  # bits past the last score pick nothing


def students_t(confidence: float, freedom: int) -> float:
    """The two-sided quantile of Student's t. Exact for 1 and 2 degrees of freedom; else Cornish and Fisher's expansion
    (Abramowitz and Stegun 26.7.5), within 0.2% at 95%."""
    p = (1 + confidence) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z: float = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
