"""The fields of a problem's JSON object, each refused by name and place where it is not what it should be."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from loop.errors import ConfigError
from loop.words import shown


def require(row: dict[str, Any], keys: tuple[str, ...], name: str, where: str) -> None:
    """Raise ConfigError if the row lacks one of the keys that the format of this name needs."""
    missing = [key for key in keys if key not in row]
    if missing:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}; a {name} problem has {', '.join(keys)}")


def text(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        actual = "blank" if isinstance(value, str) else json_type(value)
        raise ConfigError(f"{where}: {key} is {actual}; expected a string with text")
    return value


def texts(row: dict[str, Any], key: str, where: str) -> list[str]:
    value = row[key]
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ConfigError(f"{where}: {key} is not a list of strings with text; write one test or statement per string")
    return list(value)


def identifier(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.isidentifier():
        raise ConfigError(f"{where}: {key} is {shown(value)}; expected the name of a function")
    return value


def task_id(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {key} is {shown(value)}; expected a string or a whole number")
    return value


def named_by(question: str) -> str:
    """The id of a row without any: a hash of what it asks."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def difficulty(row: dict[str, Any], where: str) -> str | None:
    value = row.get("difficulty")
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: difficulty is {shown(value)}; expected a word such as easy, or no such key")
    return value


def date(row: dict[str, Any]) -> str | None:
    """When the problem was published, as the row has it; whatever is no text counts as missing."""
    value = row.get("date", row.get("contest_date"))
    return value if isinstance(value, str) and value.strip() else None


def reference(row: dict[str, Any], key: str, before: str = "") -> str | None:
    """The reference solution, with the code `before` that it continues; whatever is no text counts as missing."""
    value = row.get(key)
    return before + value if isinstance(value, str) and value.strip() else None


def refuse_numpy(test: str, where: str) -> None:
    """The plus suites' other form holds its tests as code that computes with numpy, which no sandbox has."""
    if re.search(r"^\s*(?:import|from)\s+numpy\b", test, re.MULTILINE):
        files = "EvalPlus' own files (HumanEvalPlus.jsonl.gz, MbppPlus.jsonl.gz), which have base_input and plus_input"
        raise ConfigError(
            f"{where}: test imports numpy, which tests do not have; for HumanEval+ and MBPP+ take {files}"
        )


def json_type(value: Any) -> str:
    """The type of a JSON value in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
