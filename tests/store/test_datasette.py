"""The store in Datasette itself, and the exported corpus in `datasets`: what docs/looking-in.md says."""

from __future__ import annotations

import asyncio
import html
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from store import datasette
from store.corpus import Corpus
from store.datasette import metadata, queries
from store.db import open_database, query, scalar
from store.ledger import Ledger
from store.records import Completion
from tests.support.cli import Loopctl, call, environment, finished

__all__ = ["call", "finished"]
from tests.support import ROOT

HOSTILE = (
    "<script>alert(1)</script>\n</textarea><img src=x onerror=alert(2)> \"quoted\" 'single' & \x1b[31m \u202egnp.exe "
    "\u2028 javascript:alert(3) [link](http://example.org) nul\0nul half\ud83d \u241b0000 %s {{7*7}} 😀"
)
pytest.importorskip("datasette")


def browse(store: Path, *paths: str, immutable: bool = False, meta: Any = None) -> list[Any]:
    """What Datasette answers to these paths on the store. A path without .json gives its HTML."""
    from datasette.app import Datasette

    async def look() -> list[Any]:
        site = Datasette([] if immutable else [str(store)], immutables=[str(store)] if immutable else [],
                         metadata=meta or metadata(), settings={"num_sql_threads": 1})  # fmt: skip
        found = []
        for path in paths:
            answer = await site.client.get(path)
            assert answer.status_code == 200, (path, answer.status_code, answer.text[-2000:])
            found.append(answer.json() if ".json" in path else answer.text)
        return found

    return asyncio.run(look())


def store_hostile(run_dir: Path, text: str = HOSTILE) -> Completion:
    """One more completion in the corpus of the last round, with that text; found by the index."""
    import dataclasses

    db = open_database(run_dir / "loop.db")
    run = Ledger(db).run()
    assert run
    like = list(Corpus(db).completions(run.id, 2))[-1]
    more = dataclasses.replace(like, id="f" * 64, sample_index=999, text=text, created_at="", sha256="")
    Corpus(db).add_completions([more])
    for _ in Corpus(db).search.index():
        pass
    db.close()
    return more


def rows(answer: Any) -> list[dict[str, Any]]:
    return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]


def test_the_metadata_file_is_up_to_date_and_datasette_reads_it_as_it_is_meant() -> None:
    from datasette.utils import parse_metadata

    done = subprocess.run(
        [sys.executable, "-m", "store.datasette"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    written = (ROOT / "docs/datasette.json").read_text(encoding="utf-8")
    assert written == done.stdout, "run python -m store.datasette > docs/datasette.json"
    assert parse_metadata(written) == metadata()
    assert metadata("other")["databases"].keys() == {"other"}


def test_there_are_ten_queries_and_the_page_shows_each() -> None:
    page = datasette.PAGE.read_text(encoding="utf-8")
    assert len(queries()) == 10 == page.count("```sql") == len({one.name for one in queries()})


def test_every_query_answers(finished: Path) -> None:
    said = dict(zip([one.name for one in queries()], browse(finished / ".loop" / "loop.db",
        *(f"/loop/{one.name}.json" for one in queries())), strict=True))  # fmt: skip
    found = {name: rows(answer) for name, answer in said.items()}
    assert [row["round"] for row in found["outcomes"]] == [2, 1]
    for row in found["outcomes"]:
        assert row["state"] in ("kept", "rolled_back") and 0 <= row["candidate_pass_at_1"] <= 1 and row["minutes"] >= 0
        assert 0 <= row["head_pass_at_1"] <= 1
    assert {row["round"] for row in found["reasons"]} == {1, 2} and all(row["reason"] for row in found["reasons"])
    assert {(row["suite"], row["checkpoint_of_round"]) for row in found["figures"]} >= {("ones", 0), ("ones", 1)}
    for row in found["figures"]:
        assert row["lower"] <= row["pass_at_1"] <= row["upper"] and "temperature" in row["settings"]
    assert len(found["gained_and_lost"]) == 12 and all(
        row["change"] == round(row["candidate"] - row["base"], 3) for row in found["gained_and_lost"]
    )
    assert {row["checkpoint_of_round"] for row in found["a_problem"]} >= {0, 1}
    assert all("return" in row["text"] and "⟨" in row["found"] for row in found["search"]) and found["search"]
    assert [(row["round"], row["completions"]) for row in found["variety"]] == [(2, 16), (1, 16)]
    assert sum(row["times"] for row in found["repeated"]) == 16
    assert sum(row["completions"] for row in found["selection"]) == 32
    assert {(row["round"], row["stage"]) for row in found["time"]} == {
        (number, stage) for number in (1, 2) for stage in ("sampling", "training", "evaluating", "deciding")
    }
    assert all(row["attempts"] >= 1 and row["an_error"] is None for row in found["time"])


def test_queries_with_a_question_and_without_datasette(finished: Path) -> None:
    store = finished / ".loop" / "loop.db"
    (one, other, problem, quoted) = browse(
        store, "/loop/repeated.json?round=1", "/loop/gained_and_lost.json?round=1", "/loop/a_problem.json?problem=ones/3",
        "/loop/search.json?text=%22%20OR%20%22",
    )  # fmt: skip
    assert sum(row["times"] for row in rows(one)) == 16 and len(rows(other)) == 12
    assert rows(problem) and rows(quoted) == []
    for known in queries():  # as the page offers them to any SQLite
        with sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True) as conn:
            names = re.findall(r":([a-z]+)", known.sql)
            assert conn.execute(known.sql, dict.fromkeys(names)).fetchall(), known.name
        conn.close()


def test_pages_facets_search_and_what_is_hidden(finished: Path) -> None:
    store = finished / ".loop" / "loop.db"
    home, corpus, found, tables, completions = browse(
        store, "/loop", "/loop/corpus", "/loop/corpus.json?_search=RETURN&_shape=objects", "/loop.json",
        "/loop/completions.json?_shape=objects&_facet=round",
    )  # fmt: skip
    for one in queries():
        assert html.escape(one.title) in home
    hidden = {table["name"] for table in tables["tables"] if table["hidden"]}
    assert hidden >= {"completions_fts", "completions_fts_data", "schema_migrations", "probe_results"}
    assert {"corpus", "round_results", "evaluation_results"} <= {view["name"] for view in tables["views"]}
    assert 'name="_search"' in corpus and "finish_reason" in corpus and "left_out_because" in corpus
    assert "the fine-tune saw it" in corpus
    assert found["filtered_table_rows_count"] > 0 and all("return" in row["text"] for row in found["rows"])
    assert found["rows"][0]["arrival"] == max(row["arrival"] for row in found["rows"]), "newest first"
    assert set(completions["facet_results"]) >= {"round", "finish_reason"}
    for name in (*(table["name"] for table in tables["tables"]), *metadata()["databases"]["loop"]["tables"]):
        if not name.startswith("completions_fts"):
            browse(store, f"/loop/{name}")


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
    (found,) = browse(store, "/loop/completions.json?_shape=objects&_search=onerror%3Dalert")
    assert [row["id"] for row in found["rows"]] == [hostile.id]
    (found,) = browse(store, "/loop/corpus.json?_shape=objects&_search=onerror+chartreuse+OR")
    assert found["rows"] == []
    (found,) = browse(store, "/loop/corpus.json?_shape=objects&_search=onerror+nul")
    assert [row["id"] for row in found["rows"]] == [hostile.id]
    (found,) = browse(store, "/loop/search.json?text=%3Cimg%20src%3Dx%20onerror%3Dalert(2)%3E%20%22quoted")
    assert len(rows(found)) == 1 and "⟨" in rows(found)[0]["found"]


def test_it_may_be_open_while_a_daemon_writes(finished: Path) -> None:
    """Without a flag it sees what is committed; as immutable it overlooks the write-ahead log, as the page warns."""
    from datasette.app import Datasette

    store = finished / ".loop" / "loop.db"
    db = open_database(store)
    run = Ledger(db).run()
    assert run
    num_events = scalar(db, "SELECT count(*) FROM events")

    async def look() -> list[Any]:
        site, copy = Datasette([str(store)]), Datasette([], immutables=[str(store)])
        ask = "/loop.json?sql=select+count(*)+as+n+from+events&_shape=array"

        async def counts(one: Any) -> Any:
            return (await one.client.get(ask)).json()[0]["n"]

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
        "found = [load_dataset(form, data_files=file, split='train', cache_dir=sys.argv[1] + form)\n"
        "         for form, file in json.loads(sys.argv[2]).items()]\n"
        "print(json.dumps([[dict(row) for row in one] for one in found], default=str))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache"), json.dumps({k: str(file) for k, file in files.items()})],
        capture_output=True, text=True, env=environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    by_json, found = json.loads(done.stdout)
    db = open_database(finished / ".loop" / "loop.db", read_only=True)
    stored = query(db, "SELECT * FROM completions WHERE evaluation_id IS NULL ORDER BY arrival")
    assert [row["id"] for row in found] == [row["id"] for row in stored] and len(found) == 33
    for row, completion in zip(found, stored, strict=True):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        written = re.sub("[\ud800-\udfff]", "\ufffd", completion["text"])
        assert row["messages"][1]["content"] == row["prefill"] + written
        assert row["run"] == "small" and row["temperature"] == 1.2 and row["top_k"] == 20
        for key in (
            "round",
            "checkpoint",
            "prompt_id",
            "sample_index",
            "seed",
            "num_tokens",
            "finish_reason",
            "sha256",
        ):
            assert row[key] == completion[key], key
        assert row["used"] is (None if row["id"] == more.id else True)
    assert found[-1]["messages"][1]["content"].endswith(HOSTILE.replace("\ud83d", "\ufffd"))
    assert [{key: row[key] for key in found[0]} for row in by_json] == found
