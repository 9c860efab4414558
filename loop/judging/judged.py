"""Whether B is better than A, from two results of the same problems. Pure arithmetic; the statistics are those of the gates.

Everything is paired by problem, and every interval is over problems. The intervals of the gains in pass@1 hold together over all
suites that are compared (Bonferroni); lines by difficulty, by month and by k describe, each at 95% by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, ConfigDict

from loop.judging.results import Problem, Results
from loop.judging.sequential import Said
from policies.statistics import (
    PairedGain,
    mean_interval,
    mean_pass_at_k,
    paired_gain,
    pass_at_k,
    sign_flip_p_value,
    smallest_detectable_gain,
)
from store.records import Json

CONFIDENCE = 0.95
POWER = 0.8
MANY = 1000
KS = (1, 5, 10, 25, 64, 100, 256)

Interval = tuple[float, float]
Verdict = Literal[
    "B is better", "A is better", "the same", "no difference can be told", "no difference of this size", "unclear"
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Side(_Frozen):
    """One of the two: where it comes from, and its mean over problems. `num_samples`: the fewest and the most of a problem."""

    file: str
    harness: str
    model: str | None
    decoding: Json
    num_samples: tuple[int, int]
    mean: float
    mean_interval: Interval


class Part(_Frozen):
    """A part of the problems: both means, and the gain with its interval."""

    name: str
    num_problems: int
    a: float
    b: float
    gain: float
    interval: Interval


class AtK(_Frozen):
    """pass@k of both, and the gain with its interval."""

    k: int
    a: float
    b: float
    gain: float
    interval: Interval


class Crossing(_Frozen):
    """The curves of pass@k cross: who leads at k = 1, and the first k of those computed at which the other one leads."""

    leads_at_1: Literal["A", "B"]
    other_leads_from: int
    told: bool
    """Whether both leads are beyond doubt: the intervals at 1 and at the largest k exclude 0 on either side."""


class Judged(_Frozen):
    """All that is said of one suite.

    `is_pass_rate`: whether every sample is right or wrong, so that the means are pass@1. `detectable_gain`: the difference, in
    either direction, that would have been seen with the chance `power`. `p_value`: two-sided, of "no difference". A sequential
    comparison has neither: `stopped_after` is the share of the problems that it looked at, and its interval holds wherever it stops.
    """

    suite: str
    metric: str
    num_problems: int
    is_pass_rate: bool
    a: Side
    b: Side
    gain: float
    interval: Interval
    confidence: float
    p_value: float | None
    verdict: Verdict
    detectable_gain: float | None
    stopped_after: float | None = None
    power: float = POWER
    num_b_better: int
    num_a_better: int
    num_same: int
    by_difficulty: tuple[Part, ...]
    by_month: tuple[Part, ...]
    at_k: tuple[AtK, ...]
    crossing: Crossing | None
    notes: tuple[str, ...]


def judged(a: Results, b: Results, num_comparisons: int = 1) -> Judged:
    """The comparison of two results on the same problems, one of `num_comparisons` whose intervals hold together."""
    ids = sorted(a.problems)
    assert ids == sorted(b.problems), "both have the same problems"
    pairs = [(a.problems[id], b.problems[id]) for id in ids]
    alpha = (1 - CONFIDENCE) / num_comparisons
    differences = _differences(pairs)
    gain = paired_gain(differences, 1 - alpha / 2)
    backwards = sign_flip_p_value([-difference for difference in differences])
    is_pass_rate = a.graded_0_or_1 and b.graded_0_or_1
    at_k = _at_k(pairs) if is_pass_rate else ()
    return Judged(
        suite=a.suite if a.suite == b.suite else f"{a.suite} and {b.suite}",
        metric=a.metric if a.metric == b.metric else f"{a.metric} and {b.metric}",
        num_problems=len(ids),
        is_pass_rate=is_pass_rate,
        a=_side(a, ids),
        b=_side(b, ids),
        gain=gain.gain,
        interval=(gain.lower, gain.upper),
        confidence=1 - alpha,
        p_value=min(1.0, 2 * min(gain.p_value, backwards)),
        verdict=_verdict(gain),
        detectable_gain=smallest_detectable_gain(differences, alpha / 2, POWER),
        num_b_better=gain.num_improved,
        num_a_better=gain.num_worsened,
        num_same=gain.num_equal,
        by_difficulty=_parts(pairs, lambda problem: problem.difficulty),
        by_month=_parts(pairs, lambda problem: problem.date and problem.date[:7]),
        at_k=at_k,
        crossing=_crossing(at_k),
        notes=_notes(a, b),
    )


def judged_early(a: Results, b: Results, num_comparisons: int, said: Said, share: float) -> Judged:
    """The same where the comparison stopped after a share of the problems."""
    whole = judged(a, b, num_comparisons)
    changed = {"interval": (said.lower, said.upper), "p_value": None, "detectable_gain": None, "stopped_after": share}
    return whole.model_copy(update=changed | {"verdict": said.finding})


def _side(results: Results, ids: Sequence[str]) -> Side:
    rates = [float(results.problems[id].rate) for id in ids]
    return Side(
        file=str(results.file),
        harness=results.harness,
        model=results.model,
        decoding=results.decoding,
        num_samples=results.num_samples,
        mean=fmean(rates),
        mean_interval=mean_interval(rates, CONFIDENCE),
    )


def _differences(pairs: Sequence[tuple[Problem, Problem]]) -> list[Fraction]:
    """B's rate less A's of each problem. Of very many problems that are graded in shades, rounded: the exact test of fine
    ones would take minutes, and over so many problems rounding moves the mean by a few hundredths of a percentage point.
    """
    differences = [theirs.rate - ours.rate for ours, theirs in pairs]
    if len(differences) > MANY and any(difference.denominator > MANY for difference in differences):
        steps = max(10, 100 * MANY // len(differences))
        return [Fraction(round(difference * steps), steps) for difference in differences]
    return differences


def _verdict(gain: PairedGain) -> Verdict:
    if gain.lower > 0:
        return "B is better"
    if gain.upper < 0:
        return "A is better"
    return "no difference can be told" if gain.num_improved or gain.num_worsened else "the same"


def _parts(pairs: Sequence[tuple[Problem, Problem]], name_of: Callable[[Problem], str | None]) -> tuple[Part, ...]:
    """A part for each name that either side gives its problems; none where no problem has a name, or all have the same."""
    named: dict[str, list[tuple[Problem, Problem]]] = defaultdict(list)
    for ours, theirs in pairs:
        named[name_of(ours) or name_of(theirs) or ""].append((ours, theirs))
    if len(named) < 2:
        return ()
    return tuple(_part(name or "not said", named[name]) for name in sorted(named))


def _part(name: str, pairs: Sequence[tuple[Problem, Problem]]) -> Part:
    gain = paired_gain(_differences(pairs), (1 + CONFIDENCE) / 2)
    means = [fmean(float(problem.rate) for problem in side) for side in zip(*pairs, strict=True)]
    return Part(
        name=name, num_problems=len(pairs), a=means[0], b=means[1], gain=gain.gain, interval=(gain.lower, gain.upper)
    )


def _at_k(pairs: Sequence[tuple[Problem, Problem]]) -> tuple[AtK, ...]:
    """pass@k for several k, as far as the samples of every problem go."""
    fewest = min(len(problem.outcomes) for pair in pairs for problem in pair)
    sides = [[tuple(map(int, problem.outcomes)) for problem in side] for side in zip(*pairs, strict=True)]
    return tuple(_at(k, *sides) for k in sorted({k for k in (*KS, fewest) if k <= fewest}))


def _at(k: int, a: Sequence[tuple[int, ...]], b: Sequence[tuple[int, ...]]) -> AtK:
    differences = [
        pass_at_k(len(theirs), sum(theirs), k) - pass_at_k(len(ours), sum(ours), k)
        for ours, theirs in zip(a, b, strict=True)
    ]
    gain = paired_gain(differences, (1 + CONFIDENCE) / 2)
    return AtK(k=k, a=mean_pass_at_k(a, k), b=mean_pass_at_k(b, k), gain=gain.gain, interval=(gain.lower, gain.upper))


def _crossing(at_k: Sequence[AtK]) -> Crossing | None:
    first = at_k[0] if at_k else None
    if first is None or abs(first.gain) < 1e-12:
        return None
    others = [at for at in at_k if at.gain * first.gain < 0]
    if not others:
        return None
    last = at_k[-1]
    told = last.gain * first.gain < 0 and all(at.interval[0] > 0 or at.interval[1] < 0 for at in (first, last))
    return Crossing(leads_at_1="B" if first.gain > 0 else "A", other_leads_from=others[0].k, told=told)


def _notes(a: Results, b: Results) -> tuple[str, ...]:
    """Both sides' notes; a note of one side says whose it is."""
    both = [note for note in a.notes if note in b.notes]
    shared = [note for note in a.notes if note.startswith(("A and B", "compared by"))]
    alone = [
        f"{name}: {note}" for name, side in (("A", a), ("B", b)) for note in side.notes if note not in (*both, *shared)
    ]
    return (*both, *(note for note in shared if note not in both), *alone)
