"""A policy out of a table of loop.toml, chosen by its `type`; mistakes in our words, with the keys that lead there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from policies.mistakes import Path, dotted, first_mistake, shown

M = TypeVar("M", bound=BaseModel)


def build(known: Mapping[str, type[M]], table: object, where: Path, example: str) -> M:
    """The policy of one table. `known`: type -> model; `example` shows what a table is. BadPolicy for the first mistake."""
    types = ", ".join(known)
    if not isinstance(table, Mapping):
        raise BadPolicy(where, f"{shown(table)} is not a table; give one such as {example}")
    if "type" not in table:
        raise BadPolicy(where, f"type is missing; known types: {types}")
    chosen: Any = table["type"]
    if not isinstance(chosen, str) or chosen not in known:
        raise BadPolicy((*where, "type"), f"unknown type {shown(chosen)}; known types: {types}")
    found = known[chosen]
    try:
        return found.model_validate(dict(table))
    except ValidationError as error:
        path, problem = first_mistake(error)
        if problem == "unknown key":
            problem += f"; the keys of {chosen!r} are {', '.join(found.model_fields)}"
        elif path and (field := found.model_fields.get(str(path[0]))) is not None and field.description:
            problem += f" ({field.description.rstrip('.')})"
        raise BadPolicy((*where, *path), problem) from None


class BadPolicy(ValueError):
    """A gate in loop.toml is wrong: str() is one line, `path` the keys that lead there, `problem` the line without."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{dotted(path)}: {problem}")
        self.path = path
        self.problem = problem
