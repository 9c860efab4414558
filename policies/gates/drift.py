"""The gate against a slow collapse: has the model drifted away from the base, a little in every round?

What falls by a few percent a round is within every limit between two checkpoints. So each round compares its candidate with
the base, problem by problem, and the rounds together form one sequential test: round r has alpha 5 / ((r + 4) (r + 5)), and all
rounds together alpha. These levels hold whatever the rounds have in common, the base's one measurement above all.

Sharpening moves a model away from the base, too, so what is tested is what it leaves alone: different right answers, whether a
problem is solved at all, the form of answers. Entropy and the spread fall with every wrong answer; the collapse gate bounds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.decision import Figure, GateResult
from policies.evidence import BadEvidence, Evidence, SinceBase
from policies.gates.base import Gate, Look, Share, percent
from policies.statistics import students_t

SPREAD_OUT = 5
"""Over about so many rounds the levels are alike, because a drift takes some rounds before anything can see it."""
FEWEST = 30
"""With fewer problems a mean's error is too rough for levels this small, and nothing is judged."""
SHARPENING = 0.1
"""A model that gives a share w of the base's wrong answers may have lost different right answers to a share of w to this power."""


class Bound(BaseModel):
    """How far from the base's value a signal may go, by one of four limits, and the part of alpha that the test of it has."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    min_of_base: float | None = Field(default=None, gt=0.0, le=1.0, description="At least this share of the base's.")
    max_of_base: float | None = Field(default=None, ge=1.0, description="At most this share of the base's.")
    max_fall: float | None = Field(default=None, ge=0.0, lt=1.0, description="At most this much below the base's.")
    max_rise: float | None = Field(default=None, ge=0.0, lt=1.0, description="At most this much above the base's.")
    part: float = Field(default=0.1, gt=0.0, le=1.0, description="The part of alpha that its test has.")

    @model_validator(mode="after")
    def _one(self) -> Bound:
        if len(self.given()) != 1:
            raise ValueError("sets not exactly one limit; give min_of_base, max_of_base, max_fall or max_rise")
        return self

    def given(self) -> dict[str, float]:
        """The limit, by name."""
        return self.model_dump(exclude_none=True, exclude={"part"})


DEFAULTS: dict[str, Bound] = {
    "distinct_correct_rate": Bound(min_of_base=0.98, part=0.6),
    "solved": Bound(min_of_base=0.98, part=0.2),
    "mean_length": Bound(min_of_base=0.5, part=0.1),
    "code_rate": Bound(max_fall=0.05, part=0.05),
    "truncation_rate": Bound(max_rise=0.1, part=0.05),
}


def share_of(round: int) -> float:
    """The part of alpha that the test of a round may spend, counted from 1; over all rounds they sum to 1."""
    return SPREAD_OUT / ((round + SPREAD_OUT - 1) * (round + SPREAD_OUT))


class Drift(Gate):
    """Fails once a signal of the candidate is shown to have gone further from the base's than its limit.

    Signals, each a mean over problems: distinct_correct_rate (different right answers as a share of all), solved (whether any
    sample was right, which is pass@k at the largest k), mean_length (tokens), code_rate, truncation_rate. A run in which
    nothing drifts is stopped even once with a chance of at most alpha.
    """

    type: Literal["drift"] = "drift"
    alpha: Share = Field(
        default=0.05, description="The chance that a run in which nothing drifts is stopped even once."
    )
    limits: dict[str, Bound] = Field(default_factory=dict, description="By signal; replaces its default.")
    ignore: tuple[str, ...] = Field(default=(), description="Signals that are not tested.")

    @model_validator(mode="after")
    def _all_of_alpha(self) -> Drift:
        total = math.fsum(bound.part for bound in self.in_force.values())
        if total > 1 + 1e-9:
            raise ValueError(f"the parts of its limits sum to {total:g}; all tests together have 1")
        return self

    @property
    def in_force(self) -> dict[str, Bound]:
        """The limits that count, by signal."""
        return {name: bound for name, bound in DEFAULTS.items() if name not in self.ignore} | self.limits

    @property
    def needs_base(self) -> bool:
        return True

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        """Figures: of each signal the candidate's and the base's mean, and `level`, the part of alpha that this round has."""
        since = evidence.since_base or {}
        level = self.alpha * share_of(evidence.rounds_so_far + 1)
        split = evidence.split(look.split)
        if split.sequential and (look.line is None or look.line.look):
            level /= split.num_looks or 1  # the gate is asked after each part
        figures: dict[str, Figure] = {"level": level}
        drifted, held = list[str](), list[str]()
        left = _wrong_left(since)
        for name, bound in self.in_force.items():
            if (pair := since.get(name)) is None:
                if name in self.limits and since:
                    raise BadEvidence(f"since_base: {name} is not measured, and a drift gate has a limit for it")
                continue
            figures |= {name: pair.candidate, f"{name}_base": pair.base}
            if pair.num_problems < FEWEST:
                continue
            allowed = left**SHARPENING if name == "distinct_correct_rate" else 1.0
            words = _beyond(name, pair, bound, allowed, level * bound.part)
            (drifted if words else held).append(words or f"{name} {_of_base(pair)}")
        if drifted:
            stake = f"this round's part of the {percent(self.alpha)} for the run"
            return GateResult(type=self.type, verdict="fail", reason=f"{'; '.join(drifted)} ({stake})", figures=figures)
        return GateResult(type=self.type, verdict="pass", reason=_nothing(held, since), figures=figures)


def _nothing(held: list[str], since: Mapping[str, SinceBase]) -> str:
    if held:
        return f"no drift from the base is shown: {', '.join(held)}"
    if since:
        return f"fewer than {FEWEST} problems, too few to tell a drift from the base"
    return "the candidate is not compared with the base: nothing is measured of both"


def _of_base(pair: SinceBase) -> str:
    """0.402, 0.97 of the base's"""
    return f"{pair.candidate:.3g}" + (f", {pair.candidate / pair.base:.2f} of the base's" if pair.base else "")


def _beyond(name: str, pair: SinceBase, bound: Bound, allowed: float, level: float) -> str:
    """In words that the signal has gone further than its bound, if that is shown at this level; else ''."""
    ((kind, limit),) = bound.given().items()
    factor = {"min_of_base": limit * allowed, "max_of_base": limit}.get(kind, 1.0)
    shift = {"max_fall": limit, "max_rise": -limit}.get(kind, 0.0)
    sign = 1 if kind in ("min_of_base", "max_fall") else -1
    above = sign * (pair.candidate - factor * pair.base + shift)  # below 0: beyond the bound
    spread = pair.candidate_variance - 2 * factor * pair.covariance + factor * factor * pair.base_variance
    num = pair.num_problems + 1  # an imagined problem stands exactly at the bound, so that no spread is 0
    mean = above * pair.num_problems / num
    squares = (pair.num_problems - 1) * max(0.0, spread) + above * above * pair.num_problems / num
    error = math.sqrt(squares / (num - 1) / num)
    if mean >= 0 or mean > -students_t(1 - 2 * level, num - 1) * error:
        return ""
    words = {
        "min_of_base": f"under {factor:.3g} of it",
        "max_of_base": f"over {factor:.3g} of it",
        "max_fall": f"more than {limit:g} below it",
        "max_rise": f"more than {limit:g} above it",
    }[kind]
    return f"{name} {pair.candidate:.3g} has drifted from the base's {pair.base:.3g}, {words} at {percent(1 - level)}"


def _wrong_left(since: Mapping[str, SinceBase]) -> float:
    """The share of the base's wrong answers that the candidate still gives; at most 1, and 1 where it is not known."""
    rates = since.get("pass@1")
    if rates is None or rates.candidate <= rates.base:
        return 1.0
    return max(1e-3, (1 - rates.candidate) / (1 - rates.base))
