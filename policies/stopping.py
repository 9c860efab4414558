"""When a run has seen enough: pure functions of what was decided so far.

A stop rule is a frozen pydantic model chosen by `type` in loop.toml's `schedule.stop`; its fields are the keys there. To add
one, subclass StopRule and name it in `STOP_RULES`, or in an entry point of the group "loop.stop_rules". What a stop leads to
is the daemon's part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from policies.by_type import Registry
from policies.decision import Verdict

MOST_VERDICTS = 1000
"""How many of the newest decisions a rule is shown."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class History(_Frozen):
    """What a stop rule sees: the decisions, oldest first, the head's figure on the suite that decides, and the hours.

    A long run may leave out the oldest. `head_pass_rate` is None while the head has not been evaluated.
    """

    verdicts: tuple[Verdict, ...] = ()
    head_pass_rate: float | None = Field(default=None, ge=0.0, le=1.0)
    num_hours: float = Field(default=0.0, ge=0.0)


class StopRule(_Frozen, ABC):
    """One reason to end a run."""

    type: str

    @abstractmethod
    def why(self, history: History) -> str | None:
        """The reason in words; None while the run is to continue."""


class Plateau(StopRule):
    """Stop after this many decided rounds in a row that were not kept."""

    type: Literal["plateau"] = "plateau"
    rounds: PositiveInt = Field(le=MOST_VERDICTS, description="Rounds in a row of which none was kept.")

    def why(self, history: History) -> str | None:
        newest = history.verdicts[-self.rounds :]
        if len(newest) < self.rounds or "keep" in newest:
            return None
        last = "the last round was not" if self.rounds == 1 else f"none of the last {self.rounds} rounds was"
        return f"plateau: {last} kept"


class Target(StopRule):
    """Stop once the head reaches a figure, the base among the heads."""

    type: Literal["target"] = "target"
    value: float = Field(gt=0.0, le=1.0, description="pass@1 of the head on the suite that decides.")

    def why(self, history: History) -> str | None:
        reached = history.head_pass_rate
        if reached is None or reached < self.value:
            return None
        return f"target: the head's pass@1 {reached:.3f} has reached {self.value:g}"


class Hours(StopRule):
    """Stop after this much machine time, whatever has come of it."""

    type: Literal["hours"] = "hours"
    value: float = Field(gt=0.0, description="Hours of work: what all attempts took, failed ones included.")

    def why(self, history: History) -> str | None:
        if history.num_hours < self.value:
            return None
        return f"hours: the run has worked {history.num_hours:.1f} hours of {self.value:g}"


STOP_RULES = Registry(StopRule, "loop.stop_rules", '{ type = "plateau", rounds = 5 }', Plateau, Target, Hours)


def why_stop(rules: Sequence[StopRule], history: History) -> str | None:
    """The first reason to stop, in the order of loop.toml; None while the run is to continue."""
    return next((why for rule in rules if (why := rule.why(history)) is not None), None)
