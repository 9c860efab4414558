"""The page that shows what was taken of a repository, what was left out, and why."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}td,th{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #ddd;"
    "vertical-align:top;overflow-wrap:anywhere}td.n{text-align:right;white-space:nowrap}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}}"
)


def page_of(facts: dict[str, Any]) -> str:
    """One page of HTML without anything from elsewhere, from what stands in suite.json."""
    files = Counter(row["file"] for row in facts["problems"])
    left_out: dict[str, list[str]] = {}
    for name, reason in facts["left_out"].items():
        left_out.setdefault(reason.partition(":")[0], []).append(
            f"{name}{reason[reason.find(':') :] if ':' in reason else ''}"
        )
    commit = f" at {facts['commit'][:12]}" if facts["commit"] else ""
    parts = [
        f"<h1>{escape(facts['name'])}{commit}</h1>",
        f"<p>{facts['num_problems']:,} of {facts['num_functions']:,} functions are problems, {facts['num_apart']:,} of them graded apart; "
        f"{facts['num_prompts']:,} are prompts, {facts['num_prompts_with_tests']:,} of them with tests. {facts['num_tests']:,} tests pass each "
        f"time, in {facts['tests_s']:g} s; {len(facts['tests_left_out']):,} are left out. Made in {facts['seconds']:g} s with Python "
        f"{escape(facts['environment']['version'])}; environment {facts['environment_sha256'][:12]}, tree {facts['tree_sha256'][:12]}.</p>",
        "<h2>Problems by file</h2>",
        _table(("file", "problems"), [(name, f"{num:,}") for name, num in files.most_common()]),
        "<h2>Problems</h2>",
        _table(
            ("problem", "level", "tests", "seconds"),
            [
                (row["task_id"], row["level"], f"{row['num_tests']:,}", f"{row['duration_s']:.3f}")
                for row in facts["problems"]
            ],
        ),
        "<h2>Functions that were left out</h2>",
        *(
            f"<details><summary>{escape(reason)} ({len(names):,})</summary>{_table(('function',), [(name,) for name in names])}</details>"
            for reason, names in sorted(left_out.items(), key=lambda pair: -len(pair[1]))
        ),
        "<h2>Tests that were left out</h2>",
        _table(("test", "why"), list(facts["tests_left_out"].items())),
    ]
    if facts["broken_files"]:
        parts += ["<h2>Files that could not be read</h2>", _table(("file", "why"), list(facts["broken_files"].items()))]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(facts['name'])}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en>{head}<body>{''.join(parts)}</body></html>\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "<p>none</p>"
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    cells = (
        "".join(f"<td{' class=n' if number else ''}>{escape(cell)}</td>" for number, cell in enumerate(row))
        for row in rows
    )
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
