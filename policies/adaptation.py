"""What the next round changes after rollbacks: a pure function of how many there were in a row.

Fresh samples come by themselves, since every round has its own seeds. The changes here come on top, grow with each further
rollback, and are taken back when a round is kept. The settings of the yardstick are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SerializeAsAny

from policies.by_type import by_type
from policies.data import DATA_POLICIES, DataPolicy

LOWEST_RATE = 0.01  # the floor where none is given, as a share of the configured learning rate


class AfterRollback(BaseModel):
    """What rounds change after rollbacks in a row, until one is kept. By default nothing but the samples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    patience: PositiveInt = Field(1, description="The first change comes after this many rollbacks in a row.")
    learning_rate_factor: float = Field(
        1.0, gt=0.0, le=1.0, description="Each further rollback multiplies the learning rate by this..."
    )
    learning_rate_floor: PositiveFloat | None = Field(
        None, description="...but not below this; default: a hundredth of training.learning_rate."
    )
    length_factor: float = Field(
        1.0, gt=0.0, le=1.0, description="Each multiplies num_steps or num_epochs, and warmup_steps, by this."
    )
    temperatures: tuple[Annotated[float, Field(gt=0.0, le=10.0)], ...] = Field(
        (), description="T_train after the first change, the second and so on; the last one stays."
    )
    data: Annotated[SerializeAsAny[DataPolicy], by_type(DATA_POLICIES)] | None = Field(
        None, description="The data policy instead of collect.data."
    )


@dataclass(frozen=True, slots=True)
class Adaptable:
    """The settings of a round that may change."""

    temperature: float
    learning_rate: float
    min_learning_rate: float
    num_steps: int | None
    num_epochs: int | None
    warmup_steps: int
    data: DataPolicy

    def training(self) -> dict[str, float | int | None]:
        """The settings of the fine-tune, by their names in [training]."""
        names = ("learning_rate", "min_learning_rate", "num_steps", "num_epochs", "warmup_steps")
        return {name: getattr(self, name) for name in names}


def rollbacks_in_a_row(verdicts: Sequence[str]) -> int:
    """How many of the newest decisions, which come last, did not keep. An inconclusive one leaves the head, too."""
    num = 0
    for verdict in reversed(verdicts):
        if verdict == "keep":
            break
        num += 1
    return num


def adapted(rule: AfterRollback, num_rollbacks: int, settings: Adaptable) -> Adaptable:
    """The settings of the round after `num_rollbacks` rollbacks in a row, from those of the configuration."""
    num_changes = num_rollbacks - rule.patience + 1
    if num_changes < 1:
        return settings
    rate = settings.learning_rate
    if rule.learning_rate_factor < 1.0:
        floor = rate * LOWEST_RATE if rule.learning_rate_floor is None else rule.learning_rate_floor
        rate = min(rate, max(floor, rate * rule.learning_rate_factor**num_changes))
    share = rule.length_factor**num_changes
    temperatures = rule.temperatures[:num_changes]
    return replace(
        settings,
        temperature=temperatures[-1] if temperatures else settings.temperature,
        learning_rate=rate,
        min_learning_rate=settings.min_learning_rate * (rate / settings.learning_rate),  # the cosine keeps its shape
        num_steps=_shorter(settings.num_steps, share),
        num_epochs=_shorter(settings.num_epochs, share),
        warmup_steps=int(settings.warmup_steps * share),
        data=rule.data or settings.data,
    )


def in_words(before: Adaptable, after: Adaptable, num_rollbacks: int) -> str | None:
    """What was changed and why, in one line; None if nothing was."""
    changes = [
        f"{field.name} {_shown(getattr(before, field.name))} -> {_shown(getattr(after, field.name))}"
        for field in fields(before)
        if getattr(before, field.name) != getattr(after, field.name)
    ]
    if not changes:
        return None
    return f"after {num_rollbacks} rollback{'s' if num_rollbacks > 1 else ''} in a row: {', '.join(changes)}"


def _shorter(length: int | None, share: float) -> int | None:
    return None if length is None else max(1, round(length * share))


def _shown(value: object) -> str:
    if isinstance(value, DataPolicy):
        options = value.model_dump(exclude_defaults=True, exclude={"type"})
        words = ", ".join(f"{name} {_shown(option)}" for name, option in options.items())
        return f"{value.type} ({words})" if words else value.type
    return f"{value:g}" if isinstance(value, float) else str(value)
