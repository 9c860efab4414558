"""The arms of an experiment: what each changes of the base configuration. A list where loop.toml takes none is a grid."""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loop.config.mistakes import takes_a_list
from loop.config.section import NAME, NAME_WORDS, Mistake
from loop.config.settings import Config
from loop.config.toml_file import Placed, TomlFile
from loop.config.toml_lines import KeyPath

MOST_ARMS = 500
_SET_BY_THE_EXPERIMENT = {"seed": "seeds", "rounds": "rounds", "run_dir": "directory"}  # keys of loop.toml: theirs here


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of running rounds. `overrides`: the keys that it changes, with one value of each grid; `index`: its [[arms]]."""

    name: str
    overrides: Mapping[str, Any]
    index: int


def arms_of(tables: Sequence[Mapping[str, Any]], file: TomlFile, base: TomlFile) -> Iterator[Arm]:
    """Every arm of the file's [[arms]]; a grid gives several. ConfigError with a line for each mistake in the file."""
    for index, table in enumerate(tables):
        name = table.get("name")
        where: KeyPath = ("arms", index)
        if "name" not in table:
            file.refuse([(where, "has no name; give one")])
        if not isinstance(name, str) or not NAME.fullmatch(name):
            file.refuse([((*where, "name"), f"{json.dumps(name, default=str)} is not a name; use {NAME_WORDS}")])
        overrides = {key: value for key, value in table.items() if key != "name"}
        file.refuse(
            [
                ((*where, key), f"cannot differ between arms; set the experiment's `{instead}`")
                for key, instead in _SET_BY_THE_EXPERIMENT.items()
                if key in overrides
            ]
        )
        file.refuse(_suite_name_mistakes(where, overrides, base.tables))
        axes = list(_axes(overrides))
        file.refuse([((*where, *key), "is an empty list; give the values of the grid") for key, vs in axes if not vs])
        num = math.prod(len(values) for _, values in axes)
        if num > MOST_ARMS:
            file.refuse([(where, f"is a grid of {num} arms; stay at or below {MOST_ARMS}")])
        for picked in itertools.product(*(values for _, values in axes)):
            chosen = json.loads(json.dumps(overrides, default=str)) if axes else overrides
            for ((*parts, last), _), value in zip(axes, picked, strict=True):
                functools.reduce(operator.getitem, parts, chosen)[last] = value
            labels = [_label(value, values) for value, (_, values) in zip(picked, axes, strict=True)]
            yield Arm("-".join([str(name), *labels]), chosen, index)


def _axes(table: Mapping[str, Any], key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """The lists where loop.toml takes a single value: each holds the values of a grid."""
    for name, value in table.items():
        path = (*key, name)
        if isinstance(value, Mapping):
            yield from _axes(value, path)
        elif isinstance(value, list):
            # where an arm names a suite, the schema has a number
            in_config: KeyPath = ("suites", 0, *path[2:]) if key[:1] == ("suites",) else path
            if not takes_a_list(Config, in_config):
                yield path, value


def _label(value: Any, values: Sequence[Any] = ()) -> str:
    """A value of a grid as part of an arm's name; for a table its `type`, where no other of the grid's values has the same."""
    if isinstance(value, Mapping):
        types = [other.get("type") if isinstance(other, Mapping) else None for other in values]
        if types.count(value.get("type")) == 1 and "type" in value:
            return _label(value["type"])
        return "-".join(_label(value[key]) for key in sorted(value, key=lambda key: key != "type")) or "none"
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:40] or "none"


def _suite_name_mistakes(where: KeyPath, overrides: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[Mistake]:
    suites, named = base.get("suites"), overrides.get("suites")
    if not isinstance(named, Mapping) or not isinstance(suites, list):
        return
    names = [suite.get("name") for suite in suites if isinstance(suite, Mapping)]
    for name, changes in named.items():
        if name not in names:
            problem = f"is not a suite of the base configuration, which has: {', '.join(map(str, names))}"
            yield (*where, "suites", name), problem
        elif not isinstance(changes, Mapping):
            yield (*where, "suites", name), "is not a table; give the keys of this suite that change"


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the arm's keys. A table is merged key by key, but one with a `type` replaces the base's."""
    result = dict(base)
    for name, value in overrides.items():
        old, is_whole = base.get(name), not isinstance(value, Mapping) or "type" in value
        if isinstance(old, Mapping) and not is_whole:
            result[name] = merged(old, value)
        elif isinstance(old, list) and name == "suites" and not is_whole:
            result[name] = [merged(suite, value.get(suite.get("name"), {})) for suite in old]
        else:
            result[name] = value
    return result


def placed(arm: Arm, key: KeyPath, problem: str, file: TomlFile, base: TomlFile) -> Placed:
    """The place of a mistake in an arm's whole configuration: in the arm if it gives the key, else in the base's file."""
    arms_key: KeyPath = key
    if len(key) > 1 and key[0] == "suites" and isinstance(arm.overrides.get("suites"), Mapping):
        suites = base.tables.get("suites", [])
        name = suites[key[1]].get("name") if isinstance(key[1], int) and key[1] < len(suites) else key[1]
        arms_key = ("suites", str(name), *key[2:])
    value: Any = arm.overrides
    for part in arms_key:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Mapping) and "type" not in value:
            return base.at(key, problem)
        else:
            break
    return file.at(("arms", arm.index, *arms_key), problem)
