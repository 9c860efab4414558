"""What a policy says: each gate's verdict with its figures and its reason, and what should happen next.

The caller acts on it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Figure = int | float | str | None
Verdict = Literal["keep", "rollback", "inconclusive"]
Action = Literal["keep", "carry", "rollback", "sample_more", "confirm", "pause"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class GateResult(_Frozen):
    """One gate's answer. Inconclusive: the evidence is sound but does not settle the matter."""

    type: str = Field(description="Which gate.")
    verdict: Literal["pass", "fail", "inconclusive"]
    reason: str = Field(description="One line in plain words, with the limits that were applied.")
    figures: dict[str, Figure] = Field(description="What the reason rests on, unrounded.")


class Decision(_Frozen):
    """The verdict on a candidate, and the action that follows from it."""

    verdict: Verdict
    gates: tuple[GateResult, ...] = Field(description="In the order of loop.toml.")
    action: Action
    need: dict[str, JsonValue] | None = Field(
        default=None,
        exclude_if=lambda need: need is None,
        description="What the action lacks: how many samples, which split.",
    )

    @property
    def reasons(self) -> tuple[str, ...]:
        """Each gate's reason, in order."""
        return tuple(gate.reason for gate in self.gates)
