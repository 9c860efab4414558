"""Rounds that move the head: the store is sound after every commit, and every verdict counts once."""

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.reading.reader import reader
from loop.round import run_round
from loop.run.opening import open_session
from store.db import open_database
from store.ledger import Ledger
from store.verify import verify_store
from tests.support.runs import KEEPING, Quiet, finish, write_run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run with two kept rounds."""
    return finish(write_run(tmp_path_factory.mktemp("kept"), KEEPING))


def test_the_store_is_sound_after_every_commit(tmp_path: Path) -> None:
    """What lies there before a transaction is what a kill during it would leave."""
    loaded = load_config(write_run(tmp_path, KEEPING))
    copies: list[Path] = []

    def statement_begins(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE":
            copies.append(tmp_path / f"{len(copies)}.db")
            copy = sqlite3.connect(copies[-1])
            source.backup(copy)
            copy.close()

    with open_session(loaded, Quiet()) as session:
        source = sqlite3.connect(loaded.run_dir / "loop.db")
        session.ledger.db.conn.set_trace_callback(statement_begins)
        states = [run_round(session).state for _ in range(loaded.config.rounds)]
        session.ledger.db.conn.set_trace_callback(None)
        source.close()
        heads = set()
        for path in copies:
            db = open_database(path, read_only=True)
            assert verify_store(db, loaded.run_dir).findings == [], path.name
            heads.add(Ledger(db).run().head_round)
            db.close()
    assert states == ["kept", "kept"] and heads == {0, 1}
    assert len(copies) > 40


def test_every_verdict_counts_once(kept: Path) -> None:
    """In the figures of each evaluation and in the evidence of each decision."""
    with reader(kept) as store:
        outcomes: dict[tuple[str, str, int], dict[str, list[int]]] = {}
        for evaluation in store.corpus.evaluations.all(store.run.id):
            completions = list(store.corpus.completions(store.run.id, evaluation_id=evaluation.id))
            verdicts = store.corpus.evaluations.verdicts(evaluation.id)
            assert sorted(verdict.completion_id for verdict in verdicts) == sorted(row.id for row in completions)
            by_task: dict[str, list[int]] = {}
            for verdict in verdicts:
                by_task.setdefault(verdict.task_id, []).append(int(verdict.verdict == "passed"))
            figures: Any = evaluation.metrics
            assert {len(results) for results in by_task.values()} == {evaluation.num_samples}
            assert figures["num_problems"] == len(by_task)
            assert figures["num_completions"] == len(verdicts) == len(by_task) * evaluation.num_samples
            assert figures["verdicts"] == Counter(verdict.verdict for verdict in verdicts)
            assert figures["pass@1"] == pytest.approx(sum(map(sum, by_task.values())) / len(verdicts))
            outcomes[evaluation.suite_name, evaluation.checkpoint, evaluation.seed] = by_task
        for decision in store.ledger.decisions(store.run.id):
            split: Any = decision.evidence["splits"]["select"]
            for who, checkpoint in (("head", decision.head_before), ("candidate", decision.head_after)):
                seed = split["conditions"][who]["seed"]
                assert {row["task_id"]: row[who] for row in split["problems"]} == outcomes[
                    split["suite"], checkpoint, seed
                ]
