"""The schema in words, from the comments in the migrations: `python -m store.schema_page > docs/schema.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from store.db import Database, migrate
from store.migrations import APPEND_ONLY, FULL_TEXT

if TYPE_CHECKING:
    from sqlite_utils.db import Queryable, Table

_OPENING = """# The store

Made from the comments in `store/migrations.py` by `python -m store.schema_page`; edit those.

`loop.db` is SQLite in WAL mode. `NULL` means "none" or "not yet". Times are RFC 3339 UTC; hashes are SHA-256 in hex, of
canonical JSON where a value is hashed (keys sorted, no spaces, UTF-8). A NUL or a lone surrogate in any text is stored
as U+241B (␛) and four hex digits, and that symbol itself as `␛241b`.
"""


class Described(NamedTuple):
    """A table or view in words, from the comments in SQLite's own schema, which says nothing of a view's columns."""

    name: str
    kind: Literal["table", "view", "index"]
    words: str
    columns: list[tuple[str, str, str]]  # name, type, which ends with "or NULL" where a column may be that, and words


def described() -> Iterator[Described]:
    """All tables, then all views, of the newest schema. An "index" is the full-text one, which is a table to SQLite."""
    db = Database()
    migrate(db)
    tools = db.tools
    for name in tools.table_names():
        if name == FULL_TEXT:
            yield Described(name, "index", _comments(tools.table(name))[0], [])
        elif not name.startswith(f"{FULL_TEXT}_"):
            words, *of_columns = _comments(tools.table(name))
            yield Described(name, "table", words, list(_columns(tools.table(name), of_columns)))
    for view in tools.views:
        yield Described(view.name, "view", _comments(view)[0], [])


def schema_markdown() -> str:
    """docs/schema.md, whole."""
    parts = [_OPENING]
    for table in described():
        note = " Rows are never changed or deleted." if table.name in APPEND_ONLY else ""
        parts.append(f"## {table.name}{' (view)' * (table.kind == 'view')}\n\n{table.words}{note}\n")
        if table.columns:
            rows = [f"| `{name}` | {type} | {words} |" for name, type, words in table.columns]
            parts.append("\n".join(["| column | type | |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _comments(table: Queryable) -> list[str]:
    """The comments in its definition: the first is on all of it, then comes one for each column of a table."""
    return re.findall(r"-- (.+?)(?: \*/|$)", table.schema, re.MULTILINE)


def _columns(table: Table, comments: list[str]) -> Iterator[tuple[str, str, str]]:
    targets = {key.column: key.other_table for key in table.foreign_keys}
    for column, words in zip(table.columns, comments, strict=True):
        required = "" if column.notnull or column.is_pk else " or NULL"
        target = targets.get(column.name)
        yield column.name, column.type.lower() + required, words + (f" → `{target}`" if target else "")


if __name__ == "__main__":
    print(schema_markdown(), end="")
