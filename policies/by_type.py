"""Policies out of tables of loop.toml, chosen by their `type`: a registry for each kind, and mistakes in our words.

To add a type, name it in its registry: GATES in policies/gates/__init__.py, DATA_POLICIES in policies/data.py, STOP_RULES in
policies/stopping.py. A package of somebody else offers one in an entry point of the registry's group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from policies.mistakes import Path, dotted, first_mistake, shown

P = TypeVar("P", bound=BaseModel)


class BadPolicy(ValueError):
    """A policy's table is wrong: str() is one line, `path` the keys that lead there, `problem` the line without."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{dotted(path)}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


class Registry(Generic[P]):
    """The types of one kind of policy: subclasses of `base`. `example` is a table, for messages."""

    def __init__(self, base: type[P], group: str, example: str, *built_in: type[P]) -> None:
        self.base, self.group, self.example = base, group, example
        self.built_in: dict[str, type[P]] = {model.model_fields["type"].default: model for model in built_in}

    def build(self, table: object, where: Path = ()) -> P:
        """The policy of one table, which stands at `where`. BadPolicy for the first mistake."""
        if not isinstance(table, Mapping):
            raise BadPolicy(where, f"{shown(table)} is not a table; give one such as {self.example}")
        if "type" not in table:
            raise BadPolicy(where, f"type is missing; known types: {', '.join(self.built_in)}")
        model = self._model(table["type"], (*where, "type"))
        try:
            return model.model_validate_json(
                json.dumps(dict(table), default=str)
            )  # in JSON a list may stand for a tuple
        except ValidationError as error:
            path, problem = first_mistake(error)
            if problem == "unknown key":
                problem += f"; the keys of {table['type']!r} are {', '.join(model.model_fields)}"
            elif path and (field := model.model_fields.get(str(path[0]))) is not None and field.description:
                problem += f" ({field.description.rstrip('.')})"
            raise BadPolicy((*where, *path), problem) from None

    def _model(self, name: object, where: Path) -> type[P]:
        if isinstance(name, str) and name in self.built_in:
            return self.built_in[name]
        from importlib.metadata import entry_points  # 20 ms that a run with built-in policies does not spend

        offered = entry_points(group=self.group)
        named = [entry for entry in offered if entry.name == name]
        if not named:
            known = ", ".join([*self.built_in, *sorted({entry.name for entry in offered} - set(self.built_in))])
            raise BadPolicy(where, f"unknown type {shown(name)}; known types: {known}")
        if len(named) > 1:
            values = ", ".join(entry.value for entry in named)
            raise BadPolicy(where, f"{name!r} is offered more than once ({values}); uninstall all but one")
        try:
            model = named[0].load()
        except Exception as error:  # a stranger's module may raise anything while it is imported
            raise BadPolicy(where, f"{name!r} ({named[0].value}) cannot be loaded: {shown(str(error))}") from error
        if not (isinstance(model, type) and issubclass(model, self.base)):
            wanted = f"{self.base.__module__}.{self.base.__name__}"
            raise BadPolicy(where, f"{name!r} ({named[0].value}) is not a subclass of {wanted}")
        return model


def by_type(registry: Registry[P]) -> BeforeValidator:
    """For a field that takes a table with a type: `Annotated[SerializeAsAny[Gate], by_type(GATES)]`."""
    return BeforeValidator(
        lambda value: value if isinstance(value, registry.base) else registry.build(value),
        json_schema_input_type=dict[str, Any],  # the base's own keys are not all that a table may have
    )
