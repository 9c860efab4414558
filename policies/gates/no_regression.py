"""The gate against harm: is the candidate shown to be no worse than a margin allows?"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from policies.decision import Figure, GateResult
from policies.evidence import BadEvidence, Evidence
from policies.gates.base import Gate, Look, Metric, Share, compared, mean, paired, percent, signed, sizes, where
from policies.sequential import Outcome
from policies.sequential import look as sequential_look
from policies.statistics import PairedGain, paired_gain

Unclear = Literal["pass", "fail", "inconclusive"]


class NoRegression(Gate):
    """Non-inferiority: passes if the loss against the head is shown to be smaller than a margin.

    It looks at the split that decides, at one difficulty or each of them, at a canary suite, or at a signal.
    """

    type: Literal["no_regression"] = "no_regression"
    suite: str | None = Field(default=None, description="A canary suite to look at; without it the suite that decides.")
    metric: Metric = Field(default="pass@1", description='What is compared: "pass@1" or pass@k.')
    difficulty: str | None = Field(default=None, description='One difficulty, or "each" for all of them by themselves.')
    margin: float = Field(default=0.02, gt=0.0, lt=1.0, description="How much worse is still no regression.")
    alpha: Share = Field(default=0.05, description="The chance, in each round, to pass what is worse by the margin.")
    unclear: Unclear = Field(
        default="inconclusive", description="Its verdict where neither is shown; a small suite shows little."
    )
    signal: str | None = Field(
        default=None,
        description="A signal instead of a suite, such as mean_length: it must not rise.",
    )
    max_rise: float = Field(default=0.25, gt=0.0, description="By what share of the head's value a signal may rise.")

    @model_validator(mode="after")
    def _one_thing(self) -> NoRegression:
        if self.signal is not None and (self.suite is not None or self.difficulty is not None):
            raise ValueError("signal goes with neither suite nor difficulty; write two gates")
        return self

    @property
    def canary(self) -> str | None:
        return self.suite

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        """Figures: `loss` is head minus candidate at its worst difficulty, `upper_loss` its one-sided bound at 1 - alpha."""
        if self.signal is not None:
            return self._signal(evidence, self.signal)
        split = self.suite or look.split
        difficulties: list[str | None] = [self.difficulty]
        if self.difficulty == "each":
            problems = evidence.split(split).problems
            difficulties = [*sorted({problem.difficulty for problem in problems if problem.difficulty is not None})]
            if not difficulties:
                raise BadEvidence(f"splits.{split}: no problem has a difficulty")
        parts = [self._part(evidence, split, name, self.alpha / len(difficulties)) for name in difficulties]
        rank = {"fail": 0, "inconclusive": 1, "pass": 2}
        return min(parts, key=lambda part: (rank[part.verdict], -float(part.figures["upper_loss"] or 0)))

    def _part(self, evidence: Evidence, split: str, difficulty: str | None, alpha: float) -> GateResult:
        seen = evidence.split(split)
        pair = paired(evidence, split, self.metric, difficulty=difficulty)
        differences = [float(difference) for difference in pair.differences]
        tested: Outcome | PairedGain
        if seen.sequential:
            tested = sequential_look(differences, min_gain=-self.margin, target_gain=0.0, level=alpha, miss=alpha)
            fine = tested.verdict == "gain"
        else:
            tested = paired_gain(pair.differences, 1 - alpha)
            fine = tested.lower > -self.margin
        gain, lower, upper = tested.gain, tested.lower, tested.upper
        worse = upper < -self.margin
        verdict: Unclear = "pass" if fine else "fail" if worse else self.unclear
        place = where(evidence, split) + (f", {difficulty}" if difficulty else "")
        figures: dict[str, Figure] = {
            "metric": self.metric,
            "suite": seen.suite,
            "difficulty": difficulty,
            "head": mean(pair.theirs),
            "candidate": mean(pair.ours),
            "loss": -gain,
            "upper_loss": -lower,
            "lower_loss": -upper,
            "margin": self.margin,
            "num_problems": len(pair.problems),
        }
        shown_to_be = {
            "pass": "no regression",
            "fail": "worse by more than the margin",
            "inconclusive": "neither harm nor its absence is shown",
        }
        words = shown_to_be["pass" if fine else "fail" if worse else "inconclusive"]
        if not fine and not worse and verdict != "inconclusive":
            words += f", which counts as {verdict}"
        reason = (
            f"{self.metric} on {place}: {mean(pair.theirs):.3f} -> {mean(pair.ours):.3f}, change {signed(gain)}, "
            f"{compared(f'{percent(1 - alpha)} lower bound', lower, -self.margin)}, on {sizes(pair.problems, seen)}; {words}"
        )
        return GateResult(type=self.type, verdict=verdict, reason=reason, figures=figures)

    def _signal(self, evidence: Evidence, name: str) -> GateResult:
        ours, theirs = (evidence.signals.get(who, {}).get(name) for who in ("candidate", "head"))
        if ours is None or theirs is None:
            raise BadEvidence(
                f"signals: {name} is not measured for candidate and head, and a no_regression gate wants it"
            )
        limit = theirs * (1 + self.max_rise)
        fine = ours <= limit
        reason = (
            f"{name}: {theirs:.4g} -> {ours:.4g}, {'within' if fine else 'above'} the limit {limit:.4g} "
            f"({percent(self.max_rise)} above the head)"
        )
        figures: dict[str, Figure] = {
            "signal": name,
            "head": theirs,
            "candidate": ours,
            "limit": limit,
            "upper_loss": None,
        }
        return GateResult(type=self.type, verdict="pass" if fine else "fail", reason=reason, figures=figures)
