"""What every table of loop.toml is, and of what kind a key is: said where the key is declared, asked by `keys_of`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from loop.config.toml_lines import KeyPath

T = TypeVar("T")

Mistake = tuple[KeyPath, str]  # the key, relative to the table that is checked, and what is wrong with it

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME_WORDS = "letters, digits, '.', '_' and '-', beginning with a letter or digit"
HUB_NAME = re.compile(rf"{NAME.pattern}/[A-Za-z0-9._-]+")

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, slots=True)
class Kind:
    """The mark of a key. A key without one defines the run and may not change in it; a key of [engine] needs one."""

    name: Literal["operation", "cost", "sampling", "training", "private"]


Operation = Annotated[T, Kind("operation")]  # where the run lies, how long it continues, who is told: no result
Cost = Annotated[T, Kind("cost")]  # time and memory depend on it, results do not
ForSampling = Annotated[T, Kind("sampling")]  # of [engine]: completions depend on it, if only by rounding
ForTraining = Annotated[T, Kind("training")]  # of [engine]: weights depend on it, likewise
Private = Annotated[T, Kind("private")]  # it may say where somebody's machines are: no model card has it


def keys_of(table: type[BaseModel], *kinds: str) -> list[str]:
    """The keys of a table that are of one of these kinds."""
    return [
        key
        for key, field in table.model_fields.items()
        if any(isinstance(mark, Kind) and mark.name in kinds for mark in field.metadata)
    ]


class Section(BaseModel):
    """A table of loop.toml: unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def mistakes(self) -> Iterable[Mistake]:
        """What is wrong with how the keys go together."""
        return ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if mistakes := list(self.mistakes()):
            text = "; ".join(problem for _, problem in mistakes)
            raise PydanticCustomError("mistakes", "{text}", {"text": text, "mistakes": mistakes})
        return self
