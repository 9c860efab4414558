"""What a collection keeps and removes, whatever happened before; and what a kill in the middle of it leaves."""

from __future__ import annotations

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

    def candidate(self, number: int) -> Checkpoint:
        directory = temporary_directory(self.run_dir / "checkpoints")
        (directory / "model.safetensors").write_bytes(bytes([number]) * (100 + number))
        final = self.run_dir / "checkpoints" / f"round-{number:04d}"
        manifest = commit_directory(directory, final)
        size, path = manifest_size_bytes(manifest), f"checkpoints/{final.name}"
        return Checkpoint(manifest_sha256(manifest), self.run.id, number, "full", path, None, None, size, manifest)

    def measure(self, checkpoint: str, round: int, rate: float) -> None:
        row = self.evaluation(round, sha256_of([checkpoint]), checkpoint)
        self.corpus.evaluations.finish(row.id, {"pass@1": rate})

    def trained(self) -> Round:
        round = self.round_at("training")
        return self.stage(round, "training", candidates=[self.candidate(round.number)])

    def round_of(self, verdict: str, rate: float) -> None:
        round = self.trained()
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


def test_the_oldest_of_the_newest_go_where_the_total_is_bounded(world: Weights) -> None:
    for _ in range(4):
        world.round_of("rollback", 0.0)
    for max_total_bytes, doomed in ((210, [1, 2]), (0, [1, 2, 3, 4]), (10_000, [])):
        assert world.doomed(keep_last=4, max_total_bytes=max_total_bytes) == doomed


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


@settings(max_examples=40)
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
