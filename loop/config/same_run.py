"""When two configurations are the same run: the settings that define it, their hash, and in what two of them differ."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from loop.config.section import Section, keys_of
from loop.config.settings import Config
from loop.config.toml_file import leaves
from loop.config.toml_lines import KeyPath
from loop.words import shown
from policies.by_type import BadPolicy
from policies.gates import GATES
from policies.mistakes import dotted
from policies.policy import upgraded_gate
from store.canonical import sha256_of


def _may_change() -> Iterator[KeyPath]:
    marked = keys_of(Config, "operation", "cost")
    for name, field in Config.model_fields.items():
        if name in marked:
            yield (name,)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from ((name, key) for key in keys_of(field.annotation, "cost"))


# How long a run continues, where it is kept and what computes it. Anything else defines the run and may not change in it.
MAY_CHANGE = tuple(_may_change())


def resolved(config: Config) -> dict[str, Any]:
    """Every setting as plain JSON, defaults filled in, those of the gates too. It validates as a Config again."""
    return config.model_dump(mode="json")


def config_sha256(config: Config) -> str:
    """The hash of what defines the run: all but run_dir, rounds, schedule, engine and the rest of `MAY_CHANGE`."""
    return sha256_of(_defining(resolved(config)))


def with_stored_gates(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration for a run that began with these resolved settings: what the policy leaves out is as it was then.

    Defaults of gates and of decide.unclear change between versions; how a run decides does not change within it.
    """
    stored = [upgraded_gate(gate) for gate in settings["decide"]["gates"]]
    gates, given = config.decide.gates, [dict[str, Any]()] * len(stored)
    if "gates" in config.decide.model_fields_set:
        if [gate.type for gate in gates] != [gate["type"] for gate in stored]:
            return config  # another run, which `differences` says
        given = [gate.model_dump(mode="json", exclude_unset=True) for gate in gates]
    try:
        merged = tuple(GATES.build(before | now) for before, now in zip(stored, given, strict=True))
    except BadPolicy:
        return config  # likewise
    kept = {"gates": merged}
    if "unclear" not in config.decide.model_fields_set:
        kept["unclear"] = settings["decide"].get("unclear", "rollback")
    return config.model_copy(update={"decide": config.decide.model_copy(update=kept)})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each setting by which two resolved configurations are different runs. `old` is the run directory's."""
    before, now = dict(leaves(_defining(_completed(old)))), dict(leaves(_defining(new)))
    return [
        f"{dotted(key)} is {_setting(now, key)} here and {_setting(before, key)} in the run directory"
        for key in [*now, *(key for key in before if key not in now)]
        if key not in now or key not in before or before[key] != now[key]
    ]


def _completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that an older version began, with the defaults of the keys that came later.

    A table that this version no longer understands stays as it is: then that is where the difference lies.
    """
    whole = dict(settings)
    if isinstance(gates := whole.get("decide", {}).get("gates"), list):
        whole["decide"] = {"unclear": "rollback"} | whole["decide"] | {"gates": [upgraded_gate(gate) for gate in gates]}
    for name, described in Config.model_fields.items():
        if (name,) in MAY_CHANGE or (name not in settings and described.is_required()):
            continue
        table: TypeAdapter[Any] = TypeAdapter(described.annotation or object)
        with contextlib.suppress(ValueError):
            if name in settings:
                value = table.validate_json(json.dumps(whole[name]))
            else:
                value = described.get_default(call_default_factory=True, validated_data={})
            whole[name] = table.dump_python(value, mode="json")
    return whole


def _defining(settings: Mapping[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(settings))
    for path in MAY_CHANGE:
        table = copy
        for part in path[:-1]:
            table = table.get(str(part), {})
        table.pop(str(path[-1]), None)
    return copy


def _setting(settings: Mapping[KeyPath, Any], key: KeyPath) -> str:
    return shown(settings[key]) if settings.get(key) is not None else "not set"
