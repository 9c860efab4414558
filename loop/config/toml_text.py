"""Tables as TOML: what `tomllib` reads back as the same tables. Without comments; for files that the program writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(tables: Mapping[str, Any]) -> str:
    """A TOML document. Values are strings, numbers, booleans, lists and tables; TypeError for anything else.

    A key whose value is None is left out: a file does not name what is not set.
    """
    lines = _pairs({name: value for name, value in tables.items() if not _has_header(value)})
    for name, value in tables.items():
        for table in [value] if isinstance(value, Mapping) else value if _has_header(value) else []:
            header = f"[{_key(name)}]" if isinstance(value, Mapping) else f"[[{_key(name)}]]"
            lines += ["", header, *_pairs(table)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _has_header(value: Any) -> bool:
    """Whether a value of the top level gets [headers] of its own."""
    tables = isinstance(value, Sequence) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
    return isinstance(value, Mapping) or tables


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {toml_value(value)}" for name, value in table.items() if value is not None]


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_value(value: Any) -> str:
    """One value as it stands behind a key."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # inf and nan are written so in TOML, too
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        entries = ", ".join(_pairs(value))
        return f"{{ {entries} }}" if entries else "{}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(toml_value, value))}]"
    raise TypeError(f"TOML has no {type(value).__name__}")
