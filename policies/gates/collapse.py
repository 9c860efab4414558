"""The gate against collapse: has the model become narrow, while its score may still rise?

Sharpening narrows a model, too, and is the gain: wrong answers go, and take their diversity with them. Collapse is the loss
of what is right: other right answers, and problems that some sample used to solve. So diversity is counted among right
answers, the spread by what is left to be won, and the rest allows for what fewer wrong answers explain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.decision import Figure, GateResult
from policies.evidence import BadEvidence, Evidence, Who
from policies.gates.base import Gate, Look

NOISE = 1.25
"""A signal is beyond a limit only by more than this many standard errors.

Errors are over problems, as if the other side had answered other problems; as it answers the same, they are larger than need be.
"""
FEWEST = 150
"""With fewer samples in all, errors are too rough to be trusted, and default limits do not apply to what is counted."""


class Limit(BaseModel):
    """How far one signal may move: as a share of the head's or the base's value, or by a difference from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    min_of_head: float | None = Field(default=None, ge=0.0, description="At least this share of the head's value.")
    max_of_head: float | None = Field(default=None, ge=0.0, description="At most this share of the head's value.")
    min_of_base: float | None = Field(default=None, ge=0.0, description="At least this share of the base's value.")
    max_of_base: float | None = Field(default=None, ge=0.0, description="At most this share of the base's value.")
    max_fall: float | None = Field(default=None, ge=0.0, description="At most this much below the lower of the two.")
    max_rise: float | None = Field(default=None, ge=0.0, description="At most this much above the higher of the two.")
    less_wrong: bool = Field(
        default=False,
        description="For min_of: the other's value counts only by the share of its wrong answers that is left.",
    )

    @model_validator(mode="after")
    def _any(self) -> Limit:
        if not self.given():
            known = [name for name in Limit.model_fields if name != "less_wrong"]
            raise ValueError(f"sets no limit; give one of {', '.join(known)}")
        return self

    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return self.model_dump(exclude_none=True, exclude={"less_wrong"})


FORM = {
    "truncation_rate": Limit(max_rise=0.15),
    "code_rate": Limit(max_fall=0.1),
    "loss_gap": Limit(max_rise=0.5),
}
DEFAULTS: dict[str, Limit] = {
    "entropy": Limit(min_of_head=0.65, min_of_base=0.4, less_wrong=True),
    "distinct_solution_rate": Limit(min_of_head=0.8, min_of_base=0.75, less_wrong=True),
    "distinct_correct_rate": Limit(min_of_head=0.9, min_of_base=0.8),
    "spread": Limit(min_of_head=0.6, min_of_base=0.5),
    "mean_length": Limit(min_of_head=0.7, max_of_head=1.6, min_of_base=0.5, max_of_base=2.5),
    **FORM,
}
# What earlier versions had, and decisions of theirs are replayed with; those that are stored without `defaults` had the first.
SECOND_DEFAULTS = DEFAULTS | {"entropy": Limit(min_of_head=0.65, min_of_base=0.6, less_wrong=True)}
FIRST_DEFAULTS: dict[str, Limit] = {
    "entropy": Limit(min_of_head=0.6, min_of_base=0.35),
    "distinct_solution_rate": Limit(min_of_head=0.75, min_of_base=0.5),
    "spread": Limit(min_of_head=0.6, min_of_base=0.4),
    "mean_length": Limit(min_of_head=0.6, max_of_head=1.6, min_of_base=0.4, max_of_base=2.5),
    **FORM,
    "fork_entropy": Limit(min_of_head=0.6, min_of_base=0.35),
}


Side = tuple[str, Mapping[str, float]]  # who it is, and its signals


class Collapse(Gate):
    """Fails if a signal of the candidate has moved too far from the head's or the base's.

    In a line of carried rounds the tip, which the candidate was trained from, stands for the head in min_of_head and max_of_head:
    these limits are for one round.

    Signals: entropy (mean of the next token's, nats), distinct_solution_rate (different answers to a problem as a share of
    all), distinct_correct_rate (different right ones as a share of all), spread ((pass@k - pass@1) / (1 - pass@1): what
    further samples win of what the first leaves), mean_length (tokens), truncation_rate, code_rate, loss_gap (held-out minus
    training loss of the final weights, nats; 0 for the base). Signals that count samples come with a standard error, of which 1.25 are
    allowed for. Other signals, such as fork_entropy, only where `limits` names them.
    """

    type: Literal["collapse"] = "collapse"
    limits: dict[str, Limit] = Field(
        default_factory=dict,
        description="By signal; replaces its default. `loopctl aa` prints limits learned from noise.",
    )
    ignore: tuple[str, ...] = Field(default=(), description="Signals whose default limits do not count.")
    defaults: Literal[1, 2, 3] = Field(
        default=3, description="Which default limits; earlier versions had 1 and 2, and runs keep theirs."
    )

    @property
    def in_force(self) -> dict[str, Limit]:
        """The limits that count, by signal."""
        defaults = {1: FIRST_DEFAULTS, 2: SECOND_DEFAULTS, 3: DEFAULTS}[self.defaults]
        return {name: limit for name, limit in defaults.items() if name not in self.ignore} | self.limits

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        """Figures: each signal's value, the head's or the tip's, and the base's. A default that is not measured is passed over."""
        broken, figures, missing, too_few = [], dict[str, Figure](), [], []
        names: tuple[Who, ...] = ("candidate", "head", "tip", "base")
        candidate, head, tip, base = (_known(evidence.signals.get(who, {})) for who in names)
        counted = {name for name, limit in self.in_force.items() if limit.less_wrong or f"{name}_error" in candidate}
        for name, limit in self.in_force.items():
            before = ("tip", tip) if name in tip else ("head", head)  # the candidate was trained from the tip
            others = [(who, side) for who, side in (before, ("base", base)) if name in side]
            if (ours := candidate.get(name)) is None or not others:
                if name in self.limits:
                    raise BadEvidence(f"signals: {name} is not measured, and a collapse gate has a limit for it")
                missing.append(name)
                continue
            figures[name] = ours
            figures |= {f"{name}_{who}": side[name] for who, side in others}
            if name not in self.limits and name in counted and candidate.get("num_samples", FEWEST) < FEWEST:
                too_few.append(name)
                continue
            fixed = [(who, side) for who, side in (("head", head), ("base", base)) if name in side]
            broken += [f"{name} {ours:.3g} is {words}" for words in _beyond(name, limit, candidate, others, fixed)]
        if broken:
            return GateResult(type=self.type, verdict="fail", reason="; ".join(broken), figures=figures)
        measured = [name for name in self.in_force if name in figures and name not in too_few]
        reason = (
            f"within limits: {', '.join(f'{name} {figures[name]:.3g}' for name in measured) or 'nothing is measured'}"
        )
        if missing:
            reason += f"; not measured: {', '.join(missing)}"
        if too_few:
            reason += f"; on too few samples to be judged: {', '.join(too_few)}"
        return GateResult(type=self.type, verdict="pass", reason=reason, figures=figures)


def _known(signals: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in signals.items() if value is not None}


def _beyond(
    name: str, limit: Limit, candidate: Mapping[str, float], others: Sequence[Side], fixed: Sequence[Side]
) -> list[str]:
    """Each way in which a signal is beyond its limit by more than noise, in words.

    `others`: by name, head or tip, and base. `fixed`: head and base, from which max_fall and max_rise count: from the tip they
    would allow as much again in each round of a line.
    """
    ours, error = candidate[name], f"{name}_error"
    ways = []

    def room(side: Mapping[str, float], share: float) -> float:
        return NOISE * math.hypot(candidate.get(error, 0.0), share * side.get(error, 0.0))

    for who, side in others:
        of = "base" if who == "base" else "head"
        least, most = getattr(limit, f"min_of_{of}"), getattr(limit, f"max_of_{of}")
        theirs, left = side[name], _wrong_left(candidate, side) if limit.less_wrong else 1.0
        but = f", with {left:.2g} of its wrong answers left" if left < 1 else ""
        if least is not None and ours + room(side, least * left) < least * left * theirs:
            ways.append(f"under {least:g} of the {who}'s {theirs:.3g}{but}")
        if most is not None and ours - room(side, most) > most * theirs:
            ways.append(f"over {most:g} of the {who}'s {theirs:.3g}")
    if not fixed:
        return ways
    low, high = (pick((side for _, side in fixed), key=lambda side: side[name]) for pick in (min, max))
    if limit.max_fall is not None and ours + room(low, 1.0) < low[name] - limit.max_fall:
        ways.append(f"more than {limit.max_fall:g} below {low[name]:.3g}")
    if limit.max_rise is not None and ours - room(high, 1.0) > high[name] + limit.max_rise:
        ways.append(f"more than {limit.max_rise:g} above {high[name]:.3g}")
    return ways


def _wrong_left(candidate: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The share of the other's wrong answers that the candidate still gives; 1 where it gives more, or that is not known."""
    ours, theirs = candidate.get("pass@1"), other.get("pass@1")
    return 1.0 if ours is None or theirs is None or ours <= theirs else (1 - ours) / (1 - theirs)
