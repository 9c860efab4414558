"""The gate against a slow slide: is the candidate at least about as good as the best round that was ever kept?"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from policies.decision import Figure, GateResult
from policies.evidence import Evidence
from policies.gates.base import Gate, Look, Metric, Share, mean, paired, percent, signed, sizes, where
from policies.statistics import paired_gain


class BestSoFar(Gate):
    """Fails once the candidate, or the head before it, is shown to be worse than the best kept round.

    Many small steps down, each within the margin of a `no_regression` gate, add up; compared with the best they show.
    """

    type: Literal["best_so_far"] = "best_so_far"
    metric: Metric = Field(default="pass@1", description='What is compared: "pass@1" or pass@k.')
    margin: float = Field(default=0.0, ge=0.0, lt=1.0, description="How much worse than the best is still good enough.")
    alpha: Share = Field(default=0.05, description="The chance, in each round, to see a slide where there is none.")
    go_back: bool = Field(default=True, description="If the head itself has slid, move it back to the best round.")

    @property
    def needs_best(self) -> bool:
        return True

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        """Figures: `gain_over_best` with a one-sided upper bound; `back_to`, the round that the head should go back to."""
        split = evidence.split(look.split)
        if split.problems[0].best is None:
            return GateResult(
                type=self.type, verdict="pass", reason="the head is the best round so far", figures={"back_to": None}
            )
        best = paired(evidence, look.split, self.metric, against="best")
        ours = paired_gain(best.differences, 1 - self.alpha)
        heads = [
            head - top for head, top in zip(paired(evidence, look.split, self.metric).theirs, best.theirs, strict=True)
        ]
        before = paired_gain(heads, 1 - self.alpha)
        name = "the base" if evidence.best_round == 0 else f"round {evidence.best_round}"
        slid, worse = before.upper < -self.margin, ours.upper < -self.margin
        figures: dict[str, Figure] = {
            "best_round": evidence.best_round,
            "best": mean(best.theirs),
            "candidate": mean(best.ours),
            "gain_over_best": ours.gain,
            "gain_over_best_upper": ours.upper,
            "head_over_best": before.gain,
            "head_over_best_upper": before.upper,
            "back_to": evidence.best_round if slid and worse and self.go_back else None,
        }
        reason = (
            f"{self.metric} on {where(evidence, look.split)}: candidate {mean(best.ours):.3f} against {mean(best.theirs):.3f} of "
            f"{name}, the best so far: {signed(ours.gain)}, {percent(1 - self.alpha)} upper bound {signed(ours.upper)}, "
            f"on {sizes(best.problems, split)}"
        )
        if worse:
            reason += f"; worse than {name}"
            if slid:
                reason += f", and so is the head: {signed(before.gain)}, upper bound {signed(before.upper)}"
        return GateResult(type=self.type, verdict="fail" if worse else "pass", reason=reason, figures=figures)
