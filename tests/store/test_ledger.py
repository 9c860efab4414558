"""The ledger: transitions are compare-and-swap, each with its event, and the history holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from store.errors import Conflict, StoreError
from store.records import DECIDED, STAGES, Selection
from tests.support.stores import World, weights


def test_a_round_from_beginning_to_end(world: World) -> None:
    kept = world.whole_round("keep")
    assert (kept.state, kept.stage) == ("kept", "deciding") and kept.finished_at
    run = world.ledger.run("demo")
    assert run and run.head_round == 1 and run.head_checkpoint == kept.candidate_checkpoint and run.num_kept == 1
    rolled_back = world.whole_round("inconclusive")
    assert rolled_back.state == "rolled_back" and rolled_back.parent_checkpoint == kept.candidate_checkpoint
    run = world.now
    assert (run.head_round, run.num_kept, run.num_rolled_back) == (1, 1, 1)
    texts = [row.text for row in world.corpus.training_rows(run.id, 1)]
    assert texts == [world.completion(0).text, world.completion(2).text]
    assert [s.reason for s in world.corpus.selections(run.id, 1)] == [None, "too short", None]
    assert [d.verdict for d in world.ledger.decisions(run.id)] == ["keep", "inconclusive"]
    assert [stage.name for stage in world.ledger.stages(run.id, 1)] == list(STAGES)
    assert all(stage.finished_at and stage.num_attempts == 1 for stage in world.ledger.stages(run.id, 1))
    assert [r.number for r in world.ledger.rounds(run.id)] == [1, 2] and world.ledger.open_round(run.id) is None
    assert [c.round for c in world.ledger.checkpoints.all(run.id)] == [0, 1, 2]


def test_verdicts_in_a_row_on_one_head_and_the_hours_of_work(world: World) -> None:
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
    assert ledger.hours_of_work(run) == before, "an attempt that is under way has no end yet"
    ledger.fail_attempt(round, "sampling", attempt, "broken", "again")
    assert ledger.hours_of_work(run) == pytest.approx(before + 1.5)


def test_rounds_are_carried_until_one_is_shown_or_the_line_fails(world: World) -> None:
    ledger, run, base = world.ledger, world.run.id, world.run.base_checkpoint
    first, second = world.whole_round("carry"), world.whole_round("carry")
    assert (first.state, first.parent_checkpoint) == ("carried", base)
    assert second.parent_checkpoint == first.candidate_checkpoint
    now = world.now
    assert (now.head_checkpoint, now.tip_round, now.tip_checkpoint) == (base, 2, second.candidate_checkpoint)
    assert (now.depth, now.num_carried, now.num_decided, now.num_failed_lines) == (2, 2, 2, 0)
    assert ledger.verdicts_on(run, base, 10) == [], "what becomes of the line is not decided yet"
    world.whole_round("inconclusive")
    now = world.now
    assert (now.tip_checkpoint, now.tip_round, now.depth, now.num_failed_lines) == (base, 0, 0, 1)
    assert ledger.verdicts_on(run, base, 10) == ["inconclusive"]
    fourth, fifth = world.whole_round("carry"), world.whole_round("keep")
    assert fourth.parent_checkpoint == base and fifth.parent_checkpoint == fourth.candidate_checkpoint
    now = world.now
    assert (now.head_round, now.tip_round, now.depth, now.num_failed_lines) == (5, 5, 0, 1)
    assert now.head_checkpoint == now.tip_checkpoint == fifth.candidate_checkpoint
    assert world.findings() == []


def test_a_head_that_is_moved_by_hand_ends_the_line(world: World) -> None:
    ledger, run, base = world.ledger, world.run.id, world.run.base_checkpoint
    world.whole_round("keep")
    world.whole_round("carry")
    with world.refused(StoreError, "round 2 is carried"):
        ledger.move_head(run, 2, "looks good")
    assert not ledger.ask_head(ledger.begin_round(run).run_id, 1, "looks bad"), (
        "the tip is not the head: a round is open"
    )
    moved = ledger.move_head(run, 1, "looks bad")
    assert (moved.head_round, moved.tip_round, moved.depth, moved.num_failed_lines) == (1, 1, 0, 1)
    given_up = ledger.round(run, 3)
    assert given_up and given_up.state == "failed"
    with world.refused(match="the tip has moved since"):
        ledger.resume_round(given_up)
    world.whole_round("carry")
    assert ledger.move_head(run, 0, "looks bad").tip_checkpoint == base and world.now.num_failed_lines == 2
    assert ledger.move_head(run, 0, "again") == world.now and world.findings() == []


def test_a_failed_round_continues_where_it_was(world: World) -> None:
    round = world.round_at("training")
    attempt = world.ledger.begin_attempt(round, "training", {"x": 1})
    world.ledger.fail_attempt(round, "training", attempt, "no memory", "gives up")
    failed = world.ledger.fail_round(round, "no memory")
    assert (failed.state, failed.stage, failed.error) == ("failed", "training", "no memory")
    assert world.now.num_failed == 1 and world.ledger.open_round(world.run.id) is None
    resumed = world.ledger.resume_round(failed)
    assert (resumed.state, resumed.error, resumed.finished_at) == ("training", None, None)
    assert world.now.num_failed == 0
    assert world.ledger.begin_attempt(round, "training", {"x": 1}) == 2
    assert [a.error for a in world.ledger.attempts(world.run.id, 1, "training")] == ["no memory", None]
    with world.refused(match="round 1 is not finished"):
        world.ledger.begin_round(world.run.id)
    world.ledger.fail_round(round, "broken")
    assert world.ledger.begin_round(world.run.id).number == 2
    with world.refused(match="round 1 is over"):
        world.ledger.resume_round(round)


def test_a_stage_is_finished_once_and_by_its_latest_attempt(world: World) -> None:
    round = world.ledger.begin_round(world.run.id)
    first = world.ledger.begin_attempt(round, "sampling", {})
    second = world.ledger.begin_attempt(round, "sampling", {})  # the first one's process vanished
    finish = partial(world.ledger.finish_stage, round, "sampling", output={}, next_state="training", selections=[])
    with world.refused(match="attempt 1 is over"):
        finish(attempt=first)
    assert world.ledger.round(world.run.id, 1) == round, "a refused finish changes nothing"
    finish(attempt=second)
    with world.refused(match="is at training, not at sampling"):
        finish(attempt=second)


def test_the_first_attempt_freezes_the_input(world: World) -> None:
    round = world.ledger.begin_round(world.run.id)
    assert world.ledger.begin_attempt(round, "sampling", {"b": (1, 2), "a": 1}) == 1
    assert world.ledger.begin_attempt(round, "sampling", {"a": 1, "b": [1, 2]}) == 2
    with world.refused(Conflict, "the input differs"):
        world.ledger.begin_attempt(round, "sampling", {"a": 1, "b": [2, 1]})
    stage = world.ledger.stage(world.run.id, 1, "sampling")
    assert stage and stage.num_attempts == 2 and stage.output is None


def test_a_decision_on_another_head_is_refused(world: World) -> None:
    round = world.round_at("deciding")
    decision, candidate = world.decision(round, "rollback"), round.candidate_checkpoint or ""
    for wrong in ({"head_before": candidate}, {"head_after": candidate}, {"verdict": "keep"}):
        with world.refused():
            world.ledger.decide(round, replace(decision, **wrong))
    assert world.ledger.round(world.run.id, 1) == round


def test_a_selection_of_an_unknown_completion_undoes_the_whole_finish(world: World) -> None:
    round = world.ledger.begin_round(world.run.id)
    attempt = world.ledger.begin_attempt(round, "sampling", {})
    bad = [Selection(world.run.id, 1, "unknown", 0, True, None)]
    with world.refused(StoreError, "FOREIGN KEY"):
        world.ledger.finish_stage(round, "sampling", attempt, {}, next_state="training", selections=bad)
    assert world.ledger.round(world.run.id, 1) == round
    stage = world.ledger.stage(world.run.id, 1, "sampling")
    assert stage and stage.finished_at is None


def test_the_head_moves_between_rounds_to_what_was_kept(world: World) -> None:
    ledger, run, base = world.ledger, world.run.id, world.run.base_checkpoint
    for verdict in ("keep", "rollback", "keep"):
        world.whole_round(verdict)
    with world.refused(StoreError, "round 2 is rolled_back"):
        ledger.move_head(run, 2, "looks bad")
    assert ledger.move_head(run, 1, "looks bad").head_round == 1
    assert ledger.move_head(run, 0, "looks bad").head_checkpoint == base
    assert ledger.begin_round(run).parent_checkpoint == base
    assert ledger.move_head(run, 1, "looks good").head_round == 1
    given_up = ledger.round(run, 4)
    assert given_up and given_up.state == "failed" and "given up: the head moved to round 1" in (given_up.error or "")
    with world.refused(match="the tip has moved since"):
        ledger.resume_round(given_up)
    assert world.findings() == []


def test_collected_weights_come_back_when_they_are_made_again(world: World) -> None:
    checkpoints, made = world.ledger.checkpoints, weights("again", 0, world.run.id)
    checkpoints.add(made)
    checkpoints.add(replace(made, path="elsewhere"))
    assert checkpoints.get(made.sha256) == replace(made, created_at=checkpoints.all(world.run.id)[-1].created_at)
    checkpoints.set_state(made.sha256, "collected")
    checkpoints.add(replace(made, path="elsewhere"))
    again = checkpoints.pin(made.sha256)
    assert (again.state, again.path, again.pinned) == ("present", "elsewhere", True)
    last = world.ledger.events.last()
    checkpoints.pin(made.sha256)
    checkpoints.move(made.sha256, "elsewhere")
    assert checkpoints.set_state(made.sha256, "present") == again and world.ledger.events.last() == last


def test_a_run_is_created_once_and_its_state_is_news_once(world: World) -> None:
    with world.refused(StoreError, "already exists"):
        world.ledger.create_run("demo", {}, "d" * 64, 2, weights("base"))
    world.ledger.set_run_state(world.run.id, "paused", "asked to")
    last = world.ledger.events.last()
    world.ledger.set_run_state(world.run.id, "paused", "asked to")
    assert world.now.reason == "asked to" and world.ledger.events.last() == last


class Rounds(RuleBasedStateMachine):
    """Any order of calls: those that fit succeed, the others change nothing, and the history always verifies."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.round: Any = None
        self.state = "none"
        self.stage = 0
        self.attempt = 0
        self.several: list[str] = []  # candidates of which none is chosen yet
        self.head = self.tip = self.world.run.base_checkpoint

    def refused(self, call: Callable[[], object]) -> None:
        with self.world.refused():
            call()

    @rule()
    def begin(self) -> None:
        if self.state in ("none", "failed", *DECIDED):
            self.round = self.world.ledger.begin_round(self.world.run.id)
            assert self.round.parent_checkpoint == self.tip
            self.state, self.stage, self.attempt, self.several = "sampling", 0, 0, []
        else:
            self.refused(partial(self.world.ledger.begin_round, self.world.run.id))

    @precondition(lambda self: self.round is not None)
    @rule(which=st.sampled_from(STAGES))
    def try_stage(self, which: Any) -> None:
        call = partial(self.world.ledger.begin_attempt, self.round, which, {"stage": which})
        if self.state == which:
            self.attempt += 1
            assert call() == self.attempt
        else:
            self.refused(call)

    @precondition(lambda self: self.round is not None)
    @rule(which=st.sampled_from(STAGES[:3]), num=st.integers(1, 3))
    def finish(self, which: Any, num: int) -> None:
        if which == "evaluating" and self.several:
            return  # refused by an assertion
        following = STAGES[STAGES.index(which) + 1]
        belongings: dict[str, Any] = {"next_state": following}
        if which == "sampling":
            belongings["selections"] = []
        if which == "training":
            number, run_id = self.round.number, self.world.run.id
            left = [weights(f"{number}-{step}" if step else number, number, run_id) for step in range(num)]
            belongings["candidates"] = left
        several = [row.sha256 for row in belongings.get("candidates", ())]
        output = {"candidates": [{"checkpoint": sha256} for sha256 in several]} if num > 1 else {}
        call = partial(self.world.ledger.finish_stage, self.round, which, self.attempt, output, **belongings)
        if self.state == which and self.attempt:
            self.round = call()
            self.several = several if len(several) > 1 else []
            assert set(several) <= {*self.world.ledger.candidates(self.round)}
            self.state, self.stage, self.attempt = following, self.stage + 1, 0
        else:
            self.refused(call)

    @precondition(lambda self: self.round is not None)
    @rule(which=st.integers(0, 2))
    def choose(self, which: int) -> None:
        chosen = self.several[which % len(self.several)] if self.several else self.tip
        call = partial(self.world.ledger.choose_candidate, self.round, chosen, why="best")
        if self.state == "evaluating" and self.several:
            self.round = call()
            assert self.round.candidate_checkpoint == chosen
            self.several = []
        else:
            self.refused(call)

    @precondition(lambda self: self.round is not None)
    @rule(verdict=st.sampled_from(["keep", "carry", "rollback", "inconclusive"]))
    def decide(self, verdict: str) -> None:
        if self.state == "deciding" and self.attempt:
            self.round = self.world.ledger.decide(self.round, self.world.decision(self.round, verdict))
            self.state = {"keep": "kept", "carry": "carried"}.get(verdict, "rolled_back")
            candidate = self.round.candidate_checkpoint or ""
            self.head = candidate if verdict == "keep" else self.head
            self.tip = candidate if verdict == "carry" else self.head
        elif self.state != "deciding":
            decision = replace(self.world.decision(self.round, "rollback"), head_after=self.head)
            self.refused(partial(self.world.ledger.decide, self.round, decision))

    @precondition(lambda self: self.round is not None)
    @rule(which=st.sampled_from(["fail", "resume"]))
    def interrupt(self, which: str) -> None:
        ledger, round = self.world.ledger, self.round
        call = {"fail": partial(ledger.fail_round, round, "broken"), "resume": partial(ledger.resume_round, round)}[
            which
        ]
        if self.state in {"fail": STAGES, "resume": ("failed",)}[which]:
            self.round = call()
            self.state = {"fail": "failed", "resume": STAGES[self.stage]}[which]
        else:
            self.refused(call)

    @invariant()
    def as_expected(self) -> None:
        assert (self.world.now.head_checkpoint, self.world.now.tip_checkpoint) == (self.head, self.tip)
        if self.round:
            stored = self.world.ledger.round(self.world.run.id, self.round.number)
            assert stored == self.round and stored.state == self.state

    def teardown(self) -> None:
        for checkpoint in self.world.ledger.checkpoints.all(self.world.run.id):
            self.world.ledger.checkpoints.set_state(checkpoint.sha256, "collected")
        assert self.world.findings() == []


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=25, stateful_step_count=25)
