"""What a user does after something went wrong works: restoring weights, needing less memory, a cleared cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.errors import ConfigError, LoopError
from loop.reading.reader import reader
from loop.round import run_round
from loop.run.attempting import without_weights
from loop.run.opening import open_session
from loop.run.session import LostWeights
from store.db import backup, execute, open_database, transaction
from tests.support.runs import CONFIG, KEEPING, Quiet, drive, dump, findings, finish, write_run

ONE = CONFIG.replace("rounds = 2", "rounds = 1")


def stderr(config: Path) -> str:
    return (config.parent / "stderr").read_text()


def damage(weights: Path) -> None:
    with (weights / "model.safetensors").open("r+b") as file:
        file.seek(10)
        file.write(b"\x00")


def truncate(weights: Path) -> None:
    os.truncate(weights / "model.safetensors", 5)


@pytest.mark.parametrize(
    "harm", [damage, *(pytest.param(each, marks=pytest.mark.slow) for each in (truncate, shutil.rmtree))]
)
def test_a_damaged_candidate_is_set_aside_and_trained_again(harm: Any, tmp_path: Path) -> None:
    config = write_run(tmp_path, ONE)
    assert drive(config, "before finish_evaluation", 2) == -9  # the candidate exists and is about to be measured
    weights = tmp_path / ".loop" / "checkpoints" / "round-0001"
    harm(weights)
    left = dump(finish(config))
    assert "training is done again" in stderr(config)
    assert weights.with_name("round-0001.damaged").exists() == (harm != shutil.rmtree)
    expected = dump(finish(write_run(tmp_path / "whole", ONE)))
    for table in ("decisions", "checkpoints", "completions", "verdicts", "rounds"):
        assert left[table] == expected[table], table
    assert findings(tmp_path / ".loop") == []


def test_weights_that_no_other_head_brings_back_fail_the_round(tmp_path: Path) -> None:
    """Those of the best kept round, which a gate wants measured: moving the head would not help, and nothing may go in circles."""
    config = write_run(tmp_path, KEEPING)
    finish(config)
    with open_session(load_config(config), watch := Quiet()) as session:
        ledger = session.ledger
        round = ledger.begin_round(session.run_id)
        number = ledger.begin_attempt(round, "sampling", {})
        first = ledger.round(session.run_id, 1)
        assert first is not None and first.candidate_checkpoint != session.run.head_checkpoint
        lost = LostWeights("they are gone", ledger.checkpoints.known(first.candidate_checkpoint or ""))
        failed = without_weights(session, round, number, lost)
        assert failed.state == "failed" and "restore them from a backup" in (failed.error or "")
        assert session.run.head_round == 2 and any("the round fails" in note for note in watch.notes)


@pytest.mark.parametrize("num_damaged", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_damaged_head_falls_back_to_the_last_good_one_loudly(num_damaged: int, tmp_path: Path) -> None:
    config = write_run(tmp_path, KEEPING)
    checkpoints = finish(config) / "checkpoints"
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
    assert findings(tmp_path / ".loop") == []
    assert (checkpoints / "round-0002.damaged").exists()


def test_what_only_costs_memory_may_change_in_a_run_and_what_defines_it_may_not(tmp_path: Path) -> None:
    config = write_run(tmp_path, ONE)
    assert drive(config, "at stage training") == -9
    config.write_text(ONE.replace("batch_size = 2\nmicro_batch_size = 2", "batch_size = 2\nmicro_batch_size = 1"))
    finish(config)
    config.write_text(ONE.replace("temperature = 1.2", "temperature = 1.3"))
    assert drive(config) == 1
    assert "sampling.temperature is 1.3 here and 1.2 in the run directory" in stderr(config)


def test_two_problems_that_ask_the_same_are_refused_by_name(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    suite = tmp_path / "ones.jsonl"
    suite.write_text(suite.read_text() + suite.read_text().splitlines()[0].replace('"ones/0"', '"ones/again"') + "\n")
    what = r"problems 'ones/0' and 'ones/again' ask the same question; remove one"
    with pytest.raises(ConfigError, match=what), open_session(load_config(config), Quiet()):
        pass


def test_two_suites_that_differ_only_in_name_are_measured_each(tmp_path: Path) -> None:
    again = '[[suites]]\nname = "again"\nsource = "ones.jsonl"\ngreedy = true\nlimit = 4\n[decide]'
    left = dump(finish(write_run(tmp_path, ONE.replace("[decide]", again))))
    names = [row["suite_name"] for row in left["evaluations"]]
    assert sorted(names) == sorted(["ones", "ones-greedy", "again"] * 2)


def test_a_verdict_that_was_changed_is_noticed(tmp_path: Path) -> None:
    run_dir = finish(write_run(tmp_path, ONE))
    assert findings(run_dir) == []
    db = open_database(run_dir / "loop.db")
    with transaction(db):
        execute(db, "UPDATE verdicts SET verdict = 'passed'")
    db.close()
    messages = findings(run_dir)
    assert any("verdicts of evaluation" in message for message in messages), messages


def test_the_high_water_mark_follows_a_killed_run(tmp_path: Path) -> None:
    run_dir = finish(write_run(tmp_path))
    with reader(run_dir) as store:
        last = store.ledger.events.last()
    assert f'"seq": {last.seq}' in (run_dir / "high_water.json").read_text()


def sound_with_two_rounds(run_dir: Path) -> None:
    assert findings(run_dir) == []
    with reader(run_dir) as store:
        assert len(store.ledger.decisions(store.run.id)) == 2


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """The configuration of a run that was moved after its first round, with a base that lies in it: nothing is where it was."""
    finish(write_run(tmp_path / "here", ONE))
    (tmp_path / "here").rename(tmp_path / "there")
    config = tmp_path / "there" / "loop.toml"
    config.write_text(CONFIG)
    return config


def test_a_run_that_was_moved_goes_on(moved: Path) -> None:
    sound_with_two_rounds(finish(moved))


def test_a_run_that_was_moved_takes_no_other_base(moved: Path) -> None:
    damage(moved.parent / ".loop" / "fake-model")
    what = r"base model has changed since the run began: .*there/\.loop/fake-model.*restore"
    with pytest.raises(LoopError, match=what), open_session(load_config(moved), Quiet()):
        pass


def test_a_backup_is_put_back_after_a_kill(tmp_path: Path) -> None:
    """As `loopctl backup` says: what SQLite left beside the other store goes first, or it would be played into this one."""
    config, store = write_run(tmp_path, ONE), tmp_path / ".loop" / "loop.db"
    finish(config)
    db = open_database(store, read_only=True)
    backup(db, tmp_path / "copy.db")
    db.close()
    config.write_text(CONFIG)
    assert drive(config, "before decide") == -9
    left = [path for path in (store.with_name("loop.db-wal"), store.with_name("loop.db-shm")) if path.exists()]
    assert left and left[0].stat().st_size
    for path in left:
        path.unlink()
    shutil.copy(tmp_path / "copy.db", store)
    sound_with_two_rounds(finish(config))
