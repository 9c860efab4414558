"""What a user does after something went wrong works: restoring weights, needing less memory, a cleared cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from loop.config.loading import load_config
from loop.errors import ConfigError, LoopError
from loop.round import run_round
from loop.run.opening import open_session
from store.db import backup, execute, open_database, transaction
from store.ledger import Ledger
from store.verify import verify_store
from tests.support.runs import CONFIG, KEEPING, Quiet, drive, dump, write_run

ONE = CONFIG.replace("rounds = 2", "rounds = 1")


def said(config: Path) -> str:
    return (config.parent / "stderr").read_text()


def damage(weights: Path) -> None:
    with (weights / "model.safetensors").open("r+b") as file:
        file.seek(10)
        file.write(b"\x00")


@pytest.mark.parametrize("harm", ["bit", "truncated", "gone"])
def test_a_damaged_candidate_is_set_aside_and_trained_again(harm: str, tmp_path: Path) -> None:
    config = write_run(tmp_path, ONE)
    assert drive(config, "before finish_evaluation", 3) == -9  # the candidate is there and about to be measured
    weights = tmp_path / ".loop" / "checkpoints" / "round-0001"
    if harm == "gone":
        shutil.rmtree(weights)
    elif harm == "truncated":
        os.truncate(weights / "model.safetensors", 5)
    else:
        damage(weights)
    assert drive(config) == 0, said(config)
    assert "training is done again" in said(config)
    assert weights.with_name("round-0001.damaged").exists() == (harm != "gone")
    whole = write_run(tmp_path / "whole", ONE)
    assert drive(whole) == 0
    found, expected = dump(tmp_path / ".loop"), dump(whole.parent / ".loop")
    for table in ("decisions", "checkpoints", "completions", "verdicts", "rounds"):
        assert found[table] == expected[table], table
    assert findings(config) == []


@pytest.mark.parametrize("num_damaged", [1, 2])
def test_a_damaged_head_falls_back_to_the_last_good_one_loudly(num_damaged: int, tmp_path: Path) -> None:
    config = write_run(tmp_path, KEEPING)
    assert drive(config) == 0, said(config)
    checkpoints = tmp_path / ".loop" / "checkpoints"
    for number in range(2, 2 - num_damaged, -1):
        damage(checkpoints / f"round-{number:04d}")
    with open_session(load_config(config), watch := Quiet()) as session:
        failed = run_round(session)
        assert failed.state == "failed" and failed.number == 3
        back_to = 2 - num_damaged
        run = session.run
        assert run.head_round == back_to
        words = f"the head falls back to {'round 1' if back_to else 'the base'}"
        assert any("is damaged" in note and words in note for note in watch.notes), watch.notes
        again = run_round(session)
        assert again.number == 4 and again.parent_checkpoint == run.head_checkpoint and again.state == "kept"
    assert findings(config) == []
    assert (checkpoints / "round-0002.damaged").exists()


def findings(config: Path) -> list[str]:
    db = open_database(config.parent / ".loop" / "loop.db", read_only=True)
    found = [finding.message for finding in verify_store(db, config.parent / ".loop").findings]
    db.close()
    return found


def test_what_only_costs_memory_may_change_in_a_run_and_what_defines_it_may_not(tmp_path: Path) -> None:
    config = write_run(tmp_path, ONE)
    assert drive(config, "at stage training") == -9
    config.write_text(ONE.replace("batch_size = 2\nmicro_batch_size = 2", "batch_size = 2\nmicro_batch_size = 1"))
    assert drive(config) == 0, said(config)
    config.write_text(ONE.replace("temperature = 1.2", "temperature = 1.3"))
    assert drive(config) == 1
    assert "sampling.temperature is 1.3 here and 1.2 in the run directory" in said(config)


def test_two_problems_that_ask_the_same_are_refused_by_name(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    suite = tmp_path / "ones.jsonl"
    suite.write_text(suite.read_text() + suite.read_text().splitlines()[0].replace('"ones/0"', '"ones/again"') + "\n")
    what = r"problems 'ones/0' and 'ones/again' ask the same question; remove one"
    with pytest.raises(ConfigError, match=what), open_session(load_config(config), Quiet()):
        pass


def test_two_suites_that_differ_only_in_name_are_measured_each(tmp_path: Path) -> None:
    again = '[[suites]]\nname = "again"\nsource = "ones.jsonl"\ngreedy = true\nlimit = 4\n[decide]'
    config = write_run(tmp_path, ONE.replace("[decide]", again))
    assert drive(config) == 0, said(config)
    names = [row["suite_name"] for row in dump(tmp_path / ".loop")["evaluations"]]
    assert sorted(names) == sorted(["ones", "ones-greedy", "again"] * 2)


def test_a_verdict_that_was_changed_is_found(tmp_path: Path) -> None:
    config = write_run(tmp_path, ONE)
    assert drive(config) == 0, said(config)
    db = open_database(tmp_path / ".loop" / "loop.db")
    assert verify_store(db, tmp_path / ".loop").findings == []
    with transaction(db):
        execute(db, "UPDATE verdicts SET verdict = 'passed'")
    found = [finding.message for finding in verify_store(db, tmp_path / ".loop").findings]
    assert any("verdicts of evaluation" in message for message in found), found
    db.close()


def test_the_high_water_mark_follows_a_killed_run(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    assert drive(config) == 0, said(config)
    db = open_database(tmp_path / ".loop" / "loop.db", read_only=True)
    last = Ledger(db).events.last()
    db.close()
    assert last is not None and f'"seq": {last.seq}' in (tmp_path / ".loop" / "high_water.json").read_text()


def test_a_run_that_was_moved_goes_on(tmp_path: Path) -> None:
    """With a base that lies in it, so that nothing is where it was."""
    config = write_run(tmp_path / "here", ONE)
    assert drive(config) == 0, said(config)
    there = tmp_path / "there"
    config.parent.rename(there)
    (there / "loop.toml").write_text(CONFIG)
    assert drive(there / "loop.toml") == 0, said(there / "loop.toml")
    db = open_database(there / ".loop" / "loop.db", read_only=True)
    assert verify_store(db, there / ".loop").findings == []
    assert len(Ledger(db).decisions(Ledger(db).run().id)) == 2  # type: ignore[union-attr]
    db.close()


def test_a_run_that_was_moved_takes_no_other_base(tmp_path: Path) -> None:
    config = write_run(tmp_path / "here", ONE)
    assert drive(config) == 0, said(config)
    there = tmp_path / "there"
    config.parent.rename(there)
    (there / "loop.toml").write_text(CONFIG)
    damage(there / ".loop" / "fake-model")
    with (
        pytest.raises(
            LoopError, match=r"base model has changed since the run began: .*there/\.loop/fake-model.*restore"
        ),
        open_session(load_config(there / "loop.toml"), Quiet()),
    ):
        pass


def test_a_backup_is_put_back_after_a_kill(tmp_path: Path) -> None:
    """As `loopctl backup` says: what SQLite left beside the other store goes first, or it would be played into this one."""
    config, store = write_run(tmp_path, ONE), tmp_path / ".loop" / "loop.db"
    assert drive(config) == 0, said(config)
    db = open_database(store, read_only=True)
    backup(db, tmp_path / "copy.db")
    db.close()
    (tmp_path / "loop.toml").write_text(CONFIG)
    assert drive(config, "before decide") == -9
    left = [path for path in (store.with_name("loop.db-wal"), store.with_name("loop.db-shm")) if path.exists()]
    assert left and left[0].stat().st_size
    for path in left:
        path.unlink()
    shutil.copy(tmp_path / "copy.db", store)
    assert drive(config) == 0, said(config)
    db = open_database(store, read_only=True)
    assert verify_store(db, tmp_path / ".loop").findings == []
    assert len(Ledger(db).decisions(Ledger(db).run().id)) == 2  # type: ignore[union-attr]
    db.close()
