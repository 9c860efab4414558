"""The fields of a problem's JSON object, each refused by name and place where it is not what it should be."""

from __future__ import annotations

from typing import Any

from loop.errors import ConfigError
from loop.words import shown


def _need(row: dict[str, Any], keys: tuple[str, ...], form: str, where: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}; a {form} problem has {', '.join(keys)}")


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        found = "blank" if isinstance(value, str) else _json_type(value)
        raise ConfigError(f"{where}: {key} is {found}; expected a string with text")
    return value


def _texts(row: dict[str, Any], key: str, where: str) -> list[str]:
    value = row[key]
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ConfigError(f"{where}: {key} is not a list of strings with text; write one test or statement per string")
    return list(value)


def _identifier(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.isidentifier():
        raise ConfigError(f"{where}: {key} is {shown(value)}; expected the name of a function")
    return value


def _task_id(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {key} is {shown(value)}; expected a string or a whole number")
    return value


def _difficulty(row: dict[str, Any], where: str) -> str | None:
    value = row.get("difficulty")
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: difficulty is {shown(value)}; expected a word such as easy, or no such key")
    return value


def _date(row: dict[str, Any]) -> str | None:
    value = row.get("date", row.get("contest_date"))
    return value if isinstance(value, str) and value.strip() else None


def _reference(row: dict[str, Any], key: str, before: str = "") -> str | None:
    value = row.get(key)
    return before + value if isinstance(value, str) and value.strip() else None


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
