"""The JSON schema of loop.toml, for editors: every key with its sentence, every type of policy with its own keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from loop.config.settings import Config
from policies.by_type import Registry
from policies.data import DATA_POLICIES
from policies.gates import GATES
from policies.stopping import STOP_RULES

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """What a loop.toml may hold, as far as the form of one key says. That keys fit together, `loopctl config check` says."""
    made = Config.model_json_schema()
    parts = made["$defs"]
    for name in ("Collect", "AfterRollback"):
        _put(parts, parts[name]["properties"], "data", _policy(DATA_POLICIES, parts))
    parts["Decide"]["properties"]["gates"]["items"] = _policy(GATES, parts)
    parts["ScheduleTable"]["properties"]["stop"]["items"] = _policy(STOP_RULES, parts)
    return {"$schema": DIALECT, **made, "title": "loop.toml of ssd-loop"}


def _put(parts: dict[str, Any], properties: dict[str, Any], key: str, policy: dict[str, Any]) -> None:
    """Put a policy's schema in place of the plain table that stands for it, which may be one of several choices."""
    old = properties[key]
    kept = {word: old[word] for word in ("default", "description") if word in old}
    nothing = [choice for choice in old.get("anyOf", []) if choice.get("type") == "null"]
    properties[key] = {**kept, "anyOf": [policy, *nothing]} if nothing else {**kept, **policy}


def _policy(registry: Registry[Any], parts: dict[str, Any]) -> dict[str, Any]:
    """One of the registered types, each with its own keys; or a table whose type somebody else's package offers."""
    choices: list[dict[str, Any]] = [_of_type(name, model, parts) for name, model in registry.built_in.items()]
    other = {"properties": {"type": {"type": "string", "not": {"enum": list(registry.built_in)}}}}
    return {"type": "object", "required": ["type"], "anyOf": [*choices, other]}


def _of_type(name: str, model: type[BaseModel], parts: dict[str, Any]) -> dict[str, Any]:
    own = model.model_json_schema()
    parts.update(own.pop("$defs", {}))
    own["properties"]["type"] = {"const": name}
    return own
