"""The ledger: transitions are compare-and-swap, each with its event, and the history holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from store.errors import FrozenInput, StaleState, StoreError
from store.records import STAGES, Round, Selection
from store.verify import Finding, verify_store
from tests.support.stores import World, weights


def test_a_round_from_beginning_to_end() -> None:
    world = World()
    kept = world.whole_round("keep")
    assert (kept.state, kept.stage) == ("kept", "deciding") and kept.finished_at
    run = world.ledger.run("demo")
    assert run and run.head_round == 1 and run.head_checkpoint == kept.candidate_checkpoint and run.num_kept == 1
    rolled_back = world.whole_round("inconclusive")
    assert rolled_back.state == "rolled_back" and rolled_back.parent_checkpoint == kept.candidate_checkpoint
    run = world.ledger.run()
    assert run and (run.head_round, run.num_kept, run.num_rolled_back) == (1, 1, 1)
    assert [row.text for row in world.corpus.training_rows(run.id, 1)] == [
        world.completion(0).text,
        world.completion(2).text,
    ]
    assert [s.reason for s in world.corpus.selections(run.id, 1)] == [None, "too short", None]
    assert [d.verdict for d in world.ledger.decisions(run.id)] == ["keep", "inconclusive"]
    assert [stage.name for stage in world.ledger.stages(run.id, 1)] == list(STAGES)
    assert all(stage.finished_at and stage.num_attempts == 1 for stage in world.ledger.stages(run.id, 1))
    assert [r.number for r in world.ledger.rounds(run.id)] == [1, 2] and world.ledger.open_round(run.id) is None
    assert [c.round for c in world.ledger.checkpoints.all(run.id)] == [0, 1, 2]


def test_verdicts_in_a_row_on_one_head_and_the_hours_of_work() -> None:
    world = World()
    ledger, run, base = world.ledger, world.run.id, world.run.base_checkpoint
    assert ledger.verdicts_on(run, base, 10) == [] and ledger.hours_of_work(run) == 0.0
    world.whole_round("rollback")
    world.whole_round("inconclusive")
    assert ledger.verdicts_on(run, base, 10) == ["rollback", "inconclusive"]
    assert ledger.verdicts_on(run, base, 1) == ["inconclusive"]
    head = world.whole_round("keep").candidate_checkpoint or ""
    assert ledger.verdicts_on(run, base, 10) == ["rollback", "inconclusive", "keep"]
    assert ledger.verdicts_on(run, head, 10) == []
    world.whole_round("rollback")
    assert ledger.verdicts_on(run, head, 10) == ["rollback"] and ledger.verdicts_on(run, base, 10) == []
    before = ledger.hours_of_work(run)
    round = ledger.begin_round(run)
    ledger.now = lambda: "2026-03-01T10:00:00.000000Z"
    attempt = ledger.begin_attempt(round, "sampling", {})
    ledger.now = lambda: "2026-03-01T11:30:00.000000Z"
    assert ledger.hours_of_work(run) == before, "what goes on has no end yet"
    ledger.fail_attempt(round, "sampling", attempt, "broken", "again")
    assert ledger.hours_of_work(run) == pytest.approx(before + 1.5)


def test_only_one_round_is_open() -> None:
    world = World()
    round = world.ledger.begin_round(world.run.id)
    with pytest.raises(StaleState, match="round 1 is not finished"):
        world.ledger.begin_round(world.run.id)
    world.ledger.fail_round(round, "broken")
    assert world.ledger.begin_round(world.run.id).number == 2
    with pytest.raises(StaleState, match="round 1 is over"):
        world.ledger.resume_round(round)


def test_a_failed_round_goes_on_where_it_was() -> None:
    world = World()
    round = world.stage(world.ledger.begin_round(world.run.id), "sampling")
    attempt = world.ledger.begin_attempt(round, "training", {"x": 1})
    world.ledger.fail_attempt(round, "training", attempt, "no memory", "gives up")
    failed = world.ledger.fail_round(round, "no memory")
    assert (failed.state, failed.stage, failed.error) == ("failed", "training", "no memory")
    run = world.ledger.run()
    assert run and run.num_failed == 1 and world.ledger.open_round(run.id) is None
    resumed = world.ledger.resume_round(failed)
    assert (resumed.state, resumed.error, resumed.finished_at) == ("training", None, None)
    run = world.ledger.run()
    assert run and run.num_failed == 0
    assert world.ledger.begin_attempt(round, "training", {"x": 1}) == 2
    assert [a.error for a in world.ledger.attempts(run.id, 1, "training")] == ["no memory", None]


def test_a_stage_is_finished_once_and_by_its_latest_attempt() -> None:
    world = World()
    round = world.ledger.begin_round(world.run.id)
    first = world.ledger.begin_attempt(round, "sampling", {})
    second = world.ledger.begin_attempt(round, "sampling", {})  # the first one's process vanished
    with pytest.raises(StaleState, match="attempt 1 is over"):
        world.ledger.finish_stage(round, "sampling", first, {}, next_state="training", selections=[])
    assert world.ledger.round(world.run.id, 1) == round, "a refused finish changes nothing"
    world.ledger.finish_stage(round, "sampling", second, {}, next_state="training", selections=[])
    with pytest.raises(StaleState, match="is at training, not at sampling"):
        world.ledger.finish_stage(round, "sampling", second, {}, next_state="training", selections=[])


def test_the_first_attempt_freezes_the_input() -> None:
    world = World()
    round = world.ledger.begin_round(world.run.id)
    assert world.ledger.begin_attempt(round, "sampling", {"b": (1, 2), "a": 1}) == 1
    assert world.ledger.begin_attempt(round, "sampling", {"a": 1, "b": [1, 2]}) == 2
    with pytest.raises(FrozenInput):
        world.ledger.begin_attempt(round, "sampling", {"a": 1, "b": [2, 1]})
    stage = world.ledger.stage(world.run.id, 1, "sampling")
    assert stage and stage.num_attempts == 2 and stage.output is None
    with pytest.raises(StaleState):
        world.ledger.begin_attempt(round, "training", {})


def test_a_decision_on_another_head_is_refused() -> None:
    world = World()
    round = world.ledger.begin_round(world.run.id)
    for stage in STAGES[:3]:
        round = world.stage(round, stage)
    decision = world.decision(round, "rollback")
    last = world.ledger.events.last()
    for wrong in (
        replace(decision, head_before=round.candidate_checkpoint or ""),
        replace(decision, head_after=round.candidate_checkpoint or ""),
        replace(decision, verdict="keep"),
    ):
        with pytest.raises(StaleState):
            world.ledger.decide(round, wrong)
    assert world.ledger.events.last() == last and world.ledger.round(world.run.id, 1) == round
    world.ledger.decide(round, decision)
    with pytest.raises(StaleState):
        world.ledger.decide(round, decision)


def test_a_selection_of_an_unknown_completion_undoes_the_whole_finish() -> None:
    world = World()
    round = world.ledger.begin_round(world.run.id)
    attempt = world.ledger.begin_attempt(round, "sampling", {})
    last = world.ledger.events.last()
    bad = [Selection(world.run.id, 1, "unknown", 0, True, None)]
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        world.ledger.finish_stage(round, "sampling", attempt, {}, next_state="training", selections=bad)
    assert world.ledger.round(world.run.id, 1) == round and world.ledger.events.last() == last
    stage = world.ledger.stage(world.run.id, 1, "sampling")
    assert stage and stage.finished_at is None


def test_the_head_moves_between_rounds_to_what_was_kept() -> None:
    world = World()
    world.whole_round("keep")
    world.whole_round("rollback")
    world.whole_round("keep")
    with pytest.raises(StoreError, match="round 2 is rolled_back"):
        world.ledger.move_head(world.run.id, 2, "looks bad")
    assert world.ledger.move_head(world.run.id, 1, "looks bad").head_round == 1
    assert world.ledger.move_head(world.run.id, 0, "looks bad").head_checkpoint == world.run.base_checkpoint
    round = world.ledger.begin_round(world.run.id)
    assert round.parent_checkpoint == world.run.base_checkpoint
    assert world.ledger.move_head(world.run.id, 1, "looks good").head_round == 1
    given_up = world.ledger.round(world.run.id, 4)
    assert given_up and given_up.state == "failed" and "given up: the head moved to round 1" in (given_up.error or "")
    with pytest.raises(StaleState, match="the head has moved since"):
        world.ledger.resume_round(given_up)
    assert verify_store(world.db, Path("/nowhere")).findings == missing_weights(world)


def missing_weights(world: World) -> list[Finding]:
    """What a verification says here: the weights of these tests exist nowhere."""
    return [
        Finding("checkpoint", f"/nowhere/{row.path}: the directory is missing")
        for row in world.ledger.checkpoints.all(world.run.id)
    ]


def test_collected_weights_come_back_when_they_are_made_again() -> None:
    world = World()
    made = weights("again", 0, world.run.id)
    world.ledger.checkpoints.add(made)
    world.ledger.checkpoints.add(replace(made, path="elsewhere"))
    assert world.ledger.checkpoints.get(made.sha256) == replace(
        made, created_at=world.ledger.checkpoints.all(world.run.id)[-1].created_at
    )
    world.ledger.checkpoints.set_state(made.sha256, "collected")
    world.ledger.checkpoints.add(replace(made, path="elsewhere"))
    again = world.ledger.checkpoints.pin(made.sha256)
    assert (again.state, again.path, again.pinned) == ("present", "elsewhere", True)
    last = world.ledger.events.last()
    world.ledger.checkpoints.pin(made.sha256)
    world.ledger.checkpoints.move(made.sha256, "elsewhere")
    assert world.ledger.checkpoints.set_state(made.sha256, "present") == again and world.ledger.events.last() == last


def test_a_run_is_created_once_and_its_state_is_news_once() -> None:
    world = World()
    with pytest.raises(StoreError, match="already exists"):
        world.ledger.create_run("demo", {}, "d" * 64, 2, weights("base"))
    world.ledger.set_run_state(world.run.id, "paused", "asked to")
    last = world.ledger.events.last()
    assert world.ledger.set_run_state(world.run.id, "paused", "asked to").reason == "asked to"
    assert world.ledger.events.last() == last


class Rounds(RuleBasedStateMachine):
    """Any order of calls: those that fit succeed, the others change nothing, and the history always verifies."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.round: Round | None = None
        self.state = "none"
        self.stage = 0
        self.attempt = 0
        self.head = self.world.run.base_checkpoint

    def refused(self, call: Callable[[], object]) -> None:
        last = self.world.ledger.events.last()
        with pytest.raises(StaleState):
            call()
        assert self.world.ledger.events.last() == last

    @rule()
    def begin(self) -> None:
        if self.state in ("none", "kept", "rolled_back", "failed"):
            self.round = self.world.ledger.begin_round(self.world.run.id)
            assert self.round.parent_checkpoint == self.head
            self.state, self.stage, self.attempt = "sampling", 0, 0
        else:
            self.refused(partial(self.world.ledger.begin_round, self.world.run.id))

    @precondition(lambda self: self.round is not None)
    @rule(which=st.sampled_from(STAGES))
    def try_stage(self, which: Any) -> None:
        assert self.round
        call = partial(self.world.ledger.begin_attempt, self.round, which, {"stage": which})
        if self.state == which:
            self.attempt += 1
            assert call() == self.attempt
        else:
            self.refused(call)

    @precondition(lambda self: self.round is not None)
    @rule(which=st.sampled_from(STAGES[:3]))
    def finish(self, which: Any) -> None:
        assert self.round
        following = STAGES[STAGES.index(which) + 1]
        belongings: dict[str, Any] = {"next_state": following}
        if which == "sampling":
            belongings["selections"] = []
        if which == "training":
            belongings["candidate"] = weights(self.round.number, self.round.number, self.world.run.id)
        call = partial(self.world.ledger.finish_stage, self.round, which, self.attempt, {}, **belongings)
        if self.state == which and self.attempt:
            self.round = call()
            self.state, self.stage, self.attempt = following, self.stage + 1, 0
        else:
            self.refused(call)

    @precondition(lambda self: self.round is not None)
    @rule(verdict=st.sampled_from(["keep", "rollback", "inconclusive"]))
    def decide(self, verdict: str) -> None:
        assert self.round
        if self.state == "deciding" and self.attempt:
            self.round = self.world.ledger.decide(self.round, self.world.decision(self.round, verdict))
            self.state = "kept" if verdict == "keep" else "rolled_back"
            if verdict == "keep":
                self.head = self.round.candidate_checkpoint or ""
        elif self.state != "deciding":
            decision = replace(self.world.decision(self.round, "rollback"), head_after=self.head)
            self.refused(partial(self.world.ledger.decide, self.round, decision))

    @precondition(lambda self: self.round is not None)
    @rule(which=st.sampled_from(["fail", "resume"]))
    def interrupt(self, which: str) -> None:
        assert self.round
        ledger, round = self.world.ledger, self.round
        calls: dict[str, Callable[[], Round]] = {
            "fail": partial(ledger.fail_round, round, "broken"),
            "resume": partial(ledger.resume_round, round),
        }
        call = calls[which]
        if self.state in {"fail": STAGES, "resume": ("failed",)}[which]:
            self.round = call()
            self.state = {"fail": "failed", "resume": STAGES[self.stage]}[which]
        else:
            self.refused(call)

    @invariant()
    def as_expected(self) -> None:
        run = self.world.ledger.run()
        assert run and run.head_checkpoint == self.head
        if self.round:
            stored = self.world.ledger.round(run.id, self.round.number)
            assert stored == self.round and stored.state == self.state

    def teardown(self) -> None:
        for checkpoint in self.world.ledger.checkpoints.all(self.world.run.id):
            self.world.ledger.checkpoints.set_state(checkpoint.sha256, "collected")
        assert verify_store(self.world.db, Path("/nowhere")).findings == []


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=25)
