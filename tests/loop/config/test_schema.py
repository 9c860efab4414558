"""The schema of loop.toml: it takes every shipped configuration, and refuses what `config check` refuses for its form."""

from __future__ import annotations

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from loop.config.loading import config_mistakes
from loop.config.schema import schema
from tests.support import ROOT

SHIPPED = [ROOT / "loop.toml", *sorted((ROOT / "recipes").glob("*.toml"))]
BROKEN: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "an unknown table": (("sampler",), {}),
    "an unknown key": (("sampling", "temprature"), 1.0),
    "a text for a number": (("sampling", "temperature"), "1.2"),
    "a number out of range": (("sampling", "top_p"), 1.5),
    "a number below": (("rounds",), -1),
    "no choice": (("decide", "unclear"), "retry"),
    "a gate of no type": (("decide", "gates"), [{"alpha": 0.05}]),
    "a gate with another's key": (("decide", "gates"), [{"type": "collapse", "target_gain": 0.1}]),
    "a gate's value": (("decide", "gates"), [{"type": "improvement", "alpha": 2}]),
    "data of no type": (("collect", "data"), {"rounds": 3}),
    "a policy's value": (("collect", "data"), {"type": "window", "rounds": "three"}),
    "a suite without a name": (("suites",), [{"source": "first-steps"}]),
    "a list for a table": (("training",), []),
}


@pytest.fixture(scope="module")
def validator() -> Any:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_taken(path: Path, validator: Any) -> None:
    tables = tomllib.loads(path.read_text("utf-8"))
    assert [error.message for error in validator.iter_errors(tables)] == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_refused_for_its_form_is_refused(name: str, validator: Any) -> None:
    tables = copy.deepcopy(tomllib.loads((ROOT / "loop.toml").read_text("utf-8")))
    (*place, last), value = BROKEN[name]
    table: Any = tables
    for key in place:
        table = table.setdefault(key, {})
    table[last] = value
    assert config_mistakes(tables, json.dumps(tables)), "config check takes it"
    assert not validator.is_valid(tables)


def test_a_policy_of_another_package_is_left_to_config_check(validator: Any) -> None:
    tables = tomllib.loads((ROOT / "loop.toml").read_text("utf-8"))
    tables["decide"]["gates"] = [{"type": "somebody_elses", "key": 1}]
    assert validator.is_valid(tables)


def test_every_key_has_its_sentence(validator: Any) -> None:
    for name, part in validator.schema["$defs"].items():
        plain = {key: each for key, each in part["properties"].items() if not {"$ref", "anyOf"} & each.keys()}
        without = [key for key, each in plain.items() if "description" not in each and key != "type"]
        assert without == [], name
