"""Whole runs without a model: what would a policy do in a world whose truth is known?

Many runs are computed at once. The looks are those of `policies`: its levels, its plans, its gamblers' bets, and its exact
sign-flip test wherever a normal approximation leaves a doubt (tests/loop/experiments/test_simulating.py compares them).
A head's samples serve all its candidates, as in a run.
"""

from __future__ import annotations

import functools
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol, TypedDict

import numpy

from loop.config.settings import Decide
from loop.errors import LoopError
from loop.experiments.worlds import Bools, Floats, Ints, Population, World
from policies import line
from policies.decision import Action
from policies.evidence import Line
from policies.gates import Improvement, Look
from policies.gates.improvement import FINAL, SCREEN_FINAL
from policies.line import Shown
from policies.mistakes import shown as written
from policies.policy import Policy
from policies.sequential import EXPECTED_SPREAD, MOST_AT_RISK, NUM_IMAGINED
from policies.statistics import sign_flip_p_value

MOST_CELLS = 2_000_000  # runs x problems that are in memory at once, in each thread
SELECT_SHARE = 0.2  # of the problems, where a world does not say how many only screen


# Looks at many runs at once


def sign_flips_reach(scores: Floats, levels: Floats, step: float) -> Bools:
    """For each run: is the p-value of "no gain" at most its level? By the normal approximation where that leaves no doubt.

    `scores`: (runs, problems) differences, in units of which one sample is `step`.
    """
    total, square = scores.sum(axis=1), (scores**2).sum(axis=1)
    z = (total - step) / numpy.sqrt(numpy.maximum(square, step * step))  # half a step of the flipped sum for continuity
    near = numpy.array([0.5 * math.erfc(value / math.sqrt(2)) for value in z])
    doubt = numpy.where(levels >= 0.1, 1.15, numpy.where(levels >= 0.01, 1.6, 4.0))
    reach: Bools = near <= levels / doubt
    few = (scores != 0).sum(axis=1) < 20
    for run in numpy.flatnonzero(few | ((near > levels / doubt) & (near < levels * doubt))):
        changed = [Fraction(score).limit_denominator(10**6) for score in scores[run].tolist() if score]
        reach[run] = (sign_flip_p_value(changed) if changed else 1.0) <= levels[run]
    return reach


@numpy.errstate(over="ignore")  # after tens of thousands of problems: infinite wealth has won as well
def gamblers_reach(differences: Floats, levels: Floats, gate: Improvement) -> tuple[Ints, Ints]:
    """After how many problems each gambler of policies.sequential has won; one more than all problems if never."""
    before = numpy.zeros_like(differences)
    numpy.cumsum(differences[:, :-1] ** 2, axis=1, out=before[:, 1:])
    mean_square = (before + NUM_IMAGINED * EXPECTED_SPREAD) / (numpy.arange(differences.shape[1]) + NUM_IMAGINED)
    gap = gate.target - gate.min_gain
    bets = gap / (mean_square + gap * gap)
    gain = numpy.cumprod(
        1 + numpy.minimum(bets, MOST_AT_RISK / (1 + gate.min_gain)) * (differences - gate.min_gain), axis=1
    )
    none = numpy.cumprod(
        1 + numpy.minimum(bets, MOST_AT_RISK / (1 - gate.target)) * (gate.target - differences), axis=1
    )
    return _first(gain * levels[:, None] >= 1), _first(none * gate.miss >= 1)


def _first(reached: Bools) -> Ints:
    first: Ints = numpy.where(reached.any(axis=1), reached.argmax(axis=1) + 1, reached.shape[1] + 1)
    return first


@dataclass(frozen=True)
class Looks:
    """How a policy's improvement gate looks at the problems of a world."""

    gate: Improvement
    parts: int
    num_problems: int
    num_samples: int
    num_screening: int = 0  # of the problems, which only open the others

    @property
    def num_confirming(self) -> int:
        """How many problems have the last word."""
        return self.num_problems - self.num_screening

    def _ends(self, num_problems: int) -> Ints:
        """How many of the problems are in after each part."""
        ends: Ints = -(-numpy.arange(1, self.parts + 1) * num_problems // self.parts)
        return ends

    def taken(self, differences: Floats, levels: Floats) -> tuple[Bools, Bools, Ints]:
        """For each run: is a gain shown, was the split with the last word opened, and how many problems were measured."""
        at = self.num_screening
        if not at:
            shown, used = self._one(differences, levels, FINAL)
            return shown, numpy.ones_like(shown), used
        opened, used = self._one(differences[:, :at], numpy.full(len(levels), self.gate.screen), SCREEN_FINAL)
        shown = numpy.zeros_like(opened)
        if opened.any():
            shown[opened], more = self._one(differences[opened, at:], levels[opened], FINAL)
            used[opened] += more
        return shown, opened, used

    def _one(self, differences: Floats, levels: Floats, final: float) -> tuple[Bools, Ints]:
        num_problems, step = differences.shape[1], 1 / self.num_samples
        above = differences - self.gate.min_gain
        if self.parts == 1:
            shown: Bools = sign_flips_reach(above, levels, step) & (differences.sum(axis=1) > 0)
            return shown, numpy.full(len(levels), num_problems)
        gain, none = gamblers_reach(differences, levels * (1 - final), self.gate)
        shown, used = gain < none, numpy.minimum(numpy.minimum(gain, none), num_problems)
        still_open = numpy.flatnonzero(numpy.minimum(gain, none) > num_problems)
        if still_open.size:
            shown[still_open] = sign_flips_reach(above[still_open], levels[still_open] * final, step)
        ends = self._ends(num_problems)
        return shown, ends[numpy.searchsorted(ends, used)]


# Rules


@dataclass(frozen=True)
class Memory:
    """What the decisions of each run have left behind: looks in vain, the newest line and action, what made the head.

    `tip`: tip less head (runs, problems), of which `tip_used` problems were measured.
    """

    fruitless: Ints
    before: tuple[tuple[Line, Action] | None, ...]
    shown: tuple[Shown | None, ...]
    tip: Floats
    tip_used: Ints

    @classmethod
    def empty(cls, num_runs: int, num_problems: int) -> Memory:
        none = numpy.zeros(num_runs, dtype=numpy.int64)
        return cls(none, (None,) * num_runs, (None,) * num_runs, numpy.zeros((num_runs, num_problems)), none)


@dataclass(frozen=True)
class Outcome:
    """For each run: the candidate becomes the head; it is carried; how often problems were measured; what is remembered.

    `tip`: the candidate is refused, and what it was trained from becomes the head.
    """

    keep: Bools
    carry: Bools
    num_measured: Ints
    memory: Memory
    tip: Bools


@dataclass(frozen=True)
class Fresh:
    """Less the head, with fresh samples of both, as many a problem as is asked for: the candidate, and the tip."""

    candidate: Callable[[int], Floats]
    tip: Callable[[int], Floats]


class Rule(Protocol):
    """From what is remembered and candidate less head (runs, problems). `is_last`: no round follows."""

    def __call__(self, memory: Memory, differences: Floats, fresh: Fresh, *, is_last: bool) -> Outcome: ...


def keep_if_higher(memory: Memory, differences: Floats, *_: object, **__: object) -> Outcome:
    """Keep whatever scored higher than the head."""
    return _without_looks(differences.sum(axis=1) > 0, differences, memory)


def ungated(memory: Memory, differences: Floats, *_: object, **__: object) -> Outcome:
    """Continue with every candidate."""
    return _without_looks(numpy.ones(len(differences), dtype=bool), differences, memory)


def _without_looks(keep: Bools, differences: Floats, memory: Memory) -> Outcome:
    none = numpy.zeros_like(keep)
    return Outcome(keep, none, numpy.full(len(keep), differences.shape[1]), memory, none)


def gated(looks: Looks, not_inferior_by: float | None = None) -> Rule:
    """Keep what a look shows. With a margin, also keep what is unclear but shown to lose no more than that."""
    gate = looks.gate

    def rule(memory: Memory, differences: Floats, *_: object, **__: object) -> Outcome:
        levels: Floats = gate.alpha / ((memory.fruitless + 1.0) * (memory.fruitless + 2.0))
        if gate.budget == "round":
            levels = numpy.full(len(differences), gate.alpha)
        keep, opened, used = looks.taken(differences, levels)
        if not_inferior_by is not None:
            step = 1 / looks.num_samples
            deciding = differences[:, looks.num_screening :]
            hopeless = sign_flips_reach(gate.target - deciding, numpy.full(len(keep), gate.miss), step)
            keep = keep | (opened & ~hopeless & sign_flips_reach(deciding + not_inferior_by, levels, step))
        after = replace(memory, fruitless=memory.fruitless + (opened & ~keep))
        return Outcome(keep, numpy.zeros_like(keep), used, after, numpy.zeros_like(keep))

    return rule


@dataclass(frozen=True)
class Carrying:
    """Keep what a look shows, carry what is not worse, and look where the policy plans to."""

    looks: Looks
    policy: Policy
    last_samples: int

    def __call__(self, memory: Memory, differences: Floats, fresh: Fresh, *, is_last: bool) -> Outcome:
        """A look is at fresh samples where it is a line's last one, or one at the tip."""
        looks, num_runs = self.looks, len(differences)
        lines = [self._line(before, shown, is_last) for before, shown in zip(memory.before, memory.shown, strict=True)]
        levels = numpy.array([looks.gate.level(0, Look("", line=each)) for each in lines])
        looked = numpy.array([each.look for each in lines])
        times = numpy.array([self.last_samples if each.last and each.depth else 1 for each in lines])
        keep, opened, worse = (numpy.zeros(num_runs, dtype=bool) for _ in range(3))
        glimpse = 1.0 if looks.num_screening else line.GLIMPSE
        used = numpy.full(num_runs, math.ceil(glimpse * (looks.num_screening or looks.num_problems)))
        for num_times in numpy.unique(times):
            at, num_samples = times == num_times, looks.num_samples * int(num_times)
            if num_times > 1:
                differences = numpy.where(at[:, None], fresh.candidate(num_samples), differences)
            if (now := looked & at).any():
                taken = replace(looks, num_samples=num_samples).taken(differences[now], levels[now])
                keep[now], opened[now], used[now] = taken
            first = numpy.where(opened, looks.num_screening, 0)  # the problems of the split that was opened last judge
            places = numpy.arange(looks.num_problems)
            judged = (places >= first[at, None]) & (places < used[at, None])
            worse[at] = self._worse(numpy.where(judged, differences[at], 0.0), line.WORSE, num_samples)
        turned = self._turned(memory, differences, used, lines)
        worse |= turned
        carry = ~keep & ~worse & numpy.array([each.depth < self.policy.max_carried for each in lines])
        actions: list[Action] = [
            "keep" if kept else "carry" if on else "rollback" for kept, on in zip(keep, carry, strict=True)
        ]
        shown = list(memory.shown)
        for run in numpy.flatnonzero(keep):
            seen = differences[run, first[run] : used[run]]
            num_samples = looks.num_samples * int(times[run])
            shown[run] = Shown(float(seen.mean()), lines[run].depth + 1, float((seen**2).mean()), num_samples)
        tip, num_more = self._at_the_tip(memory, worse & ~keep, used, lines, fresh, shown)
        after = Memory(
            memory.fruitless + (opened & ~keep), tuple(zip(lines, actions, strict=True)), tuple(shown),
            differences, numpy.minimum(used, looks.num_screening or used),
        )  # fmt: skip
        # In a last look the head, too, is measured again.
        return Outcome(keep, carry, used * numpy.where(times > 1, 2 * times, 1) + num_more, after, tip)

    def _worse(self, differences: Floats, level: float, num_samples: int) -> Bools:
        reached = sign_flips_reach(-differences, numpy.full(len(differences), level), 1 / num_samples)
        below: Bools = reached & (differences.sum(axis=1) < 0)
        return below

    def _turned(self, memory: Memory, differences: Floats, used: Ints, lines: Sequence[Line]) -> Bools:
        """Where the candidate is worse than the tip, on the problems that both were measured on."""
        compared = self._by_both(memory, used)
        worse = self._worse(numpy.where(compared, differences - memory.tip, 0.0), line.TURN, self.looks.num_samples)
        turned: Bools = worse & numpy.array([each.depth > 0 and not each.last for each in lines])
        return turned

    def _by_both(self, memory: Memory, used: Ints) -> Bools:
        """(runs, problems): on which candidate and tip were measured; with two splits, those of the first."""
        both = numpy.minimum(numpy.minimum(used, memory.tip_used), self.looks.num_screening or used)
        measured: Bools = numpy.arange(self.looks.num_problems) < both[:, None]
        return measured

    def _at_the_tip(
        self, memory: Memory, ended: Bools, used: Ints, lines: Sequence[Line], fresh: Fresh, shown: list[Shown | None]
    ) -> tuple[Bools, Ints]:
        """Looks at the tips of lines that end: where they are shown, which goes into `shown`, too; problems measured for it."""
        looks, won = self.looks, numpy.zeros_like(ended)
        before = numpy.where(self._by_both(memory, used), memory.tip, 0.0)
        promising = before.sum(axis=1) >= numpy.maximum(line.PROMISING * numpy.sqrt((before**2).sum(axis=1)), 1e-9)
        a_round = looks.gate.budget == "round"  # then a round has one look
        look = (
            ended
            & promising
            & numpy.array([each.depth > 0 and not each.last and not (a_round and each.look) for each in lines])
        )
        if not look.any():
            return won, numpy.zeros(len(won), dtype=numpy.int64)
        num_samples = looks.num_samples * self.last_samples
        seen = fresh.tip(num_samples)[look, looks.num_screening :]
        alphas = (
            1.0 if looks.gate.budget == "round" else numpy.array([line.closing_share(each) for each in lines])[look]
        )
        levels = looks.gate.alpha * alphas * numpy.ones(len(seen))
        won[look] = sign_flips_reach(seen - looks.gate.min_gain, levels, 1 / num_samples) & (seen.sum(axis=1) > 0)
        for run, each in zip(numpy.flatnonzero(look).tolist(), seen, strict=True):
            if won[run]:
                shown[run] = Shown(float(each.mean()), lines[run].depth, float((each**2).mean()), num_samples)
        return won, look * 2 * self.last_samples * looks.num_confirming

    def _line(self, before: tuple[Line, Action] | None, shown: Shown | None, is_last: bool) -> Line:
        depth = before[0].depth + 1 if before and before[1] == "carry" else 0
        sizes = self.looks.num_confirming, self.looks.num_samples
        planned = self.policy.next_line(depth, 0, before, shown, *sizes, is_last=is_last)
        assert planned is not None
        return planned


def rules_of(decide: Decide, world: World) -> dict[str, Rule]:
    """The rules that are compared, by name. LoopError if no gate of the policy looks for improvement."""
    gate = _gate(decide)
    share = SELECT_SHARE if world.select_share is None else world.select_share
    screening = round(share * world.num_problems) if decide.confirm else 0
    if decide.confirm and not 0 < screening < world.num_problems:
        raise LoopError(
            f"world {written(world.name)}: {world.num_problems} problems are too few for decide.split and decide.confirm"
        )
    looks = Looks(gate, decide.looks, world.num_problems, world.num_samples, screening)
    margin = decide.margin if decide.unclear == "keep_if_not_inferior" else None
    return {
        "configured": Carrying(looks, decide.policy(), decide.last_samples)
        if decide.unclear == "carry"
        else gated(looks, margin),
        "keep_if_higher": keep_if_higher,
        "rollback": gated(looks),
        "ungated": ungated,
    }


def _gate(decide: Decide) -> Improvement:
    for gate in decide.gates:
        if isinstance(gate, Improvement):
            return gate
    raise LoopError('decide.gates has no {type = "improvement"}, so no gain would be asked for; add it')


def not_simulated(decide: Decide) -> list[str]:
    """What of the policy a world cannot answer, in words."""
    others = [gate.type for gate in decide.gates if not isinstance(gate, Improvement)]
    left_out = [f"the gates {', '.join(dict.fromkeys(others))} (a world has success rates alone)"] if others else []
    if decide.unclear == "pause":
        left_out.append('unclear = "pause", which waits for a person: simulated as "rollback"')
    metrics = {gate.metric for gate in decide.gates if isinstance(gate, Improvement)} - {"pass@1"}
    return left_out + [f"{metric}: simulated as pass@1" for metric in sorted(metrics)]


# Runs


class Row(TypedDict):
    """One world under one rule; gains and damage are differences of mean success rates, gains over the base's."""

    world: str
    rule: str
    num_runs: int
    possible_gain: float
    head_gain_mean: float
    head_gain_sd: float
    tip_gain_mean: float
    tip_over_head_lowest: float  # the mean over runs, after the round where it is lowest
    num_kept_mean: float
    worthless_keep_share: float
    damage_mean: float
    num_completions_mean: float


def simulated(world: World, name: str, decide: Decide, num_runs: int, seed: int) -> Row:
    """`num_runs` runs of a world under one of the rules. `damage`: what kept candidates lost, where they were worse."""
    rule, min_gain = rules_of(decide, world)[name], _gate(decide).min_gain
    numbers = numpy.random.default_rng([seed, zlib.crc32(world.name.encode())])  # the same draws begin every rule
    at_once = max(1, MOST_CELLS // world.num_problems)
    sizes = [min(at_once, num_runs - first) for first in range(0, num_runs, at_once)]
    parts = [_some(Population(world, size, numbers), rule, min_gain) for size in sizes]
    head, tip, below, num_kept, worthless, damage, num_measured = map(numpy.concatenate, zip(*parts, strict=True))
    return {
        "world": world.name,
        "rule": name,
        "num_runs": num_runs,
        "possible_gain": world.possible_gain,
        "head_gain_mean": float(head.mean()),
        "head_gain_sd": float(head.std()),
        "tip_gain_mean": float(tip.mean()),
        "tip_over_head_lowest": float(below.mean(axis=0).min()),
        "num_kept_mean": float(num_kept.mean()),
        "worthless_keep_share": float(worthless.mean()),
        "damage_mean": float(damage.mean()),
        "num_completions_mean": float(num_measured.mean()) * world.num_samples,
    }


def _some(
    population: Population, rule: Rule, min_gain: float
) -> tuple[Floats, Floats, Floats, Floats, Bools, Floats, Ints]:
    """Runs from the base to their end.

    The gain of head and of tip at the end, tip over head after each round, keeps, whether a keep was worthless, damage,
    problems measured.
    """
    world, num_runs = population.world, population.num_runs
    gains = numpy.array([world.gain_after(depth) for depth in range(world.num_rounds + 1)])
    head = tip = population.base()
    head_depth = tip_depth = numpy.zeros(num_runs, dtype=numpy.int64)  # rounds from the base
    answers, memory = population.correct(head, world.num_samples), Memory.empty(num_runs, world.num_problems)
    num_measured = numpy.full(num_runs, world.num_problems)
    num_kept, damage, below = numpy.zeros(num_runs), numpy.zeros(num_runs), numpy.zeros((num_runs, world.num_rounds))
    worthless = numpy.zeros(num_runs, dtype=bool)
    for number in range(world.num_rounds):
        candidate = population.trained(tip, tip_depth)
        differences = (population.correct(candidate, world.num_samples) - answers) / world.num_samples
        is_last = number + 1 == world.num_rounds
        fresh = Fresh(*(functools.partial(_fresh, population, weights, head) for weights in (candidate, tip)))
        outcome = rule(memory, differences, fresh, is_last=is_last)
        keep, carry, memory, num_measured = (
            outcome.keep,
            outcome.carry,
            outcome.memory,
            num_measured + outcome.num_measured,
        )
        new, new_depth, moved = candidate, tip_depth + 1, keep | outcome.tip
        if outcome.tip.any():
            new, new_depth = numpy.where(outcome.tip[:, None], tip, candidate), tip_depth + ~outcome.tip
        gain, num_kept = gains[new_depth] - gains[head_depth], num_kept + moved
        worthless = worthless | (moved & (gain <= min_gain + 1e-12))
        damage = damage + moved * numpy.maximum(-gain, 0.0)
        head, head_depth = numpy.where(moved[:, None], new, head), numpy.where(moved, new_depth, head_depth)
        tip, tip_depth = numpy.where(carry[:, None], candidate, head), numpy.where(carry, tip_depth + 1, head_depth)
        below[:, number] = gains[tip_depth] - gains[head_depth]
        if not is_last:  # a new head is measured afresh
            answers = numpy.where(moved[:, None], population.correct(head, world.num_samples), answers)
            num_measured = num_measured + moved * world.num_problems
    return gains[head_depth], gains[tip_depth], below, num_kept, worthless, damage, num_measured


def _fresh(population: Population, candidate: Floats, head: Floats, num_samples: int) -> Floats:
    return (population.correct(candidate, num_samples) - population.correct(head, num_samples)) / num_samples


def rows(worlds: Sequence[World], decide: Decide, num_runs: int, seed: int) -> Iterator[Row]:
    """A row for each world and rule, in that order, computed by as many threads as there are cores: numpy runs beside itself."""
    same = decide.unclear in ("rollback", "pause")  # then what is configured rolls back, and is computed once
    calls = [
        (world, name, decide, num_runs, seed)
        for world in worlds
        for name in rules_of(decide, world)
        if not (same and name == "rollback")
    ]
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for row in pool.map(simulated, *zip(*calls, strict=True)):
            if same and row["rule"] == "configured":
                configured = row
            if same and row["rule"] == "ungated":
                yield {**configured, "rule": "rollback"}
            yield row
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for what has not begun
