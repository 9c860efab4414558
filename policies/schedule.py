"""When a run has seen enough: pure functions of what was decided so far.

A stop policy is a frozen pydantic model chosen by `type` in loop.toml's `schedule.stop`; its fields are the keys there.
To add one, write it like those here and name it in `BUILT_IN` and `Stop`. What a stop leads to is the daemon's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from policies.mistakes import Path, first_mistake, shown
from policies.policy import BadPolicy


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class History(_Frozen):
    """What a stop policy sees: the decisions, oldest first, and the head's figure on the suite that decides.

    A long run may leave out the oldest. `head_pass_rate` is None while the head has not been evaluated.
    """

    verdicts: tuple[Literal["keep", "rollback", "inconclusive"], ...] = ()
    head_pass_rate: float | None = Field(default=None, ge=0.0, le=1.0)


class Plateau(_Frozen):
    """Stop after so many decided rounds in a row that were not kept."""

    type: Literal["plateau"] = "plateau"
    rounds: PositiveInt = Field(description="Rounds in a row of which none was kept.")

    def why(self, history: History) -> str | None:
        """A reason in words; None to go on."""
        newest = history.verdicts[-self.rounds :]
        if len(newest) < self.rounds or "keep" in newest:
            return None
        last = "the last round was not" if self.rounds == 1 else f"none of the last {self.rounds} rounds was"
        return f"plateau: {last} kept"


class Target(_Frozen):
    """Stop once the head reaches a figure, the base among the heads."""

    type: Literal["target"] = "target"
    value: float = Field(gt=0.0, le=1.0, description="pass@1 of the head on the suite that decides.")

    def why(self, history: History) -> str | None:
        """A reason in words; None to go on."""
        reached = history.head_pass_rate
        if reached is None or reached < self.value:
            return None
        return f"target: the head's pass@1 {reached:.3f} has reached {self.value:g}"


Stop = Annotated[Plateau | Target, Field(discriminator="type")]

BUILT_IN: dict[str, type[Plateau] | type[Target]] = {"plateau": Plateau, "target": Target}


def why_stop(stops: Sequence[Plateau | Target], history: History) -> str | None:
    """The first reason to stop, in the order of loop.toml; None to go on."""
    return next((why for stop in stops if (why := stop.why(history)) is not None), None)


def build_stops(tables: Sequence[Mapping[str, Any]]) -> tuple[Plateau | Target, ...]:
    """The stop policies of loop.toml's `schedule.stop`. BadPolicy (a ValueError) for the first mistake."""
    return tuple(_build(table, ("schedule", "stop", index)) for index, table in enumerate(tables))


def _build(table: Mapping[str, Any], where: Path) -> Plateau | Target:
    known = ", ".join(BUILT_IN)
    if not isinstance(table, Mapping):
        raise BadPolicy(where, f'{shown(table)} is not a table; give one such as {{ type = "plateau", rounds = 5 }}')
    if "type" not in table:
        raise BadPolicy(where, f"type is missing; known types: {known}")
    stop_type = table["type"]
    if not isinstance(stop_type, str) or stop_type not in BUILT_IN:
        raise BadPolicy((*where, "type"), f"unknown type {shown(stop_type)}; known types: {known}")
    found = BUILT_IN[stop_type]
    try:
        return found.model_validate(dict(table))
    except ValidationError as error:
        path, problem = first_mistake(error)
        if problem == "unknown key":
            problem += f"; the keys of {stop_type!r} are {', '.join(found.model_fields)}"
        elif path and (field := found.model_fields.get(str(path[0]))) is not None and field.description:
            problem += f" ({field.description.rstrip('.')})"
        raise BadPolicy((*where, *path), problem) from None
