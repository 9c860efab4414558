"""The gate against collapse: has the model become narrow, while its score may still rise?"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.decision import Figure, GateResult
from policies.evidence import BadEvidence, Evidence
from policies.gates.base import Gate, Look


class Limit(BaseModel):
    """How far one signal may move: as a share of the head's or the base's value, or by a difference from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    min_of_head: float | None = Field(default=None, ge=0.0, description="At least this share of the head's value.")
    max_of_head: float | None = Field(default=None, ge=0.0, description="At most this share of the head's value.")
    min_of_base: float | None = Field(default=None, ge=0.0, description="At least this share of the base's value.")
    max_of_base: float | None = Field(default=None, ge=0.0, description="At most this share of the base's value.")
    max_fall: float | None = Field(default=None, ge=0.0, description="At most this much below the lower of the two.")
    max_rise: float | None = Field(default=None, ge=0.0, description="At most this much above the higher of the two.")

    @model_validator(mode="after")
    def _any(self) -> Limit:
        if all(getattr(self, name) is None for name in Limit.model_fields):
            raise ValueError(f"sets no limit; give one of {', '.join(Limit.model_fields)}")
        return self


DEFAULTS: dict[str, Limit] = {
    "entropy": Limit(min_of_head=0.6, min_of_base=0.35),
    "distinct_solution_rate": Limit(min_of_head=0.75, min_of_base=0.5),
    "spread": Limit(min_of_head=0.6, min_of_base=0.4),
    "mean_length": Limit(min_of_head=0.6, max_of_head=1.6, min_of_base=0.4, max_of_base=2.5),
    "truncation_rate": Limit(max_rise=0.15),
    "code_rate": Limit(max_fall=0.1),
    "loss_gap": Limit(max_rise=0.5),
    "fork_entropy": Limit(min_of_head=0.6, min_of_base=0.35),
}


class Collapse(Gate):
    """Fails if a signal of the candidate has moved too far from the head's or the base's.

    Signals: entropy (mean of the next token's, nats), distinct_solution_rate, spread ((pass@k - pass@1) / (1 - pass@1):
    what further samples win of what the first leaves; the difference alone must shrink as pass@1 rises), mean_length
    (tokens), truncation_rate, code_rate, loss_gap (held-out minus training loss, nats; not measured yet), fork_entropy.
    """

    type: Literal["collapse"] = "collapse"
    limits: dict[str, Limit] = Field(
        default_factory=dict,
        description="By signal; replaces its default. `loopctl aa` prints limits learned from noise.",
    )
    ignore: tuple[str, ...] = Field(default=(), description="Signals whose default limits do not count.")

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        """Figures: each signal's value, its head's and its base's. A default whose signal is not measured is passed over."""
        broken, figures, missing = [], dict[str, Figure](), []
        for name, limit in {**DEFAULTS, **self.limits}.items():
            if name in self.ignore and name not in self.limits:
                continue
            ours, head, base = (evidence.signals.get(who, {}).get(name) for who in ("candidate", "head", "base"))
            if ours is None or (head is None and base is None):
                if name in self.limits:
                    raise BadEvidence(f"signals: {name} is not measured, and a collapse gate has a limit for it")
                missing.append(name)
                continue
            figures[name] = ours
            figures |= {f"{name}_{who}": value for who, value in (("head", head), ("base", base)) if value is not None}
            broken += [f"{name} {ours:.3g} is {words}" for words in _beyond(limit, ours, head, base)]
        if broken:
            return GateResult(type=self.type, verdict="fail", reason="; ".join(broken), figures=figures)
        measured = [name for name in {**DEFAULTS, **self.limits} if name in figures]
        reason = (
            f"within limits: {', '.join(f'{name} {figures[name]:.3g}' for name in measured) or 'nothing is measured'}"
        )
        if missing:
            reason += f"; not measured: {', '.join(missing)}"
        return GateResult(type=self.type, verdict="pass", reason=reason, figures=figures)


def _beyond(limit: Limit, ours: float, head: float | None, base: float | None) -> list[str]:
    """Each way in which a value is beyond its limit, in words."""
    found = []
    for who, theirs, least, most in (
        ("head", head, limit.min_of_head, limit.max_of_head),
        ("base", base, limit.min_of_base, limit.max_of_base),
    ):
        if theirs is None:
            continue
        if least is not None and ours < least * theirs:
            found.append(f"under {least:g} of the {who}'s {theirs:.3g}")
        if most is not None and ours > most * theirs:
            found.append(f"over {most:g} of the {who}'s {theirs:.3g}")
    known = [theirs for theirs in (head, base) if theirs is not None]
    if limit.max_fall is not None and ours < min(known) - limit.max_fall:
        found.append(f"more than {limit.max_fall:g} below {min(known):.3g}")
    if limit.max_rise is not None and ours > max(known) + limit.max_rise:
        found.append(f"more than {limit.max_rise:g} above {max(known):.3g}")
    return found
