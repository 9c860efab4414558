"""Writes docs/every-key.md from the models' own sentences: `python -m loop.config.page_of_keys > docs/every-key.md`.

No key is declared here: those of the method are in `settings.py`, those of the machine in `machine.py`, those of policies in
`policies/`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loop.config.mistakes import Schema
from loop.config.settings import Config
from loop.config.toml_text import toml_value
from policies.by_type import Registry
from policies.data import DATA_POLICIES
from policies.gates import GATES
from policies.gates.collapse import Limit
from policies.gates.drift import Bound
from policies.stopping import STOP_RULES

_OPENING = """# Every key of loop.toml

Made by `python -m loop.config.page_of_keys` from `loop/config/settings.py`, `loop/config/machine.py` and `policies/`; edit those.
`loopctl init` writes a file with the keys that matter most; `loopctl config check` names any mistake. "needed" has no default;
"none" is the default of a key that is left out.
"""
_REGISTRIES: dict[str, Registry[Any]] = {
    "collect.data, after_rollback.data": DATA_POLICIES,
    "schedule.stop": STOP_RULES,
    "decide.gates": GATES,
}


def keys_markdown() -> str:
    """docs/every-key.md, whole."""
    parts = [_OPENING, _table("Top level", Config)]
    for name, field in Config.model_fields.items():
        for table in tables_in(field.annotation):
            parts.append(_table(f"[[{name}]]" if name == "suites" else f"[{name}]", table))
            for key, inner in table.model_fields.items():
                inside = [each for each in tables_in(inner.annotation) if "type" not in each.model_fields]
                parts += [_table(f"[{name}.{key}]", inner_table) for inner_table in inside]
    parts.append("# Tables with a type\n")
    for place, registry in _REGISTRIES.items():
        common: set[str] = set()
        for type_name, table in registry.built_in.items():
            also = f" Keys beside those of {next(iter(registry.built_in))}:" if common else ""
            parts.append(_table(f"{place}: {type_name}", table, common, also))
            common = registry.base.model_fields.keys() - {"type"}
    parts.append(_table("Limits of a collapse gate, by signal", Limit))
    parts.append(_table("Limits of a drift gate, by signal", Bound))
    return "\n".join(parts)


def tables_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models in an annotation, in order; of policies chosen by type, every built-in one."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        types_of = {registry.base: registry.built_in.values() for registry in _REGISTRIES.values()}
        if issubclass(annotation, BaseModel):
            yield from types_of.get(annotation, [annotation])
        return
    for inner in typing.get_args(annotation):
        yield from tables_in(inner)


def _table(heading: str, table: type[BaseModel], left_out: Container[str] = (), also: str = "") -> str:
    words = " ".join((inspect.getdoc(table) or "").split()) + also
    schema = Schema(table)
    rows = [
        _row(key, field, schema.wanted((key,)))
        for key, field in table.model_fields.items()
        if field.description and key not in left_out
    ]
    head = ["", "| key | takes | default | |", "|---|---|---|---|"] if rows else []
    return "\n".join([f"## {heading}", "", words, *head, *rows, ""])


def _row(key: str, field: FieldInfo, takes: str) -> str:
    default = "needed"
    if not field.is_required():
        value = field.get_default(call_default_factory=True, validated_data={})
        default = "none" if value is None else f"`{toml_value(_plain(value))}`"
    cells = [f"`{key}`", takes, default, field.description or ""]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(default: Any) -> Any:
    if isinstance(default, tuple):
        return [_plain(entry) for entry in default]
    if isinstance(default, BaseModel):
        return default.model_dump(include={"type"})
    return str(default) if isinstance(default, Path) else default


if __name__ == "__main__":
    print(keys_markdown(), end="")
