"""The store in Datasette itself, and the exported corpus in `datasets`: what docs/looking-in.md says."""

from __future__ import annotations

import asyncio
import html
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from store import datasette
from store.corpus import Corpus
from store.datasette import metadata, queries
from store.db import open_database, query, scalar
from store.ledger import Ledger
from store.records import DECIDED, Completion
from tests.support.cli import Loopctl, call, environment, finished

__all__ = ["call", "finished"]
from tests.support import ROOT

HOSTILE = (
    "<script>alert(1)</script>\n</textarea><img src=x onerror=alert(2)> \"quoted\" 'single' & \x1b[31m \u202egnp.exe "
    "\u2028 javascript:alert(3) [link](http://example.org) nul\0nul half\ud83d \u241b0000 %s {{7*7}} 😀"
)
pytest.importorskip("datasette")


def browse(store: Path, *paths: str) -> list[Any]:
    """What Datasette answers to these paths on the store. A path without .json gives its HTML."""
    from datasette.app import Datasette

    async def look() -> list[Any]:
        site = Datasette([str(store)], metadata=metadata(), settings={"num_sql_threads": 1})
        answers = []
        for path in paths:
            answer = await site.client.get(path)
            assert answer.status_code == 200, (path, answer.status_code, answer.text[-2000:])
            answers.append(answer.json() if ".json" in path else answer.text)
        return answers

    return asyncio.run(look())


def store_hostile(run_dir: Path) -> Completion:
    """One more completion in the corpus of the last round, with that text; the index has it."""
    db = open_database(run_dir / "loop.db")
    corpus = Corpus(db)
    *_, last = corpus.completions(Ledger(db).run().id, 2)
    more = replace(last, id="f" * 64, sample_index=999, text=HOSTILE, created_at="", sha256="")
    corpus.add_completions([more])
    assert sum(corpus.search.index()) > 0
    db.close()
    return more


def rows(answer: Any) -> list[dict[str, Any]]:
    return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]


def test_the_metadata_file_is_up_to_date_and_datasette_reads_it_as_it_is_meant() -> None:
    from datasette.utils import parse_metadata

    command = [sys.executable, "-m", "store.datasette"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    written = (ROOT / "docs/datasette.json").read_text(encoding="utf-8")
    assert written == output, "run python -m store.datasette > docs/datasette.json"
    assert parse_metadata(written) == metadata()
    assert metadata("other")["databases"].keys() == {"other"}


def test_there_are_ten_queries_and_the_page_shows_each() -> None:
    page = datasette.PAGE.read_text(encoding="utf-8")
    assert len(queries()) == 10 == page.count("```sql")


def test_every_query_answers(finished: Path) -> None:
    answers = browse(finished / ".loop" / "loop.db", *(f"/loop/{name}.json" for name in queries()))
    answered = {name: rows(answer) for name, answer in zip(queries(), answers, strict=True)}
    assert [row["round"] for row in answered["outcomes"]] == [2, 1]
    for row in answered["outcomes"]:
        assert row["state"] in DECIDED and 0 <= row["candidate_pass_at_1"] <= 1 and row["minutes"] >= 0
        assert 0 <= row["head_pass_at_1"] <= 1
    assert {row["round"] for row in answered["reasons"]} == {1, 2} and all(row["reason"] for row in answered["reasons"])
    assert {(row["suite"], row["checkpoint_of_round"]) for row in answered["figures"]} >= {("ones", 0), ("ones", 1)}
    for row in answered["figures"]:
        assert row["lower"] <= row["pass_at_1"] <= row["upper"] and "temperature" in row["settings"]
    assert len(answered["gained_and_lost"]) == 12 and all(
        row["change"] == round(row["candidate"] - row["base"], 3) for row in answered["gained_and_lost"]
    )
    assert {row["checkpoint_of_round"] for row in answered["a_problem"]} >= {0, 1}
    assert all("return" in row["text"] and "⟨" in row["found"] for row in answered["search"]) and answered["search"]
    assert [(row["round"], row["completions"]) for row in answered["variety"]] == [(2, 16), (1, 16)]
    assert sum(row["times"] for row in answered["repeated"]) == 16
    assert sum(row["completions"] for row in answered["selection"]) == 32
    assert {(row["round"], row["stage"]) for row in answered["time"]} == {
        (number, stage) for number in (1, 2) for stage in ("sampling", "training", "evaluating", "deciding")
    }
    assert all(row["attempts"] >= 1 and row["an_error"] is None for row in answered["time"])


def test_queries_with_a_question_and_without_datasette(finished: Path) -> None:
    store = finished / ".loop" / "loop.db"
    repeated, changed, problem, quoted = browse(
        store, "/loop/repeated.json?round=1", "/loop/gained_and_lost.json?round=1", "/loop/a_problem.json?problem=ones/3",
        "/loop/search.json?text=%22%20OR%20%22",
    )  # fmt: skip
    assert sum(row["times"] for row in rows(repeated)) == 16 and len(rows(changed)) == 12
    assert rows(problem) and rows(quoted) == []
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as conn:
        for name, query in queries().items():  # as the page offers them to any SQLite
            parameters = re.findall(r":([a-z]+)", query["sql"])
            assert conn.execute(query["sql"], dict.fromkeys(parameters)).fetchall(), name


def test_pages_facets_search_and_what_is_hidden(finished: Path) -> None:
    store = finished / ".loop" / "loop.db"
    home, corpus, searched, tables, completions = browse(
        store, "/loop", "/loop/corpus", "/loop/corpus.json?_search=RETURN&_shape=objects", "/loop.json",
        "/loop/completions.json?_shape=objects&_facet=round",
    )  # fmt: skip
    assert all(html.escape(query["title"]) in home for query in queries().values())
    hidden = {table["name"] for table in tables["tables"] if table["hidden"]}
    assert hidden >= {"completions_fts", "completions_fts_data", "schema_migrations", "probe_results"}
    assert {"corpus", "round_results", "evaluation_results"} <= {view["name"] for view in tables["views"]}
    assert 'name="_search"' in corpus and "finish_reason" in corpus and "left_out_because" in corpus
    assert "the fine-tune saw it" in corpus
    assert searched["filtered_table_rows_count"] > 0 and all("return" in row["text"] for row in searched["rows"])
    assert searched["rows"][0]["arrival"] == max(row["arrival"] for row in searched["rows"]), "newest first"
    assert set(completions["facet_results"]) >= {"round", "finish_reason"}
    names = (*(table["name"] for table in tables["tables"]), *metadata()["databases"]["loop"]["tables"])
    browse(store, *(f"/loop/{name}" for name in names if not name.startswith("completions_fts")))


def test_what_models_wrote_is_shown_as_text(finished: Path) -> None:
    hostile = store_hostile(finished / ".loop")
    store = finished / ".loop" / "loop.db"
    arrival = scalar(open_database(store, read_only=True), "SELECT max(arrival) FROM completions")
    for page in browse(
        store, "/loop/corpus", "/loop/completions", f"/loop/completions/{arrival}", "/loop/search?text=alert(1)",
        "/loop/repeated", "/loop/corpus?_search=" + "%3Cscript%3Ealert(1)", "/loop/search?text=%3Cimg%20src%3Dx%20onerror%3D",
    ):  # fmt: skip
        assert "<script>alert" not in page and "<img src=x" not in page and "</textarea><img" not in page
        assert "&lt;script&gt;alert(1)" in page or "alert" not in page
    for search, ids in {
        "completions.json?_shape=objects&_search=onerror%3Dalert": [hostile.id],
        "corpus.json?_shape=objects&_search=onerror+chartreuse+OR": [],
        "corpus.json?_shape=objects&_search=onerror+nul": [hostile.id],
    }.items():
        assert [row["id"] for row in browse(store, f"/loop/{search}")[0]["rows"]] == ids
    (answer,) = browse(store, "/loop/search.json?text=%3Cimg%20src%3Dx%20onerror%3Dalert(2)%3E%20%22quoted")
    (row,) = rows(answer)
    assert "⟨" in row["found"]


def test_it_may_be_open_while_a_daemon_writes(finished: Path) -> None:
    """Without a flag it sees what is committed; as immutable it overlooks the write-ahead log, as the page warns."""
    from datasette.app import Datasette

    store = finished / ".loop" / "loop.db"
    db = open_database(store)
    run, num_events = Ledger(db).run(), scalar(db, "SELECT count(*) FROM events")

    async def look() -> list[Any]:
        site, copy = Datasette([str(store)]), Datasette([], immutables=[str(store)])
        ask = "/loop.json?sql=select+count(*)+as+n+from+events&_shape=array"

        async def counts(shown: Any) -> Any:
            return (await shown.client.get(ask)).json()[0]["n"]

        seen = [await counts(site), await counts(copy)]
        for number in range(50):
            Ledger(db).events.append(run.id, "noted", None, None, number=number)
            seen.append(await counts(site))
        db.execute("BEGIN IMMEDIATE")
        assert await counts(site) == num_events + 50, "a writer is in nobody's way"
        db.execute("COMMIT")
        write = await site.client.get("/loop.json?sql=delete+from+control&_shape=array")
        assert write.status_code == 400
        return [*seen, await counts(copy)]

    first, *seen, last = asyncio.run(look())
    assert first == num_events and seen[1:] == [num_events + n for n in range(1, 51)]
    assert last == num_events, "what -i shows does not move"
    db.close()


def test_the_exported_corpus_opens_in_datasets(finished: Path, call: Loopctl, tmp_path: Path) -> None:
    more = store_hostile(finished / ".loop")
    files = {"json": finished / "corpus.jsonl", "parquet": finished / "corpus.parquet"}
    for file in files.values():
        assert call("corpus", "export", "--format", file.suffix[1:], str(file)).code == 0
    code = (
        "import sys, json; from datasets import load_dataset\n"
        "sets = [load_dataset(form, data_files=file, split='train', cache_dir=sys.argv[1] + form)\n"
        "        for form, file in json.loads(sys.argv[2]).items()]\n"
        "print(json.dumps([[dict(row) for row in rows] for rows in sets], default=str))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache"), json.dumps({k: str(file) for k, file in files.items()})],
        capture_output=True, text=True, env=environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    by_json, exported = json.loads(done.stdout)
    db = open_database(finished / ".loop" / "loop.db", read_only=True)
    stored = query(db, "SELECT * FROM completions WHERE evaluation_id IS NULL ORDER BY arrival")
    assert [row["id"] for row in exported] == [row["id"] for row in stored] and len(exported) == 33
    keys = ("round", "checkpoint", "prompt_id", "sample_index", "seed", "num_tokens", "finish_reason", "sha256")
    for row, completion in zip(exported, stored, strict=True):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        written = re.sub("[\ud800-\udfff]", "\ufffd", completion["text"])
        assert row["messages"][1]["content"] == row["prefill"] + written
        assert row["run"] == "small" and row["temperature"] == 1.2 and row["top_k"] == 20
        assert [row[key] for key in keys] == [completion[key] for key in keys]
        assert row["used"] is (None if row["id"] == more.id else True)
    assert exported[-1]["messages"][1]["content"].endswith(HOSTILE.replace("\ud83d", "\ufffd"))
    assert [{key: row[key] for key in exported[0]} for row in by_json] == exported
