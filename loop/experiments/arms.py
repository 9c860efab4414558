"""The arms of an experiment: what each changes of the base configuration. A list where loop.toml takes none is a grid."""

from __future__ import annotations

import itertools
import json
import math
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
_NOT_AN_ARMS = {"seed": "seeds", "rounds": "rounds", "run_dir": "directory"}  # keys of loop.toml and who has them here


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of running rounds. `overrides`: what it changes, as in the file, with one value of each grid."""

    name: str
    overrides: Mapping[str, Any]
    index: int  # among the file's [[arms]]


def arms_of(tables: Sequence[Mapping[str, Any]], file: TomlFile, base: TomlFile) -> Iterator[Arm]:
    """Every arm of the file's [[arms]], a grid's one by one. ConfigError with a line for each mistake in the file."""
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
                ((*where, key), f"is not an arm's to change; it is the experiment's `{whose}`")
                for key, whose in _NOT_AN_ARMS.items()
                if key in overrides
            ]
        )
        file.refuse(_suite_name_mistakes(where, overrides, base.tables))
        axes = list(_axes(overrides))
        file.refuse([((*where, *key), "is an empty list; give the values of the grid") for key, vs in axes if not vs])
        num = math.prod(len(values) for _, values in axes)
        if num > MOST_ARMS:
            file.refuse([(where, f"is a grid of {num} arms; stay at or below {MOST_ARMS}")])
        for picked in itertools.product(*(whole for _, whole in axes)):
            chosen = json.loads(json.dumps(overrides, default=str)) if axes else overrides
            for (key, _), value in zip(axes, picked, strict=True):
                table_of_key = chosen
                for part in key[:-1]:
                    table_of_key = table_of_key[part]
                table_of_key[key[-1]] = value
            labels = [_label(value, whole) for value, (_, whole) in zip(picked, axes, strict=True)]
            yield Arm("-".join([str(name), *labels]), chosen, index)


def _axes(table: Mapping[str, Any], key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """The lists that stand where loop.toml takes none: each is the values of a grid."""
    for name, value in table.items():
        path = (*key, name)
        if isinstance(value, Mapping):
            yield from _axes(value, path)
        elif isinstance(value, list) and not takes_a_list(Config, _in_config(path)):
            yield path, value


def _in_config(key: KeyPath) -> KeyPath:
    """Where the schema of loop.toml has a key of an arm: a suite is named there by its place."""
    return ("suites", 0, *key[2:]) if key[0] == "suites" and len(key) > 1 else key


def _label(value: Any, axis: Sequence[Any] = ()) -> str:
    """A value of a grid as part of a name; a table with a type of its own among the others' by just that."""
    if isinstance(value, Mapping):
        types = [one.get("type") if isinstance(one, Mapping) else None for one in axis]
        if types.count(value.get("type")) == 1 and "type" in value:
            return _label(value["type"])
        return "-".join(_label(entry) for _, entry in sorted(value.items(), key=lambda one: one[0] != "type")) or "none"
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:40] or "none"


def _suite_name_mistakes(where: KeyPath, overrides: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[Mistake]:
    suites, named = base.get("suites"), overrides.get("suites")
    if not isinstance(named, Mapping) or not isinstance(suites, list):
        return
    there = [suite.get("name") for suite in suites if isinstance(suite, Mapping)]
    for name, changes in named.items():
        if name not in there:
            yield (
                (*where, "suites", name),
                f"is no suite of the base configuration; there: {', '.join(map(str, there))}",
            )
        elif not isinstance(changes, Mapping):
            yield (*where, "suites", name), "is not a table; give the keys of this suite that change"


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the arm's keys. A table is merged key by key, one with a `type` is taken as it is."""
    whole = dict(base)
    for name, value in overrides.items():
        old = base.get(name)
        if isinstance(value, Mapping) and "type" not in value:
            if isinstance(old, Mapping):
                whole[name] = merged(old, value)
                continue
            if isinstance(old, list) and name == "suites":
                whole[name] = [merged(suite, value.get(suite.get("name"), {})) for suite in old]
                continue
        whole[name] = value
    return whole


def placed(arm: Arm, key: KeyPath, problem: str, file: TomlFile, base: TomlFile) -> Placed:
    """Where a mistake in an arm's whole configuration stands: in the arm if it gives the key, else in the base's file."""
    theirs: KeyPath = key
    if len(key) > 1 and key[0] == "suites" and isinstance(arm.overrides.get("suites"), Mapping):
        suites = base.tables.get("suites", [])
        name = suites[key[1]].get("name") if isinstance(key[1], int) and key[1] < len(suites) else key[1]
        theirs = ("suites", str(name), *key[2:])
    value: Any = arm.overrides
    for part in theirs:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Mapping) and "type" not in value:
            return base.at(key, problem)
        else:
            break
    return file.at(("arms", arm.index, *theirs), problem)
