"""The full-text index: what is found with it is what is found without it, and it is never in the way of what is stored."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import store.search
from loop.config.loading import load_config
from loop.round import run_round
from loop.run.opening import open_session
from store.corpus import Corpus
from store.db import backup, execute, open_database, query, scalar
from store.errors import CannotWrite, StoreError
from store.records import DECIDED
from store.search import Search
from store.verify import verify_store
from tests.support.cli import Loopctl, call, finished
from tests.support.runs import CONFIG, KEEPING, Quiet, write_run
from tests.support.stores import World
from tests.whole.test_data_policies import running

__all__ = ["call", "finished"]
PIECES = st.sampled_from(
    ["def f", "return", "RETURN", " ", "\n", "[::-1]", "%", "_", "\\", '"', '""', "'", "*", "OR", "NEAR(", "ß", "ẞ", "ſ", "K",
     "k", "İ", "i\u0307", "é", "e\u0301", "Ω", "\0", "\u241b", "\ud83d", "😀", "-", ":", "(", "^"]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_categories=[]), max_size=3), max_size=8).map("".join)


@settings(max_examples=50)
@given(st.lists(TEXTS, min_size=1, max_size=6), TEXTS, st.data())
@example(["K\u0130i\u0307", "x"], "k\u0130i", None)
def test_what_is_found_does_not_depend_on_the_index(texts: list[str], other: str, data: Any) -> None:
    world = World()
    world.sampled(texts)
    wanted = [other]
    if data is not None:
        text = data.draw(st.sampled_from(texts))
        begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        wanted += [text[begin:end], text[begin:end].swapcase(), text * 20]
    before = [world.corpus.search.find(text=text) for text in wanted]
    for most in (len(texts) // 2, len(texts)):  # a part of the texts, then all
        for _ in world.corpus.search.index(most):
            pass
        assert [world.corpus.search.find(text=text) for text in wanted] == before


def test_the_index_is_used_and_reaches_as_far_as_limit(world: World) -> None:
    search, texts = world.corpus.search, [f"value = {n % 7}; call_{n}()" for n in range(40)]
    world.sampled(texts)
    assert sum(search.index(30)) == 30
    for limit in (1, 3, 5, 100):
        expected = [text for text in texts[::-1] if "= 3;" in text][:limit]
        assert [c.text for c in search.find(text="= 3;", limit=limit)] == expected
    execute(world.db, "INSERT INTO completions_fts (completions_fts) VALUES ('delete-all')")
    assert len(search.find(text="= 3;")) == 6, "what is not in the index is read"
    assert sum(search.index()) == 40 == scalar(world.db, "SELECT count(*) FROM completions_fts_docsize")
    assert not sum(search.index())
    execute(world.db, "DELETE FROM completions_fts_data WHERE id > 10")  # a broken index is asked only where it helps
    assert len(search.find(text="= 3;", round=1)) == 6 == len(search.find(text="= 3"))
    with pytest.raises(StoreError, match="damaged"):
        search.find(text="= 3;")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def is_prime(", '"is prime"'), ("is_prime", None), (" prime ", '"prime"'), ("for i in range", '"i in"'),
        ("a_b", None), ('x = "OR" AND', '"OR"'), ("", None), ("(é)", None), ("a\0b c", None),
    ],
)  # fmt: skip
def test_the_words_that_must_be_there(text: str, words: str | None) -> None:
    assert store.search._phrase(text) == words


def test_the_index_comes_in_pieces_that_are_transactions(
    on_disk: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.search, "ROWS_AT_ONCE", 4)
    on_disk.sampled(on_disk.completion(n) for n in range(11))
    reader = open_database(tmp_path / "loop.db", read_only=True)
    seen = []
    for num_rows in on_disk.corpus.search.index(10):
        assert not on_disk.db.conn.in_transaction
        seen.append((num_rows, scalar(reader, "SELECT count(*) FROM completions_fts_docsize")))
    assert seen == [(4, 4), (4, 8), (2, 10)]
    assert list(on_disk.corpus.search.index()) == [1] and list(on_disk.corpus.search.index()) == []
    assert len(Corpus(reader).search.find(text="return 1")) == 2
    assert on_disk.findings() == []
    backup(reader, tmp_path / "copy.db")
    copy = open_database(tmp_path / "copy.db", read_only=True)
    assert len(Corpus(copy).search.find(text="return 1")) == 2
    with pytest.raises(StoreError, match="append-only"):
        execute(on_disk.db, "DELETE FROM completions")


def test_a_damaged_index_is_found_and_made_anew(world: World) -> None:
    world.whole_round(num_completions=30)
    assert sum(world.corpus.search.index()) == 30
    execute(world.db, "DELETE FROM completions_fts_data WHERE id = (SELECT max(id) FROM completions_fts_data)")
    if sqlite3.sqlite_version_info >= (3, 44):
        assert "completions_fts" in world.findings()[0]
    execute(world.db, "INSERT INTO completions_fts (completions_fts) VALUES ('rebuild')")
    assert world.findings() == []
    assert len(world.corpus.search.find(text="return 7")) == 1


def test_a_round_leaves_its_texts_in_the_index(tmp_path: Path) -> None:
    with running(tmp_path, KEEPING) as session:
        run_round(session)
        counts = query(session.ledger.db, "SELECT count(*) AS n FROM completions UNION ALL SELECT count(*) FROM completions_fts_docsize")  # fmt: skip
        assert counts[0]["n"] == counts[1]["n"] > 10
        first = next(session.corpus.completions(session.run_id, 1))
        assert session.corpus.search.find(text=first.text[:9])[0].round == 1
        assert session.corpus.search.find(text="    return ", suite="ones") != []
        assert verify_store(session.ledger.db, tmp_path / ".loop").findings == []


@pytest.mark.parametrize("error", [StoreError("loop.db: is damaged"), CannotWrite("loop.db: the disk is full")])
def test_an_index_that_cannot_be_written_stops_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    monkeypatch.setattr(Search, "index", Mock(side_effect=error))
    watch = Quiet()
    with open_session(load_config(write_run(tmp_path, CONFIG)), watch) as session:
        assert run_round(session).state in DECIDED
    assert watch.notes and all(str(error) in note and "full-text" in note for note in watch.notes)


def test_samples_search_is_the_same_with_the_index(finished: Path, call: Loopctl) -> None:
    wanted = [
        "return", "RETURN", "retur", "e", "def ", " return", "    return 1", "def one_1(", "(", "no such thing", '"', "%",
    ]  # fmt: skip

    def answers() -> list[Any]:
        return [call("samples", "--search", text, "--limit", "99", "--json").json for text in wanted]

    with_index = answers()
    with sqlite3.connect(finished / ".loop" / "loop.db") as conn:
        assert conn.execute("SELECT count(*) FROM completions_fts_docsize").fetchone()[0] > 32
        conn.execute("INSERT INTO completions_fts (completions_fts) VALUES ('delete-all')")
    conn.close()
    assert answers() == with_index
    assert with_index[0] == with_index[1] != []


def test_doctor_says_that_full_text_search_is_missing(call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"sqlite_version": "3.40.1", "fts5": 0}
    monkeypatch.setattr("store.db.scalar", lambda db, sql: next(answers[key] for key in answers if key in sql))
    (line,) = [check for check in call("doctor", "--json").json["checks"] if check["name"] == "sqlite"]
    assert line["verdict"] == "fail" and "FTS5" in line["detail"] and line["remedy"]
