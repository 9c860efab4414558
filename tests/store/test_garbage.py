"""What a collection keeps and removes, whatever happened before; and what a kill in the middle of it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.canonical import sha256_of
from store.checkpoints import commit_directory, manifest_sha256, manifest_size_bytes, temporary_directory, verify
from store.errors import StoreError
from store.garbage import best_round, collect, plan_collection
from store.records import Checkpoint, Round
from store.verify import verify_store
from tests.support.stores import World

VERDICTS = ("keep", "carry", "rollback")


class Weights(World):
    """A world whose checkpoints really lie there; `rates` are what each round's candidate reaches."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.measure(self.run.base_checkpoint, 0, 0.1)

    def candidate(self, number: int, step: int = 0, content: bytes = b"") -> Checkpoint:
        directory = temporary_directory(self.run_dir / "checkpoints")
        content = content or bytes([number + 50 * step]) * (100 + number)
        (directory / "model.safetensors").write_bytes(content)
        final = self.run_dir / "checkpoints" / f"round-{number:04d}{f'-step-{step:06d}' if step else ''}"
        manifest = commit_directory(directory, final)
        size, path = manifest_size_bytes(manifest), f"checkpoints/{final.name}"
        row = Checkpoint(manifest_sha256(manifest), self.run.id, number, "full", path, None, None, size, manifest)
        return replace(row, origin={"step": step}) if step else row

    def measure(self, checkpoint: str, round: int, rate: float) -> None:
        row = self.evaluation(round, sha256_of([checkpoint]), checkpoint)
        self.corpus.evaluations.finish(row.id, {"pass@1": rate})

    def trained(self) -> Round:
        round = self.round_at("training")
        return self.stage(round, "training", candidates=[self.candidate(round.number)])

    def trained_several(self, *contents: bytes) -> tuple[Round, list[str]]:
        """A round with candidates of steps 1, 2 and 3, of which none is chosen yet; and their hashes."""
        round = self.round_at("training")
        given = dict(enumerate(contents, start=1))
        left = [self.candidate(round.number, step, given.get(step, b"")) for step in (1, 2)]
        left.append(self.candidate(round.number, 3))
        output = {"candidates": [{"step": row.origin["step"], "checkpoint": row.sha256} for row in left]}
        attempt = self.ledger.begin_attempt(round, "training", {})
        round = self.ledger.finish_stage(round, "training", attempt, output, next_state="evaluating", candidates=left)
        return round, [row.sha256 for row in left]

    def steps(self) -> dict[int, list[int]]:
        """Of which candidates of each round the weights lie there."""
        there: dict[int, list[int]] = {}
        for row in self.ledger.checkpoints.all(self.run.id):
            if row.round and row.state == "present":
                assert (self.run_dir / row.path).is_dir()
                there.setdefault(row.round, []).append(row.origin["step"])
        assert len(self.directories()) == sum(map(len, there.values()))
        return there

    def round_of(self, verdict: str, rate: float, trained: Round | None = None) -> None:
        round = trained or self.trained()
        self.measure(round.candidate_checkpoint or "", round.number, rate)
        round = self.stage(round, "evaluating")
        self.ledger.begin_attempt(round, "deciding", {})
        self.ledger.decide(round, self.decision(round, verdict))

    def plan(self, **settings: Any) -> Any:
        settings = {"keep_last": 1, "max_total_bytes": None, "damaged": False} | settings
        return plan_collection(self.ledger, self.now, self.run_dir, "suite", **settings)

    def doomed(self, **settings: Any) -> list[int]:
        """The rounds whose checkpoints a collection removes."""
        return [row.round for row in self.plan(**settings).doomed]

    def present(self) -> set[int]:
        return {row.round for row in self.ledger.checkpoints.all(self.run.id) if row.state == "present"}

    def directories(self) -> set[str]:
        return {path.name for path in self.run_dir.glob("checkpoints/*")}


@pytest.fixture
def world(tmp_path: Path) -> Weights:
    return Weights(tmp_path)


def test_base_head_best_pinned_and_the_newest_stay(world: Weights) -> None:
    rounds = [("keep", 0.2), ("keep", 0.9), ("keep", 0.3), ("rollback", 0.99), ("keep", 0.4), ("rollback", 0.1)]
    for verdict, rate in rounds:
        world.round_of(verdict, rate)
    first = next(row for row in world.ledger.checkpoints.all(world.run.id) if row.round == 1)
    world.ledger.checkpoints.pin(first.sha256)
    assert best_round(world.ledger, world.now, "suite") == 2
    plan = world.plan()
    assert {row.round: why for row, why in plan.kept} == {
        0: "the base", 1: "pinned", 2: "the best", 5: "the head", 6: "among the newest 1",
    }  # fmt: skip
    assert [row.round for row in plan.doomed] == [3, 4]
    size = sum(row.size_bytes for row in plan.doomed)
    assert collect(world.ledger, world.run_dir, plan) >= size
    assert world.present() == {0, 1, 2, 5, 6}
    assert world.directories() == {"round-0001", "round-0002", "round-0005", "round-0006"}
    assert world.plan().doomed == () and world.plan().leftovers == ()
    with world.refused(StoreError, "the checkpoint of round 3 is collected"):
        world.ledger.move_head(world.run.id, 3, "too late")


def test_the_tip_stays_and_goes_when_its_line_has_failed(world: Weights) -> None:
    for verdict in ("keep", "carry", "carry"):
        world.round_of(verdict, 0.1)
    kept = {row.round: why for row, why in world.plan(keep_last=0).kept}
    assert kept == {0: "the base", 1: "the head", 3: "the tip"} and world.doomed(keep_last=0) == [2]
    world.round_of("rollback", 0.0)
    assert world.doomed(keep_last=0) == [2, 3, 4]


def test_what_an_open_round_works_with_stays_after_a_rollback_by_hand(world: Weights) -> None:
    world.round_of("keep", 0.5)
    world.round_of("keep", 0.4)
    world.trained()
    assert world.doomed(keep_last=0) == []
    world.ledger.move_head(world.run.id, 0, "by hand")
    assert world.doomed(keep_last=0) == [], "a failed round may still be looked at"
    world.round_of("rollback", 0.0)
    assert world.doomed(keep_last=0) == [2, 3, 4]


def test_an_unfinished_training_stays_while_its_round_may_continue(world: Weights) -> None:
    def left() -> bool:
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "step").write_text("3")
        plan = world.plan()
        collect(world.ledger, world.run_dir, plan)
        assert kept.exists() == (kept not in plan.leftovers)
        return kept.exists()

    kept = world.run_dir / "checkpoints" / ".training-0123456789ab"
    assert not left(), "no round has begun"
    round = world.round_at("sampling")
    assert not left(), "nothing is trained yet"
    round = world.stage(round, "sampling")
    assert left()
    world.ledger.fail_round(round, "three attempts failed")
    assert left(), "it may be tried again"
    round = world.ledger.resume_round(world.ledger.round(world.run.id, 1) or round)
    assert left()
    world.round_of("keep", 0.5, world.stage(round, "training", candidates=[world.candidate(1)]))
    assert not left()
    world.round_at("training")
    world.ledger.move_head(world.run.id, 0, "by hand")
    assert not left(), "its round was given up"


def test_the_oldest_of_the_newest_go_where_the_total_is_bounded(world: Weights) -> None:
    for _ in range(4):
        world.round_of("rollback", 0.0)
    for max_total_bytes, doomed in ((210, [1, 2]), (0, [1, 2, 3, 4]), (10_000, [])):
        assert world.doomed(keep_last=4, max_total_bytes=max_total_bytes) == doomed


def test_what_was_not_chosen_stays_until_the_decision(world: Weights) -> None:
    """And goes then, however many the newest are that stay; a kill in between changes nothing of that."""
    for number, (verdict, kept) in enumerate((("keep", 2), ("carry", 3), ("rollback", 1)), start=1):
        round, left = world.trained_several()
        collect(world.ledger, world.run_dir, world.plan(keep_last=0))
        assert world.steps()[number] == [1, 2, 3], "the candidates of an open round"
        round = world.ledger.choose_candidate(round, left[kept - 1])
        collect(world.ledger, world.run_dir, world.plan(keep_last=0))
        assert world.steps()[number] == [1, 2, 3], "it is not decided yet"
        world.round_of(verdict, 0.5, round)
        plan = world.plan(keep_last=9)
        assert [row.origin["step"] for row in plan.doomed] == [step for step in (1, 2, 3) if step != kept]
        world.ledger.checkpoints.set_state(plan.doomed[0].sha256, "collected")
        collect(world.ledger, world.run_dir, world.plan(keep_last=9))
        assert world.steps()[number] == [kept]
    assert world.steps() == {1: [2], 2: [3], 3: [1]}
    assert world.plan(keep_last=9).doomed == world.plan(keep_last=9).leftovers == ()


def test_a_pinned_candidate_stays_and_those_of_a_round_that_was_given_up_go(world: Weights) -> None:
    round, left = world.trained_several()
    round = world.ledger.choose_candidate(round, left[0])
    world.ledger.checkpoints.pin(left[1])
    world.round_of("rollback", 0.1, round)
    collect(world.ledger, world.run_dir, world.plan(keep_last=0))
    assert world.steps() == {1: [2]}
    round, _ = world.trained_several()
    world.ledger.fail_round(round, "broken")
    collect(world.ledger, world.run_dir, world.plan(keep_last=0))
    assert world.steps() == {1: [2], 2: [1, 2, 3]}, "a failed round may be resumed"
    world.ledger.begin_round(world.run.id)
    collect(world.ledger, world.run_dir, world.plan(keep_last=9))
    assert world.steps() == {1: [2]}


def test_candidates_that_are_the_weights_of_another_round_stay_with_it(world: Weights) -> None:
    """Round 2 leaves the weights that round 1 has chosen, and some that it has not, once more."""
    round, first = world.trained_several(b"chosen", b"not chosen")
    world.round_of("keep", 0.5, world.ledger.choose_candidate(round, first[0]))
    collect(world.ledger, world.run_dir, world.plan())
    assert world.steps() == {1: [1]}
    round, second = world.trained_several(b"chosen", b"not chosen")
    assert first[:2] == second[:2] and world.ledger.checkpoints.known(first[1]).path.startswith(
        "checkpoints/round-0002"
    )
    world.round_of("rollback", 0.1, world.ledger.choose_candidate(round, second[2]))
    collect(world.ledger, world.run_dir, world.plan(keep_last=0))
    assert world.steps() == {1: [1]} and world.directories() == {"round-0001-step-000001"}


def test_a_kill_between_the_word_and_the_deed_leaves_what_the_next_collection_removes(world: Weights) -> None:
    for _ in range(3):
        world.round_of("rollback", 0.0)
    for row in world.plan().doomed:
        world.ledger.checkpoints.set_state(row.sha256, "collected")
    plan = world.plan()
    assert [path.name for path in plan.leftovers] == ["round-0001", "round-0002"] and plan.doomed == ()
    assert collect(world.ledger, world.run_dir, plan) > 0
    assert world.directories() == {"round-0003"}


def test_a_plan_that_is_out_of_date_is_refused_as_a_whole(world: Weights) -> None:
    world.round_of("keep", 0.2)
    world.round_of("keep", 0.9)
    world.round_of("keep", 0.9)
    plan = world.plan(keep_last=0)
    assert [row.round for row in plan.doomed] == [1]
    world.ledger.move_head(world.run.id, 1, "by hand")
    with world.refused(StoreError, "round 1 is needed since"):
        collect(world.ledger, world.run_dir, plan)
    assert world.present() == {0, 1, 2, 3} and "round-0001" in world.directories()


def test_damaged_copies_go_only_when_that_is_asked(world: Weights) -> None:
    world.round_of("keep", 0.2)
    (world.run_dir / "checkpoints" / "round-0001.damaged").mkdir()
    assert world.plan().leftovers == ()
    assert collect(world.ledger, world.run_dir, world.plan(damaged=True)) == 0
    assert world.directories() == {"round-0001"}


@settings(max_examples=20)
@given(
    rounds=st.lists(st.tuples(st.sampled_from(VERDICTS), st.integers(0, 9), st.booleans()), max_size=7),
    keep_last=st.integers(0, 3),
    bound=st.one_of(st.none(), st.integers(0, 600)),
    back_to=st.integers(0, 7),
)
def test_nothing_that_is_needed_ever_goes(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[Any], keep_last: int, bound: int | None, back_to: int
) -> None:
    world = Weights(tmp_path_factory.mktemp("run"))
    ledger, run_id = world.ledger, world.run.id
    for verdict, rate, pin in rounds:
        world.round_of(verdict, rate / 10)
        if pin:
            ledger.checkpoints.pin(ledger.checkpoints.all(run_id)[-1].sha256)
    kept = [number + 1 for number, (verdict, _, _) in enumerate(rounds) if verdict == "keep"]
    if back_to in kept:
        ledger.move_head(run_id, back_to, "by hand")
    collect(ledger, world.run_dir, world.plan(keep_last=keep_last, max_total_bytes=bound))
    run, present = ledger.run_of(run_id), world.present()
    assert {0, run.head_round, run.tip_round, best_round(ledger, run, "suite")} <= present
    assert {row.round for row in ledger.checkpoints.all(run_id) if row.pinned} <= present
    for row in ledger.checkpoints.all(run_id):
        if row.round and row.state == "present":
            verify(world.run_dir / row.path, row.manifest)
    assert len(world.directories()) == len(present - {0})
    assert all("checkpoints/base" in finding.message for finding in verify_store(world.db, world.run_dir).findings)
    assert world.doomed(keep_last=keep_last, max_total_bytes=bound) == []
