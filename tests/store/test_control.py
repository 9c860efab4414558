"""Holds, wishes for another head, training that is done again, and stores of earlier schemas."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from store.db import open_database, query, scalar
from store.errors import StoreError
from store.ledger import Ledger
from store.migrations import MIGRATIONS
from store.verify import verify_store
from tests.support import TESTS
from tests.support.stores import World, weights

GOLDEN = TESTS / "golden"


def test_a_hold_stands_until_it_is_released_and_saying_it_twice_changes_nothing(world: World) -> None:
    ledger, run = world.ledger, world.run.id
    assert ledger.hold_run(run, "user", "paused by hand")
    before = ledger.events.last()
    assert not ledger.hold_run(run, "user", "again") and not ledger.hold_run(run, "failure", "and a failure")
    assert ledger.events.last() == before
    assert Ledger(world.db).control(run).hold_reason == "paused by hand"
    assert ledger.release_run(run) and not ledger.release_run(run)
    assert ledger.control(run).held_by is None
    assert world.findings() == []


def test_a_wish_for_another_head_waits_for_an_open_round_and_is_fulfilled_once(world: World) -> None:
    world.whole_round("keep")
    ledger, run = world.ledger, world.run.id
    round = ledger.begin_round(run)
    assert not ledger.ask_head(run, 0, "looks bad")
    before = ledger.events.last()
    assert not ledger.ask_head(run, 0, "looks bad") and ledger.events.last() == before
    assert ledger.run_of(run).head_round == 1 and ledger.control(run).wanted_head == 0
    assert ledger.move_head(run, 0, "looks bad").head_round == 0
    assert ledger.control(run).wanted_head is None
    stored = ledger.round(run, round.number)
    assert stored and stored.state == "failed" and ledger.run_of(run).num_failed == 1
    assert ledger.ask_head(run, 1, "looks good after all"), "between rounds it moves at once"
    with world.refused(StoreError, "round 2 is failed"):
        ledger.ask_head(run, 2, "never kept")
    round = ledger.begin_round(run)
    assert ledger.ask_head(run, 1, "it is there") and ledger.round(run, 3) == round, "the open round is left alone"
    assert world.findings() == []


def test_training_is_done_again_when_the_weights_are_gone(world: World) -> None:
    ledger, round = world.ledger, world.round_at("evaluating")
    first = round.candidate_checkpoint
    attempt = ledger.begin_attempt(round, "evaluating", {"candidate": first})
    ledger.fail_attempt(round, "evaluating", attempt, "damaged", "trained again")
    round = ledger.train_again(round, "the weights are damaged")
    assert (round.state, round.stage, round.candidate_checkpoint) == ("training", "training", None)
    assert world.findings() == []
    stage = ledger.stage(world.run.id, round.number, "training")
    assert stage and stage.output is None and ledger.stage(world.run.id, round.number, "evaluating") is None
    again = ledger.begin_attempt(round, "training", stage.input)
    candidate = replace(weights("second", round.number, world.run.id), parent=round.parent_checkpoint)
    round = ledger.finish_stage(round, "training", again, {"loss": 2}, next_state="evaluating", candidates=[candidate])
    ledger.begin_attempt(round, "evaluating", {"candidate": candidate.sha256})
    assert world.findings() == []
    round = ledger.train_again(round, "gone again")
    with world.refused():
        ledger.train_again(round, "it is training")


def test_training_that_left_several_is_done_again_as_a_whole(world: World) -> None:
    """What other rounds need of it stays, as here the weights of round 1."""
    ledger, run = world.ledger, world.run.id
    first = world.whole_round().candidate_checkpoint
    left = [weights(f"step-{step}", 2, run) for step in (1, 2)]
    several = [ledger.checkpoints.known(first or ""), *left]
    output = {"candidates": [{"step": step, "checkpoint": row.sha256} for step, row in enumerate(several)]}
    round = world.round_at("training")
    attempt = ledger.begin_attempt(round, "training", {})
    round = ledger.finish_stage(round, "training", attempt, output, next_state="evaluating", candidates=several)
    assert round.candidate_checkpoint is None and ledger.candidates(round) == [row.sha256 for row in several]
    ledger.checkpoints.set_state(left[0].sha256, "quarantined")
    assert ledger.choose_candidate(round, left[1].sha256).candidate_checkpoint == left[1].sha256
    assert world.findings() == []
    with world.refused(match="not one whose candidate is still open"):
        ledger.choose_candidate(round, left[1].sha256)
    round = ledger.train_again(round, "damaged")
    assert (round.candidate_checkpoint, ledger.candidates(round)) == (None, [])
    assert [ledger.checkpoints.known(row.sha256).state for row in several] == ["present", "quarantined", "collected"]
    assert world.findings() == []


def test_an_attempt_that_was_left_is_no_failure(world: World) -> None:
    round = world.ledger.begin_round(world.run.id)
    number = world.ledger.begin_attempt(round, "sampling", {})
    world.ledger.leave_attempt(round, "sampling", number, "paused")
    left = world.ledger.attempts(world.run.id, 1, "sampling")[0]
    assert left.error == "paused" and left.finished_at
    assert world.ledger.round(world.run.id, 1) == round
    assert world.ledger.begin_attempt(round, "sampling", {}) == 2
    assert world.findings() == []


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("schema-*.tar.gz")), ids=lambda path: path.name)
def test_a_store_of_an_earlier_schema_is_carried_forward_and_loses_nothing(golden: Path, tmp_path: Path) -> None:
    with tarfile.open(golden) as archive:
        archive.extractall(tmp_path, filter="data")
    path = tmp_path / ".loop" / "loop.db"
    db = open_database(path)
    assert scalar(db, "SELECT max(number) FROM schema_migrations") == MIGRATIONS[-1].number
    messages = [finding.message for finding in verify_store(db, path.parent).findings]
    assert [message for message in messages if "fake-model" not in message] == []  # the base lay elsewhere
    run = Ledger(db).run()
    assert run and run.num_kept == 2 and query(db, "SELECT count(*) AS n FROM completions")[0]["n"] > 0
    assert Ledger(db).hold_run(run.id, "user", "works on it")
    db.close()


def test_there_is_a_golden_store_for_every_earlier_schema() -> None:
    earlier = {f"schema-{migration.number}.tar.gz" for migration in MIGRATIONS[:-1]}
    assert {path.name for path in GOLDEN.glob("*.tar.gz")} == earlier
