"""Gates: each reads evidence, compares one thing with its limit, and says pass or fail with figures and a reason.

A gate is a frozen pydantic model chosen by `type` in loop.toml; its fields are the keys there. To add one, subclass
Gate and name it in `policies.policy.BUILT_IN`, or in an entry point of the group "loop.gates".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from policies.decision import Figure, GateResult
from policies.evidence import Evidence, SplitEvidence
from policies.mistakes import shown
from policies.statistics import PairedGain, paired_gain, smallest_detectable_gain


class Gate(BaseModel, ABC):
    """One condition that must hold to keep a candidate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    type: str

    @abstractmethod
    def evaluate(self, evidence: Evidence, split: str) -> GateResult:
        """A pure function: equal evidence gives an equal result, with no clock, no I/O and no randomness.

        Raises BadEvidence where evidence is missing. Weak evidence is no error: it fails or is inconclusive.
        """


class Improvement(Gate):
    """Passes if the candidate's pass@1 is higher than the head's, by a paired test over problems."""

    type: Literal["improvement"] = "improvement"
    min_gain: float = Field(default=0.0, gt=-1.0, lt=1.0, description="The lower bound of the gain must be above this.")
    confidence: float = Field(default=0.95, gt=0.5, le=0.999, description="One-sided confidence of the lower bound.")
    power: float = Field(
        default=0.8,
        ge=0.5,
        lt=1.0,
        description="Chance of finding the smallest detectable gain; reported, decides nothing.",
    )

    def evaluate(self, evidence: Evidence, split: str) -> GateResult:
        """Compare candidate and head on `split`.

        Figures: `lower` and `upper` are one-sided bounds, each at `confidence`; `p_value` is of "no gain";
        `num_samples` is the fewest of any problem.
        """
        problems = evidence.split(split).problems
        candidate = [_rate(problem.candidate) for problem in problems]
        head = [_rate(problem.head) for problem in problems]
        differences = [ours - theirs for ours, theirs in zip(candidate, head, strict=True)]
        found = paired_gain(differences, self.confidence)
        detectable = smallest_detectable_gain(differences, 1 - self.confidence, self.power)
        passed = found.gain > 0 and found.lower > self.min_gain
        num_samples = [len(problem.candidate) for problem in problems]
        figures: dict[str, Figure] = {
            "head": _mean(head),
            "candidate": _mean(candidate),
            "gain": found.gain,
            "lower": found.lower,
            "upper": found.upper,
            "confidence": self.confidence,
            "min_gain": self.min_gain,
            "p_value": found.p_value,
            "num_problems": len(problems),
            "num_samples": min(num_samples),
            "smallest_detectable_gain": detectable,
            "num_improved": found.num_improved,
            "num_worsened": found.num_worsened,
            "num_equal": found.num_equal,
        }
        base = [_rate(problem.base) for problem in problems if problem.base is not None]
        over_base = ""
        if base:  # all problems have it, or none: SplitEvidence sees to that
            over = paired_gain([ours - theirs for ours, theirs in zip(candidate, base, strict=True)], self.confidence)
            figures |= {
                "base": _mean(base),
                "gain_over_base": over.gain,
                "gain_over_base_lower": over.lower,
                "gain_over_base_upper": over.upper,
            }
            over_base = f" (base {_mean(base):.3f})"
        seen = (
            f"the smallest gain that this evaluation detects with {self.power * 100:g}% power is {detectable:.3f}"
            if passed
            else f"a gain under {detectable:.3f} could not have been seen with {self.power * 100:g}% power"
        )
        reason = (
            f"pass@1 on {_where(evidence, split)}: {_mean(head):.3f} -> {_mean(candidate):.3f}{over_base}, "
            f"{self._comparison(found)}, "
            f"on {len(problems)} {'problem' if len(problems) == 1 else 'problems'} x {_samples(num_samples)}; {seen}"
        )
        return GateResult(type=self.type, verdict="pass" if passed else "fail", reason=reason, figures=figures)

    def _comparison(self, found: PairedGain) -> str:
        """Gain, lower bound and limit, with as many digits as it takes to tell bound and limit apart."""
        digits = 3
        while digits < 9 and found.lower != self.min_gain and _same(found.lower, self.min_gain, digits):
            digits += 1
        gain = f"gain {_signed(found.gain)}" + ("" if found.gain > 0 else " is not positive")
        relation = "above" if found.lower > self.min_gain else "is not above"
        return (
            f"{gain}, {self.confidence * 100:g}% lower bound {_signed(found.lower, digits)} {relation} "
            f"the limit {self.min_gain:z.{digits}f}"
        )


def _rate(outcomes: Sequence[int]) -> Fraction:
    return Fraction(sum(outcomes), len(outcomes))


def _mean(rates: Sequence[Fraction]) -> float:
    return float(sum(rates, Fraction()) / len(rates))


def _signed(value: float, digits: int = 3) -> str:
    """+0.031; a value that rounds to zero has no minus."""
    return f"{value:+z.{digits}f}"


def _same(one: float, other: float, digits: int) -> bool:
    return _signed(one, digits) == _signed(other, digits)


def _samples(num_samples: Iterable[int]) -> str:
    counts = sorted(set(num_samples))
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} samples"
    return f"{counts[0]} sample" if counts == [1] else f"{counts[0]} samples"


def _where(evidence: Evidence, split: str) -> str:
    """'first-steps (select, T 1.0, top_p 0.95)': a figure never stands without its decoding settings."""
    there: SplitEvidence = evidence.split(split)
    decoding = there.decoding if there.decoding is not None else evidence.decoding
    parts = [split if split.isprintable() else shown(split), *_decoding(decoding or {})]
    return f"{there.suite} ({', '.join(parts)})"


def _decoding(decoding: Mapping[str, JsonValue]) -> list[str]:
    """What is said of decoding: greedy, or the temperature and whatever else departs from plain sampling."""
    if decoding.get("greedy") or decoding.get("temperature") == 0:
        return ["greedy"]
    neutral = {"temperature": None, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    names = {"temperature": "T"}
    return [
        f"{names.get(key, key)} {f'{value:g}' if isinstance(value, (int, float)) else shown(value)}"
        for key, without in neutral.items()
        if (value := decoding.get(key)) is not None and value != without
    ]
