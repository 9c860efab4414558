"""What pydantic finds wrong with a file of ours, in our words. Limits and purposes come from the models' own JSON schema."""

from __future__ import annotations

import datetime
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from loop.config.section import NAME_WORDS, Mistake
from loop.config.toml_file import leaves
from loop.config.toml_lines import KeyPath
from loop.words import shown
from policies.by_type import BadPolicy
from policies.mistakes import dotted

MOST = 2**53  # the same number in JSON, in SQLite and in a browser
MOST_COUNTED = 2**31 - 1  # of tokens, rows, threads: what libraries take


def model_mistakes(model: type[BaseModel], tables: dict[str, Any], text: str) -> dict[KeyPath, str]:
    """Every mistake by its key, the first one of each key. `text`: the tables as JSON."""
    mistakes: dict[KeyPath, str] = {}
    schema = Schema(model)
    for key, value in leaves(tables):
        if isinstance(value, datetime.date | datetime.time):
            mistakes[key] = f"{value} is a date or time; no key takes one (text stands in quotes)"
        elif isinstance(value, int) and (wanted := schema.nearer_to_zero(key, value)):
            mistakes[key] = f"{shown(value)} is out of all range; give {wanted}"
    try:
        model.model_validate_json(text)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            for key, problem in _explain(dict(details), tables, schema):
                mistakes.setdefault(key, problem)
    return mistakes


def takes_a_list(model: type[BaseModel], key: KeyPath) -> bool:
    """Whether the value of this key may be a list."""
    node = Schema(model).at(key)
    return "array" in [node.get("type"), *(option.get("type") for option in node.get("anyOf", []))]


def _explain(details: dict[str, Any], tables: Any, schema: Schema) -> Iterator[Mistake]:
    """Our words for one of pydantic's errors: usually one mistake, several for a check of ours that found several."""
    kind, context = details["type"], details.get("ctx", {})
    key, value = _in_file(details["loc"], tables)
    if kind == "default_factory_not_called":
        return  # because of another key of the table, which has an error of its own
    if kind == "mistakes":
        yield from (((*key, *rest), problem) for rest, problem in context["mistakes"])
    elif kind == "missing":
        key = (*key, str(details["loc"][-1]))
        yield key, f"is missing; {schema.purpose(key)}"
    elif kind == "extra_forbidden":
        yield key, _unknown(key, schema)
    elif kind == "value_error" and isinstance(context["error"], BadPolicy):
        yield (*key, *context["error"].path), context["error"].problem
    elif kind == "value_error":
        yield key, str(context["error"])
    elif details["loc"][-1] == "[key]":
        yield key, f"unknown key; it can be {_quoted(schema.at(key[:-1])['propertyNames']['enum'])}"
    elif kind == "too_short":
        if not value:  # else its entries are at fault, and pydantic counts those that are left
            yield key, f"is empty; give at least one entry, {schema.wanted(key)}"
    else:
        yield key, _wrong_value(kind, key, value, schema)


def _wrong_value(kind: str, key: KeyPath, value: Any, schema: Schema) -> str:
    wanted = schema.wanted(key)
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        if key[-1] == "temperature" and value == 0:
            if key[0] == "suites":
                return "0 is not a temperature; for always taking the most likely token a suite has greedy = true"
            return "0 is not a temperature; the training data is always sampled, so give one above 0, such as 1.2"
        low, high = schema.limits(key)
        if low is not None and high is not None:
            return f"{shown(value)} is not between {low:g} and {high:g}; give {wanted}"
        return f"{shown(value)} is too {'small' if kind.startswith('greater') else 'large'}; give {wanted}"
    if kind == "finite_number":
        return f"{shown(value)} is not a finite number; give {wanted}"
    if kind == "string_pattern_mismatch":
        return f"{shown(value)} is not a name; use {NAME_WORDS}"
    if kind == "literal_error":
        return f"{shown(value)} is unknown; give {wanted}"
    if isinstance(value, dict) and wanted == "a list of tables":
        return f"is a single table; write {_header((*key, 0))} with double brackets"
    if isinstance(value, list) and wanted == "a table":
        return f"is a list; write {_header(key)} with single brackets, once"
    if isinstance(value, list | dict):
        return f"is {'a list' if isinstance(value, list) else 'a table'}; give {wanted}"
    if isinstance(value, str):
        return f"{shown(value)} is text; give {wanted}"
    possible = re.match(r"a whole number|a number|text|true or false|a list|a table", wanted)
    return f"{shown(value)} is not {possible[0] if possible else 'one of the possible values'}; give {wanted}"


def _unknown(key: KeyPath, schema: Schema) -> str:
    name, table = str(key[-1]), key[:-1]
    keys_here = schema.keys(table)
    elsewhere = [header for header, keys in schema.tables().items() if name in keys]
    if table and name in schema.keys(()):
        return f"unknown key here; {name} is a key above the first [table]"
    if elsewhere:
        return f"unknown key here; it is a key of {' and '.join(elsewhere)}"
    if close := difflib.get_close_matches(name, keys_here, n=1):
        return f"unknown key; the closest is {close[0]}"
    return f"unknown key; {_header(table)} has {', '.join(keys_here)}"


def _in_file(location: tuple[Any, ...], tables: Any) -> tuple[KeyPath, Any]:
    """The part of pydantic's location that is in the file (its marks for unions are not), and the value there."""
    key: KeyPath = ()
    value = tables
    for part in location:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if not inside:
            break
        key, value = (*key, part), value[part]
    return key, value


class Schema:
    """What the pydantic models say about a key, in words, taken from their JSON schema."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root = model.model_json_schema()

    def at(self, key: KeyPath) -> dict[str, Any]:
        """The schema of a key, its description included; {} where anything goes."""
        node = self.root
        for part in key:
            node = self._resolve(node)
            if isinstance(part, int):
                node = node.get("items", {})
            else:
                node = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
            node = node if isinstance(node, dict) else {}
        return self._resolve(node)

    def _resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        options = [option for option in node.get("anyOf", []) if option != {"type": "null"}]
        if len(options) == 1:
            node = {**options[0], **{name: value for name, value in node.items() if name != "anyOf"}}
        if "$ref" in node:
            node = {**self.root["$defs"][node["$ref"].rsplit("/", 1)[1]], **node}
        return node

    def keys(self, table: KeyPath) -> list[str]:
        return list(self.at(table).get("properties", {}))

    def tables(self) -> dict[str, list[str]]:
        """The header of each table and its keys."""
        keys: list[KeyPath] = [(name,) for name in self.keys(())]
        paths = [path for key in keys for path in (key, (*key, 0), (*key, "lora")) if self.keys(path)]
        return {_header(path): self.keys(path) for path in paths}

    def purpose(self, key: KeyPath) -> str:
        """What to write for a key that is missing."""
        node = self.at(key)
        if "properties" in node:
            return f"add a table {_header(key)}"
        if node.get("type") == "array":
            return f"add a table [[{dotted(key)}]]"
        text = str(node.get("description", "add it")).rstrip(".")
        return text[:1].lower() + text[1:]

    def limits(self, key: KeyPath) -> tuple[float | None, float | None]:
        node = self.at(key)
        low, high = node.get("minimum"), node.get("maximum")
        return node.get("exclusiveMinimum", low), node.get("exclusiveMaximum", high)

    def nearer_to_zero(self, key: KeyPath, value: int) -> str | None:
        """What to write in place of a whole number that is beyond all use, at a key that names no limit of its own."""
        node = self.at(key)
        kind = node.get("type", "number")  # the schema says nothing about the keys of a policy
        counts = kind == "integer" and not str(key[-1]).endswith("_bytes")
        most = MOST_COUNTED if counts else MOST
        if kind not in ("integer", "number") or abs(value) <= most or self.limits(key)[value > 0] is not None:
            return None
        return _number({**node, "type": kind, **({"maximum": most} if value > 0 else {"minimum": -most})})

    def wanted(self, key: KeyPath) -> str:
        """The values that a key takes, with their limits."""
        return self._wanted(self.at(key))

    def _wanted(self, node: dict[str, Any]) -> str:
        node = self._resolve(node)
        options = [option for option in node.get("anyOf", []) if option != {"type": "null"}]
        if options:
            return " or ".join(self._wanted(option) for option in options)
        if "const" in node:
            return json.dumps(node["const"])
        if "enum" in node:
            return _quoted(node["enum"])
        kind = node.get("type")
        if kind in ("integer", "number"):
            return _number(node)
        if kind == "array":
            entry = self._resolve(node.get("items", {}))
            entries = {"string": "texts in quotes", "integer": "whole numbers", "number": "numbers", "object": "tables"}
            return f"a list of {_quoted(entry['enum']) if 'enum' in entry else entries.get(entry.get('type', ''), 'values')}"
        return {"string": "text in quotes", "boolean": "true or false", "object": "a table"}.get(kind or "", "a value")


def _number(node: Mapping[str, Any]) -> str:
    """A number and its limits, such as "a number above 0 and at most 10"."""
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if node["type"] == "integer" and above is not None:
        low, above = above + 1, None
    limits = [
        f"{words} {limit if isinstance(limit, int) else format(limit, '.10g')}"
        for words, limit in (("above", above), ("at least", low), ("below", below), ("at most", high))
        if limit is not None
    ]
    name = "a whole number" if node["type"] == "integer" else "a number"
    return f"{name} {'of ' if limits[0].startswith('at') else ''}{' and '.join(limits)}" if limits else name


def _header(table: KeyPath) -> str:
    """What a table is called: [training.lora], [[suites]], the top level."""
    if not table:
        return "the top level"
    name = dotted(tuple(part for part in table if isinstance(part, str)))
    return f"[[{name}]]" if isinstance(table[-1], int) else f"[{name}]"


def _quoted(values: list[Any]) -> str:
    words = [json.dumps(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
