"""Rounds that move the head: the store is sound after every commit, a kill around the decision changes nothing, and every
verdict counts once.
"""

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.round import run_round
from loop.run.opening import open_session
from store.corpus import Corpus
from store.db import open_database
from store.ledger import Ledger
from store.verify import verify_store
from tests.support.runs import KEEPING, Quiet, drive, dump, write_run
from tests.whole.test_round_kill import KILLED, check

# Training teaches much and the gate asks for little: every round is kept.


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run with two kept rounds."""
    config = write_run(tmp_path_factory.mktemp("kept"), KEEPING)
    assert drive(config) == 0, (config.parent / "stderr").read_text()
    return config.parent / ".loop"


def test_the_store_is_sound_after_every_commit(tmp_path: Path) -> None:
    """What lies there before a transaction is what a kill during it would leave."""
    loaded = load_config(write_run(tmp_path, KEEPING))
    copies: list[Path] = []

    def statement_begins(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE":
            copies.append(tmp_path / f"{len(copies)}.db")
            copy = sqlite3.connect(copies[-1])
            reader.backup(copy)
            copy.close()

    with open_session(loaded, Quiet()) as session:
        reader = sqlite3.connect(loaded.run_dir / "loop.db")
        session.ledger.db.conn.set_trace_callback(statement_begins)
        states = [run_round(session).state for _ in range(loaded.config.rounds)]
        session.ledger.db.conn.set_trace_callback(None)
        reader.close()
        heads = set()
        for path in copies:
            db = open_database(path, read_only=True)
            assert verify_store(db, loaded.run_dir).findings == [], path.name
            run = Ledger(db).run()
            assert run is not None
            heads.add(run.head_round)
            db.close()
    assert states == ["kept", "kept"] and heads == {0, 1}
    assert len(copies) > 40


@pytest.mark.parametrize("place", ["before decide", "after decide", "before begin_round", "after begin_round"])
def test_killed_around_a_decision_to_keep(place: str, tmp_path: Path, kept: Path) -> None:
    config = write_run(tmp_path, KEEPING)
    for count in (1, 2):
        assert drive(config, place, count) in (0, KILLED), (tmp_path / "stderr").read_text()
    assert drive(config) == 0, (tmp_path / "stderr").read_text()
    check(config, dump(kept))


def test_every_verdict_counts_once(kept: Path) -> None:
    """In the figures of each evaluation and in the evidence of each decision."""
    db = open_database(kept / "loop.db", read_only=True)
    ledger, corpus = Ledger(db), Corpus(db)
    run = ledger.run()
    assert run is not None
    outcomes: dict[tuple[str, str, int], dict[str, list[int]]] = {}
    for evaluation in corpus.evaluations.all(run.id):
        completions = list(corpus.completions(run.id, evaluation_id=evaluation.id))
        verdicts = corpus.evaluations.verdicts(evaluation.id)
        assert sorted(verdict.completion_id for verdict in verdicts) == sorted(row.id for row in completions)
        found: dict[str, list[int]] = {}
        for verdict in verdicts:
            found.setdefault(verdict.task_id, []).append(int(verdict.verdict == "passed"))
        figures: Any = evaluation.metrics
        assert {len(results) for results in found.values()} == {evaluation.num_samples}
        assert figures["num_problems"] == len(found)
        assert figures["num_completions"] == len(verdicts) == len(found) * evaluation.num_samples
        assert figures["verdicts"] == Counter(verdict.verdict for verdict in verdicts)
        assert figures["pass@1"] == pytest.approx(sum(map(sum, found.values())) / len(verdicts))
        outcomes[evaluation.suite_name, evaluation.checkpoint, evaluation.seed] = found
    for decision in ledger.decisions(run.id):
        split: Any = decision.evidence["splits"]["select"]
        for who, checkpoint in (("head", decision.head_before), ("candidate", decision.head_after)):
            seed = split["conditions"][who]["seed"]
            assert {row["task_id"]: row[who] for row in split["problems"]} == outcomes[split["suite"], checkpoint, seed]
    db.close()
