"""The gate that finds improvement: is the candidate better than the head, at an error that is bounded over the run?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from policies.budget import level as level_of_look
from policies.decision import Figure, GateResult
from policies.evidence import TIP, Evidence, Line
from policies.gates.base import (
    Gate,
    Look,
    Metric,
    Paired,
    Share,
    compared,
    mean,
    paired,
    percent,
    signed,
    sizes,
    values,
    where,
)
from policies.line import TURN, WORSE, closing_share, share
from policies.sequential import Finding
from policies.sequential import look as sequential_look
from policies.statistics import paired_gain, sign_flip_p_value, smallest_detectable_gain

FINAL = 0.8
"""The share of a level that a look in parts keeps for all problems together."""
SCREEN_FINAL = 0.99
"""The same where a look only screens: nothing is gained by letting a candidate through early."""
BARELY = 1e-9  # by how much a bound is above the limit where no more than that is known


_VERDICTS: dict[Finding, Literal["pass", "fail", "inconclusive"]] = {
    "gain": "pass",
    "no_gain": "fail",
    "unclear": "inconclusive",
}


@dataclass(frozen=True, slots=True)
class Tested:
    """The outcome of one look's test."""

    verdict: Finding
    gain: float
    lower: float
    upper: float
    figures: dict[str, Figure]


def is_worse(differences: Sequence[Fraction], level: float = WORSE) -> bool:
    """Whether a candidate is worse than what it is compared with; of those that are not, `level` would be called so."""
    return sum(differences) < 0 and sign_flip_p_value([-difference for difference in differences]) <= level


def over_tip(evidence: Evidence, metric: str) -> list[Fraction]:
    """Candidate less tip on the problems that both have answered, those of the first split; [] where none was carried."""
    both = [problem for split in evidence.splits.values() for problem in split.problems if problem.tip is not None]
    pairs = zip(values(both, "candidate", metric), values(both, "tip", metric), strict=True)
    return [ours - theirs for ours, theirs in pairs]


def _for_the_line(pair: Paired, tested: Tested, line: Line) -> dict[str, Figure]:
    """What the next line is planned by, and whether more problems could still settle this look."""
    return {
        "mean_square": float(sum(difference**2 for difference in pair.differences) / len(pair.differences)),
        "settled": int(not line.look or tested.verdict != "unclear"),
    }


class Improvement(Gate):
    """Passes if the candidate is shown to be better than the head, by a paired test over problems."""

    type: Literal["improvement"] = "improvement"
    metric: Metric = Field(
        default="pass@1", description='What is compared: "pass@1" (the mean of all samples) or pass@k.'
    )
    min_gain: float = Field(default=0.0, gt=-1.0, lt=1.0, description="What is to be shown: a gain of more than this.")
    target_gain: float | None = Field(
        default=None,
        gt=-1.0,
        lt=1.0,
        description="A gain worth finding; left out, 0.03 above min_gain or 0. A look gives up once it is unlikely.",
    )
    miss: float = Field(
        default=0.05, gt=0.0, lt=0.5, description="The chance that a gain of target_gain is given up too early."
    )
    power: float = Field(
        default=0.8,
        ge=0.5,
        lt=1.0,
        description="The chance of finding the smallest detectable gain, which is reported and decides nothing.",
    )
    alpha: Share = Field(default=0.05, description="The chance that the whole run ever keeps what is no better.")
    budget: Literal["run", "round"] = Field(
        default="run",
        description='"round" allows alpha to each round by itself: over many rounds something slips through.',
    )
    screen: float = Field(
        default=0.45,
        gt=0.0,
        lt=0.5,
        description="With a confirm split: the share of worthless candidates that select lets through to it.",
    )

    @model_validator(mode="after")
    def _target_above(self) -> Improvement:
        if self.target_gain is not None and self.target_gain <= self.min_gain:
            raise ValueError(f"target_gain {self.target_gain:g} is not above min_gain {self.min_gain:g}")
        return self

    @property
    def screens(self) -> bool:
        return True

    @property
    def target(self) -> float:
        """The gain worth finding."""
        return min(0.999, max(0.0, self.min_gain) + 0.03) if self.target_gain is None else self.target_gain

    def level(self, num_fruitless: int, look: Look) -> float:
        """The error that this look is allowed: `screen` where another split has the last word, else from the budget."""
        if look.screening:
            return self.screen
        if self.budget == "round":
            return self.alpha
        if look.line is None:
            return level_of_look(self.alpha, num_fruitless)
        return self.alpha * share(look.line)

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        """Compare candidate and head on the look's split.

        Figures: `lower` is a one-sided bound at 1 - `level`, `upper` one at 1 - miss; `num_samples` is the fewest of any
        problem; `p_value` of "no gain" where all problems were judged at once, `e_gain` and `e_none` where they came in parts.
        """
        split, level = evidence.split(look.split), self.level(evidence.num_fruitless(look.split), look)
        pair = paired(evidence, look.split, self.metric)
        in_parts = split.sequential and (look.line is None or look.line.look)  # else nothing depends on when it ends
        tested = self._in_parts(pair, level, split.complete, look) if in_parts else self._at_once(pair, level)
        differences = pair.differences
        detectable = smallest_detectable_gain(differences, level, self.power)
        figures = self._figures(pair, tested, level, look.line) | {
            "target_gain": self.target,
            "smallest_detectable_gain": detectable,
            "num_improved": sum(difference > 0 for difference in differences),
            "num_worsened": sum(difference < 0 for difference in differences),
            "num_equal": sum(difference == 0 for difference in differences),
        }
        over_base = ""
        if pair.problems[0].base is not None:  # all problems have it, or none: SplitEvidence sees to that
            base = paired(evidence, look.split, self.metric, against="base")
            over = paired_gain(base.differences, 0.975)
            figures |= {
                "base": mean(base.theirs),
                "gain_over_base": over.gain,
                "gain_over_base_lower": over.lower,
                "gain_over_base_upper": over.upper,
            }
            over_base = f" (base {mean(base.theirs):.3f})"
        meaning = self._meaning(tested, look, level, detectable)
        verdict = _VERDICTS[tested.verdict]
        if look.line is not None:
            turned = is_worse(over_tip(evidence, self.metric), TURN)
            verdict, meaning = self._of_the_line(tested, pair, look.line, split.complete, turned, meaning)
        reason = (
            f"{self.metric} on {where(evidence, look.split)}: {mean(pair.theirs):.3f} -> {mean(pair.ours):.3f}{over_base}, "
            f"{self._comparison(tested, level, look)}, on {sizes(pair.problems, split)}; {meaning}"
        )
        return GateResult(type=self.type, verdict=verdict, reason=reason, figures=figures)

    def _at_once(self, pair: Paired, level: float) -> Tested:
        """The sign-flip test, and a bound at 1 - miss that says whether a gain of target_gain is still likely."""
        gain = mean(pair.ours) - mean(pair.theirs)
        p_value = sign_flip_p_value(pair.differences, self.min_gain)
        below = paired_gain(pair.differences, 1 - level)
        above = paired_gain(pair.differences, 1 - self.miss)
        passed = gain > 0 and p_value <= level
        lower = max(below.lower, self.min_gain + BARELY) if p_value <= level else min(below.lower, self.min_gain)
        verdict: Finding = "gain" if passed else "no_gain" if above.upper < self.target else "unclear"
        return Tested(verdict, gain, min(lower, gain), max(above.upper, gain), {"p_value": p_value})

    def _in_parts(self, pair: Paired, level: float, complete: bool, look: Look) -> Tested:
        """A test that may end with any part, and that holds a share of the level back for all problems together."""
        seen = sequential_look(
            pair.differences,
            min_gain=self.min_gain,
            target_gain=self.target,
            level=level,
            miss=self.miss,
            final=SCREEN_FINAL if look.screening else FINAL,
            complete=complete,
        )
        figures: dict[str, Figure] = {"e_gain": seen.e_gain, "e_none": seen.e_none, "num_used": seen.num_used}
        if seen.p_value is not None:
            figures["p_value"] = seen.p_value
        return Tested(seen.verdict, seen.gain, seen.lower, seen.upper, figures)

    def _of_the_line(
        self, tested: Tested, pair: Paired, line: Line, complete: bool, turned: bool, meaning: str
    ) -> tuple[Literal["pass", "fail", "inconclusive"], str]:
        """A line ends where its candidate is worse than head or tip (`turned`); it goes on where another gain is only unlikely."""
        if tested.verdict == "gain" and line.look:
            return "pass", meaning
        is_over = complete or not line.look or tested.verdict != "unclear"  # so that a look in parts asks this once
        if is_over and is_worse(pair.differences):
            return "fail", f"worse than the head: no line goes on from it ({percent(1 - WORSE)} confidence)"
        if is_over and not line.last and turned:
            return (
                "fail",
                f"worse than the tip that it was trained from: the line ends ({percent(1 - TURN)} confidence)",
            )
        if not line.look:
            return "inconclusive", f"not looked at: the line's next look comes when it is {line.next_look} rounds long"
        return "inconclusive", meaning

    def look_at_tip(self, evidence: Evidence, line: Line) -> GateResult:
        """The tip against the head on answers of its own, where the line ends: passes if it is shown to be better."""
        share_of_alpha = 1.0 if self.budget == "round" else closing_share(line)
        level, split = self.alpha * share_of_alpha, evidence.split(TIP)
        pair = paired(evidence, TIP, self.metric)
        tested = self._at_once(pair, level)
        figures = self._figures(pair, tested, level, line)
        shown = tested.verdict == "gain"
        reason = (
            f"the line ends with this candidate; its tip, {self.metric} on {where(evidence, TIP)}: "
            f"{mean(pair.theirs):.3f} -> {mean(pair.ours):.3f}, gain {signed(tested.gain)}, "
            f"{compared(f'{percent(1 - level)} lower bound', tested.lower, self.min_gain)}, on {sizes(pair.problems, split)}; "
            + ("it is the head from now on" if shown else "it is not shown, and given up")
        )
        return GateResult(type="tip", verdict="pass" if shown else "inconclusive", reason=reason, figures=figures)

    def _figures(self, pair: Paired, tested: Tested, level: float, line: Line | None) -> dict[str, Figure]:
        """What every look rests on."""
        return {
            "metric": self.metric,
            "head": mean(pair.theirs),
            "candidate": mean(pair.ours),
            "gain": tested.gain,
            "lower": tested.lower,
            "upper": tested.upper,
            "level": level,
            "min_gain": self.min_gain,
            **tested.figures,
            **({} if line is None else _for_the_line(pair, tested, line)),
            "num_problems": len(pair.problems),
            "num_samples": min(len(problem.candidate) for problem in pair.problems),
        }

    def _comparison(self, tested: Tested, level: float, look: Look) -> str:
        gain = f"gain {signed(tested.gain)}" + ("" if tested.gain > 0 else " is not positive")
        if look.line is not None and not look.line.look:
            return gain  # its bound means nothing: no level was spent
        return f"{gain}, {compared(f'{percent(1 - level)} lower bound', tested.lower, self.min_gain)}"

    def _meaning(self, tested: Tested, look: Look, level: float, detectable: float) -> str:
        if tested.verdict == "no_gain":
            return f"a gain of {self.target:g} is unlikely: {percent(1 - self.miss)} upper bound {signed(tested.upper)}"
        if look.screening:
            return "promising: another split has the last word" if tested.verdict == "gain" else "not yet clear"
        stake = "" if self.budget == "round" else f" (this look's part of the {percent(self.alpha)} for the run)"
        if tested.verdict == "gain":
            return f"it may be wrong with a chance of {percent(level)}{stake}"
        return f"a gain under {detectable:.3f} could not have been seen with {percent(self.power)} power{stake and f', at {percent(level)}{stake}'}"
