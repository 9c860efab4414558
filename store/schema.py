"""The schema in words, from the comments in the migrations: `python -m store.schema > docs/schema.md`."""

from __future__ import annotations

import re

from store.db import Database, migrate
from store.migrations import APPEND_ONLY

_OPENING = """# The store

Made from the comments in `store/migrations.py` by `python -m store.schema`; edit those.

`loop.db` is SQLite in WAL mode. `NULL` means "none" or "not yet". Times are RFC 3339 UTC; hashes are SHA-256 in hex, of
canonical JSON where a value is hashed (keys sorted, no spaces, UTF-8). A NUL or a lone surrogate in any text is stored
as U+241B (␛) and four hex digits, and that symbol itself as `␛241b`.
"""
_COLUMN = re.compile(
    r"^\s+(?P<name>[a-z][a-z0-9_]*) (?P<type>TEXT|INTEGER|REAL|BLOB)\b(?P<rest>.*?),? -- (?P<words>.+)$", re.DOTALL
)
_HEAD = re.compile(r"^CREATE (?:TABLE|VIEW) \S+ (?:\(|AS) -- (?P<words>.+)$", re.MULTILINE)


def schema_markdown() -> str:
    """docs/schema.md, whole."""
    db = Database(memory=True)
    migrate(db)
    parts = [_OPENING]
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_schema WHERE type IN ('table', 'view')"):
        if name.startswith("sqlite_"):
            continue
        head = _HEAD.search(sql)
        assert head, f"{name}: says nothing of itself"
        note = " Rows are never changed or deleted." if name in APPEND_ONLY else ""
        parts.append(f"## {name}{' (view)' * (kind == 'view')}\n\n{head['words']}{note}\n")
        if kind == "table":
            parts.append(_columns(name, sql, {row[1] for row in db.execute(f"PRAGMA table_info({name})")}))
    return "\n".join(parts)


def _columns(table: str, sql: str, expected: set[str]) -> str:
    lines = ["| column | type | |", "|---|---|---|"]
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
        lines.append(f"| `{column['name']}` | {column['type'].lower()}{required} | {words} |")
        definition = ""
    assert not expected, f"{table}: {sorted(expected)} have no comment"
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(schema_markdown(), end="")
