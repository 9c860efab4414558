"""What Datasette shows of a store: `python -m store.datasette > docs/datasette.yaml`, or with the name of another database.

Words come from the schema's own comments, queries from docs/looking-in.md. Datasette itself is not needed here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from store.migrations import FULL_TEXT
from store.records import Json
from store.schema import described

PAGE = Path(__file__).resolve().parents[1] / "docs" / "looking-in.md"
_QUERY = re.compile(
    r"^## (?P<title>[^\n]+) \((?P<name>\w+)\)\n\n(?P<words>.+?)\n\n```sql\n(?P<sql>.+?)\n```$", re.M | re.S
)

# What a page of rows begins with, and what is counted beside it. What is not named is shown as it comes.
TABLES: dict[str, Json] = {
    "corpus": {
        "sort_desc": "arrival",
        "sortable_columns": ["arrival", "round", "num_tokens", "logprob_sum", "prompt"],
        "facets": ["round", "used", "finish_reason"],
        "fts_table": FULL_TEXT,
        "fts_pk": "arrival",
    },
    "round_results": {
        "sort_desc": "round",
        "sortable_columns": ["round", "num_attempts"],
        "facets": ["state", "verdict"],
    },
    "evaluation_results": {
        "sort_desc": "round",
        "sortable_columns": ["round", "num_passed", "num_timeouts", "num_no_code"],
        "facets": ["suite_name", "split"],
    },
    "completions": {"sort_desc": "arrival", "facets": ["round", "finish_reason"], "fts_table": FULL_TEXT, "size": 20},
    "rounds": {"sort_desc": "number", "facets": ["state"]},
    "stages": {"sort_desc": "started_at", "facets": ["name"]},
    "attempts": {"sort_desc": "started_at", "facets": ["stage", "error"]},
    "events": {"sort_desc": "seq", "facets": ["kind", "stage"]},
    "decisions": {"sort_desc": "round", "facets": ["verdict", "action"]},
    "evaluations": {"sort_desc": "created_at", "facets": ["suite_name", "split"]},
    "verdicts": {"facets": ["verdict", "sandbox"]},
    "selections": {"facets": ["round", "used", "reason"]},
    "test_results": {"facets": ["verdict"]},
    "checkpoints": {"sort_desc": "round", "facets": ["state", "kind"]},
    "prompts": {"label_column": "name", "facets": ["source"]},
    "problems": {"sort": "position", "facets": ["split", "difficulty"]},
    "suites": {"label_column": "name"},
    "runs": {"label_column": "name"},
    "decode_settings": {"label_column": "settings"},
    "schema_migrations": {"hidden": True},
    "probe_results": {"hidden": True},
    FULL_TEXT: {"hidden": True},
}


class Query(NamedTuple):
    """One query of docs/looking-in.md."""

    name: str
    title: str
    words: str
    sql: str


def queries() -> list[Query]:
    """The queries of the page, in order."""
    found = _QUERY.finditer(PAGE.read_text(encoding="utf-8"))
    return [Query(one["name"], one["title"], " ".join(one["words"].split()), one["sql"]) for one in found]


def metadata(database: str = "loop") -> Json:
    """Datasette's metadata for a store that is called `database`.db."""
    tables = {
        one.name: {"description": one.words}
        | TABLES.get(one.name, {})
        | ({"columns": {column.name: column.words for column in one.columns}} if one.columns else {})
        for one in described()
    }
    canned = {one.name: {"title": one.title, "description": one.words, "sql": one.sql} for one in queries()}
    return {
        "title": "A run of self-distillation",
        "description": "What was sampled, measured and decided. Read-only; begin with the views and the queries.",
        "databases": {database: {"tables": tables, "queries": canned}},
    }


def as_yaml(value: Json, indent: int = 0) -> Iterator[str]:
    """Lines of YAML: blocks for mappings and long texts, JSON, which YAML contains, for the rest."""
    margin = "  " * indent
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{margin}{key}:"
            yield from as_yaml(inner, indent + 1)
        elif isinstance(inner, str) and "\n" in inner:
            yield f"{margin}{key}: |-"
            yield from (f"{margin}  {line}" for line in inner.splitlines())
        else:
            yield f"{margin}{key}: {json.dumps(inner, ensure_ascii=False)}"


if __name__ == "__main__":
    print("# Made by `python -m store.datasette` from the schema's comments and docs/looking-in.md; edit those.")
    print("\n".join(as_yaml(metadata(*sys.argv[1:2]))))
