"""The schema in words, from the comments in the migrations: `python -m store.schema > docs/schema.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from store.db import Database, migrate
from store.migrations import APPEND_ONLY, FULL_TEXT

_OPENING = """# The store

Made from the comments in `store/migrations.py` by `python -m store.schema`; edit those.

`loop.db` is SQLite in WAL mode. `NULL` means "none" or "not yet". Times are RFC 3339 UTC; hashes are SHA-256 in hex, of
canonical JSON where a value is hashed (keys sorted, no spaces, UTF-8). A NUL or a lone surrogate in any text is stored
as U+241B (␛) and four hex digits, and that symbol itself as `␛241b`.
"""
_COLUMN = re.compile(
    r"^\s+(?P<name>[a-z][a-z0-9_]*) (?P<type>TEXT|INTEGER|REAL|BLOB)\b(?P<rest>.*?),? -- (?P<words>.+)$", re.DOTALL
)
_HEAD = re.compile(r"^CREATE (?:TABLE|VIEW|VIRTUAL TABLE) \S+ (?:\(|AS)? ?-- (?P<words>.+)$", re.MULTILINE)


class Column(NamedTuple):
    """A column in words. `type` says "or NULL" where it may be."""

    name: str
    type: str
    words: str


class Described(NamedTuple):
    """A table or view in words, from the comments in SQLite's own schema. Of a view the columns have none."""

    name: str
    kind: Literal["table", "view", "index"]
    words: str
    columns: list[Column]


def described() -> Iterator[Described]:
    """All that the newest schema has, in order. An "index" is the full-text one, which is a table to SQLite."""
    db = Database(memory=True)
    migrate(db)
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_schema WHERE type IN ('table', 'view')"):
        if name.startswith(("sqlite_", f"{FULL_TEXT}_")):
            continue
        head = _HEAD.search(sql)
        assert head, f"{name}: says nothing of itself"
        if name == FULL_TEXT:
            kind = "index"
        columns = {row[1] for row in db.execute(f"PRAGMA table_info({name})")}
        yield Described(name, kind, head["words"], list(_columns(name, sql, columns)) if kind == "table" else [])


def schema_markdown() -> str:
    """docs/schema.md, whole."""
    parts = [_OPENING]
    for one in described():
        note = " Rows are never changed or deleted." if one.name in APPEND_ONLY else ""
        parts.append(f"## {one.name}{' (view)' * (one.kind == 'view')}\n\n{one.words}{note}\n")
        if one.columns:
            rows = [f"| `{column.name}` | {column.type} | {column.words} |" for column in one.columns]
            parts.append("\n".join(["| column | type | |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _columns(table: str, sql: str, expected: set[str]) -> Iterator[Column]:
    definition = ""
    for line in sql.splitlines()[1:]:
        definition += line + "\n"
        if "--" not in line:
            continue
        column = _COLUMN.match(definition.rstrip())
        assert column, f"{table}: cannot read {definition!r}"
        expected.remove(column["name"])
        required = "" if "NOT NULL" in column["rest"] or "PRIMARY KEY" in column["rest"] else " or NULL"
        target = re.search(r"REFERENCES (\w+)", column["rest"])
        words = column["words"] + (f" → `{target[1]}`" if target else "")
        yield Column(column["name"], f"{column['type'].lower()}{required}", words)
        definition = ""
    assert not expected, f"{table}: {sorted(expected)} have no comment"


if __name__ == "__main__":
    print(schema_markdown(), end="")
