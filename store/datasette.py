"""What Datasette shows of a store: `python -m store.datasette > docs/datasette.json`, or with the name of another database.

Words come from the schema's own comments, queries from docs/looking-in.md. Datasette itself is not needed here.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from store.migrations import FULL_TEXT
from store.records import Json
from store.schema_page import described

PAGE = Path(__file__).resolve().parents[1] / "docs" / "looking-in.md"
_QUERY = re.compile(
    r"^## (?P<title>[^\n]+) \((?P<name>\w+)\)\n\n(?P<words>.+?)\n\n```sql\n(?P<sql>.+?)\n```$", re.M | re.S
)

# How Datasette sorts each table and which facets it counts. Tables that are not named here are shown as they come.
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


def queries() -> dict[str, Json]:
    """The queries of the page by name, in order, as Datasette takes them."""
    return {
        match["name"]: {"title": match["title"], "description": " ".join(match["words"].split()), "sql": match["sql"]}
        for match in _QUERY.finditer(PAGE.read_text(encoding="utf-8"))
    }


def metadata(database: str = "loop") -> Json:
    """Datasette's metadata for a store that is called `database`.db."""
    tables = {
        table.name: {"description": table.words}
        | TABLES.get(table.name, {})
        | ({"columns": {name: words for name, _, words in table.columns}} if table.columns else {})
        for table in described()
    }
    return {
        "title": "A run of self-distillation",
        "description": "What was sampled, measured and decided. Read-only; begin with the views and the queries.",
        "databases": {database: {"tables": tables, "queries": queries()}},
    }


if __name__ == "__main__":
    print(json.dumps(metadata(*sys.argv[1:2]), indent=1, ensure_ascii=False))
