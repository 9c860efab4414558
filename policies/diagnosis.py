"""Locks and forks: what a fine-tune did to the next-token distribution, position by position, on texts by the base.

A position is a *lock* where the base is nearly certain, and a *fork* where it has a real choice; its entropy says which
(Zhang et al., arXiv 2604.01193, whose account is that self-distillation removes the tail at locks and keeps the spread at
forks). Base, head and candidate are compared at the same positions, given the same tokens before them. Plain arithmetic
on what an engine measured; all logarithms are natural.

Tail: the probability that a model leaves outside the base's *kept* tokens at that position, those that the sampling
settings' temperature, top-k and top-p keep of the base's distribution (at most as many as are recorded). The same set for
all three, so that a smaller number means less mass on what the base itself would have cut.

KL divergences are taken over the recorded tokens, with all others as one outcome. Merging outcomes never raises a KL
divergence (data processing inequality), so each is a lower bound on that of the whole distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from statistics import fmean
from typing import Any, Literal

from policies.statistics import students_t

Who = Literal["base", "head", "candidate"]
WHO: tuple[Who, ...] = ("base", "head", "candidate")
Numbers = Sequence[float]


@dataclass(frozen=True, slots=True)
class Positions:
    """One model along one sequence, an entry per position.

    `logprobs` are those of the base's likeliest tokens there, likeliest first for the base; `rest` is the log of the
    mass of all others. Both are rounded, so they are scaled to sum to 1 before use. Entropy and top probability come
    from the whole distribution.
    """

    entropy: Numbers
    top_token_id: Sequence[int]
    top_probability: Numbers
    logprobs: Sequence[Numbers]
    rest: Numbers


@dataclass(frozen=True, slots=True)
class Compared:
    """The three models along one sequence. `num_kept`: how many of the base's likeliest tokens its truncation keeps."""

    base: Positions
    head: Positions
    candidate: Positions
    num_kept: Sequence[int]


@dataclass(frozen=True, slots=True)
class Change:
    """Candidate minus head, the mean over positions; `interval` is a 95% one, None with fewer than two sequences.

    Positions of one sequence are not independent, so the spread is one between sequences: the linearised ratio
    estimator's (Cochran, Sampling Techniques, 6.3), with Student's t.
    """

    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Level:
    """Means over some positions for one model. Entropy in nats."""

    entropy: float
    top_probability: float
    tail_mass: float


@dataclass(frozen=True, slots=True)
class PositionClass:
    """Positions of one class. `kl`: mean KL(candidate || other), a lower bound. `top_changed`: share where the
    candidate's likeliest token is another than the head's."""

    num_positions: int
    base: Level
    head: Level
    candidate: Level
    change: dict[str, Change]
    kl_to_head: float
    kl_to_base: float
    top_changed: float


@dataclass(frozen=True, slots=True)
class Summary:
    """All positions, and those that are locks and forks; None for a class without positions."""

    num_sequences: int
    lock_below_nats: float
    fork_above_nats: float
    everywhere: PositionClass
    locks: PositionClass | None
    forks: PositionClass | None


@dataclass(frozen=True, slots=True)
class _Point:
    """One position: what is averaged."""

    sequence: int
    levels: Mapping[Who, Level]
    kl_to_head: float
    kl_to_base: float
    top_changed: bool


def summarise(sequences: Sequence[Compared], lock_below_nats: float, fork_above_nats: float) -> Summary:
    """Compare the three models on all sequences. ValueError if there is no position, or lists differ in length."""
    points = [point for number, sequence in enumerate(sequences) for point in _points(number, sequence)]
    if not points:
        raise ValueError("a comparison of no positions")
    return Summary(
        num_sequences=len(sequences),
        lock_below_nats=lock_below_nats,
        fork_above_nats=fork_above_nats,
        everywhere=_part(points),
        locks=_part_or_none(point for point in points if point.levels["base"].entropy < lock_below_nats),
        forks=_part_or_none(point for point in points if point.levels["base"].entropy > fork_above_nats),
    )


def signals(summary: Summary) -> dict[str, dict[str, float]]:
    """The figures by flat names, for evidence: those of a class without positions are left out."""
    figures: dict[str, dict[str, float]] = {}
    for who in WHO:
        mine = figures[who] = {"entropy": getattr(summary.everywhere, who).entropy}
        if summary.locks:
            level: Level = getattr(summary.locks, who)
            mine |= {"lock_tail_mass": level.tail_mass, "lock_top_probability": level.top_probability}
        if summary.forks:
            mine["fork_entropy"] = getattr(summary.forks, who).entropy
    figures["candidate"] |= {"kl_to_head": summary.everywhere.kl_to_head, "kl_to_base": summary.everywhere.kl_to_base}
    if summary.locks:
        figures["candidate"]["lock_top_changed"] = summary.locks.top_changed
    return figures


def in_words(summary: Summary) -> str:
    """One sentence for people."""
    parts = []
    if summary.locks:
        before, after = summary.locks.head.tail_mass, summary.locks.candidate.tail_mass
        parts.append(f"at locks the tail {_moved(before, after, 'shrank', 'grew')} ({before:.4f} -> {after:.4f})")
    if summary.forks:
        before, after = summary.forks.head.entropy, summary.forks.candidate.entropy
        kept = f"{after / before:.0%} of the entropy" if before else "the entropy"
        parts.append(f"at forks {kept} was kept ({before:.2f} -> {after:.2f} nats)")
    if not parts:
        return "no position is a lock or a fork"
    return "; ".join(parts)


def kl_divergence(p: Numbers, q: Numbers) -> float:
    """Sum of p log(p/q) over outcomes, in nats; at least 0. p and q sum to 1; infinite where q is 0 and p is not."""
    total = 0.0
    for ours, theirs in zip(p, q, strict=True):
        if ours > 0.0:
            total += ours * math.log(ours / theirs) if theirs > 0.0 else math.inf
    return max(0.0, total)  # rounding can leave a last bit below 0


def outcomes(logprobs: Numbers, rest: float) -> list[float]:
    """The recorded tokens' probabilities and, last, that of all others, scaled to sum to 1."""
    masses = [math.exp(value) for value in (*logprobs, rest)]
    total = math.fsum(masses)
    return [mass / total for mass in masses]


def _points(number: int, compared: Compared) -> Iterable[_Point]:
    for index, num_kept in enumerate(compared.num_kept):
        masses: dict[Who, list[float]] = {}
        levels: dict[Who, Level] = {}
        for who in WHO:
            model: Positions = getattr(compared, who)
            num_positions = len(compared.num_kept)
            if not len(model.entropy) == num_positions == len(model.logprobs):
                raise ValueError(f"sequence {number}: {who} has {len(model.entropy)} positions, not {num_positions}")
            masses[who] = outcomes(model.logprobs[index], model.rest[index])
            tail = math.fsum(masses[who][num_kept:])
            levels[who] = Level(model.entropy[index], model.top_probability[index], tail)
        yield _Point(
            number,
            levels,
            kl_divergence(masses["candidate"], masses["head"]),
            kl_divergence(masses["candidate"], masses["base"]),
            compared.candidate.top_token_id[index] != compared.head.top_token_id[index],
        )


def _part_or_none(points: Iterable[_Point]) -> PositionClass | None:
    given = list(points)
    return _part(given) if given else None


def _part(points: Sequence[_Point]) -> PositionClass:
    def level(who: Who) -> Level:
        mine = [point.levels[who] for point in points]
        return Level(
            fmean(each.entropy for each in mine),
            fmean(each.top_probability for each in mine),
            fmean(each.tail_mass for each in mine),
        )

    def change(of: Callable[[Level], float]) -> Change:
        by_sequence: dict[int, list[float]] = {}
        for point in points:
            difference = of(point.levels["candidate"]) - of(point.levels["head"])
            by_sequence.setdefault(point.sequence, []).append(difference)
        return mean_change(list(by_sequence.values()))

    return PositionClass(
        num_positions=len(points),
        base=level("base"),
        head=level("head"),
        candidate=level("candidate"),
        change={name: change(attrgetter(name)) for name in ("entropy", "top_probability", "tail_mass")},
        kl_to_head=fmean(point.kl_to_head for point in points),
        kl_to_base=fmean(point.kl_to_base for point in points),
        top_changed=fmean(point.top_changed for point in points),
    )


def mean_change(sequences: Sequence[Numbers], confidence: float = 0.95) -> Change:
    """The mean of all values, and an interval that treats each sequence as one draw."""
    num_values, num_sequences = sum(map(len, sequences)), len(sequences)
    mean = math.fsum(value for sequence in sequences for value in sequence) / num_values
    if num_sequences < 2:
        return Change(mean, None)
    squares = math.fsum((math.fsum(sequence) - len(sequence) * mean) ** 2 for sequence in sequences)
    error = math.sqrt(num_sequences / (num_sequences - 1) * squares) / num_values
    half = students_t(confidence, num_sequences - 1) * error
    return Change(mean, (mean - half, mean + half))


def _moved(before: float, after: float, down: str, up: str) -> str:
    if not before or abs(after / before - 1) < 0.005:
        return "did not move"
    return f"{down if after < before else up} by {abs(after / before - 1):.0%}"


def summary_of(table: Mapping[str, Any]) -> Summary:
    """A summary from the JSON that `dataclasses.asdict` of one gives."""

    def change(values: Mapping[str, Any]) -> Change:
        return Change(values["mean"], None if values["interval"] is None else tuple(values["interval"]))

    def part(values: Mapping[str, Any] | None) -> PositionClass | None:
        if values is None:
            return None
        levels: dict[str, Any] = {who: Level(**values[who]) for who in WHO}
        return PositionClass(
            **{**values, **levels, "change": {name: change(each) for name, each in values["change"].items()}}
        )

    parts: dict[str, Any] = {name: part(table[name]) for name in ("everywhere", "locks", "forks")}
    return Summary(**{field.name: table[field.name] for field in fields(Summary)} | parts)
