"""When a run has seen enough: pure functions of what was decided. Chosen by `type` in `[schedule] stop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class History(_Frozen):
    """What a stop policy sees: the newest decisions, oldest first, and the head's figure on the suite that decides."""

    verdicts: tuple[Literal["keep", "rollback", "inconclusive"], ...] = ()
    head_pass_rate: float | None = None


class Plateau(_Frozen):
    """Stop after so many rounds in a row that were not kept."""

    type: Literal["plateau"]
    rounds: PositiveInt = Field(description="Rounds in a row without a kept one.")

    def why(self, history: History) -> str | None:
        """A reason in words; None to go on."""
        newest = history.verdicts[-self.rounds :]
        if len(newest) == self.rounds and "keep" not in newest:
            return f"plateau: none of the last {self.rounds} rounds was kept"
        return None


class Target(_Frozen):
    """Stop once the head reaches a figure."""

    type: Literal["target"]
    value: float = Field(ge=0.0, le=1.0, description="The pass@1 of the head on the suite that decides.")

    def why(self, history: History) -> str | None:
        """A reason in words; None to go on."""
        reached = history.head_pass_rate
        if reached is not None and reached >= self.value:
            return f"target: the head's pass@1 {reached:.3f} has reached {self.value:g}"
        return None


Stop = Annotated[Plateau | Target, Field(discriminator="type")]


def why_stop(stops: Sequence[Plateau | Target], history: History) -> str | None:
    """The first reason to stop; None to go on."""
    return next((why for stop in stops if (why := stop.why(history)) is not None), None)
