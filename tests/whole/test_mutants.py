"""Programs that order their writes wrongly: each is caught by a check that the real one passes.

A check that catches nothing proves nothing. Wrong syncs are caught by power cuts, since a kill leaves the page cache whole;
wrong transactions by looking at the store after every commit; wrong counts by counting again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loop.round
import loop.run.comparison
import loop.run.evaluation
import store.ledger
from loop.config.loading import load_config
from loop.run.opening import open_session
from loop.stages import evaluating as stages
from store.db import execute, insert, transaction
from store.ledger import Ledger
from store.records import DecisionRow, Round
from tests.support.powercut_runs import Recording, after_each_promise, all_broken, out_of_order, record_run
from tests.support.runs import KEEPING, Quiet, write_run
from tests.whole import test_round_commits


def wrong_after_a_cut(place: Path, change: str) -> tuple[Recording, list[str]]:
    recording = record_run(place, num_rounds=1, change=change)
    return recording, all_broken(recording, after_each_promise(recording))


def test_the_real_program_survives_every_cut(tmp_path: Path) -> None:
    recording, wrong = wrong_after_a_cut(tmp_path, "")
    assert wrong == [] and out_of_order(recording, 1) == []


# Each change is code that the recorded program runs before it opens its session.
SYNCS = """
real_fsync, real_rename = os.fsync, os.rename
def path_of(descriptor):
    return os.readlink(f"/proc/self/fd/{descriptor}")
"""
FORGETFUL = """
def fsync(descriptor):
    if not path_of(descriptor).endswith("FORGOTTEN"):
        real_fsync(descriptor)
os.fsync = fsync
"""
LEDGER_FIRST = """
from store.checkpoints import write_manifest
real_finish, waiting = ledger.Ledger.finish_stage, []
def commit_directory(tmp_dir, final_dir, hasher):
    manifest = write_manifest(tmp_dir, hasher)
    os.rename(tmp_dir, final_dir.parent / "tmp-later")
    waiting.append(final_dir)
    return manifest
def finish_stage(self, *args, **more):
    finished = real_finish(self, *args, **more)
    while waiting:
        final_dir = waiting.pop()
        os.rename(final_dir.parent / "tmp-later", final_dir)
        descriptor = os.open(final_dir.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return finished
training.commit_directory, ledger.Ledger.finish_stage = commit_directory, finish_stage
"""
NORMAL = 'opened = lambda session: session.ledger.db.conn.execute("PRAGMA synchronous = NORMAL")'
RENAMED_FIRST = """
waiting = []
def fsync(descriptor):
    if "/tmp-" in path_of(descriptor):
        waiting.append(path_of(descriptor))
    else:
        real_fsync(descriptor)
def rename(old, new):
    real_rename(old, new)
    while waiting:
        descriptor = os.open(os.path.join(new, os.path.relpath(waiting.pop(), old)), os.O_RDONLY)
        real_fsync(descriptor)
        os.close(descriptor)
os.fsync, os.rename = fsync, rename
"""


@pytest.mark.parametrize(
    ("change", "symptom"),
    [
        (FORGETFUL.replace("FORGOTTEN", ".safetensors"), "model.safetensors: the size is 0 bytes"),
        pytest.param(
            FORGETFUL.replace("FORGOTTEN", "/checkpoints"),
            "round-0001: the directory is missing",
            marks=pytest.mark.slow,
        ),
        pytest.param(LEDGER_FIRST, "round-0001: the directory is missing", marks=pytest.mark.slow),
        (NORMAL, "was acknowledged and is gone"),
    ],
    ids=["no fsync of the weights", "no fsync after the rename", "the ledger before the rename", "synchronous=NORMAL"],
)
def test_a_power_cut_catches(change: str, symptom: str, tmp_path: Path) -> None:
    _, wrong = wrong_after_a_cut(tmp_path, SYNCS + change)
    assert any(symptom in line for line in wrong), wrong


def test_the_order_of_syncs_catches_a_rename_before_them(tmp_path: Path) -> None:
    """No cut does: until the ledger knows of the directory, its manifest tells whole from damaged."""
    recording, wrong = wrong_after_a_cut(tmp_path, SYNCS + RENAMED_FIRST)
    assert wrong == []
    misplaced = out_of_order(recording, 1)
    assert any("model.safetensors: is not synced" in line for line in misplaced), misplaced


def in_two_transactions(self: Ledger, round: Round, decision: DecisionRow, real: Callable[..., Round]) -> Round:
    decision = replace(decision, decided_at=decision.decided_at or self.now())
    with transaction(self.db):
        insert(self.db, "decisions", [decision])

    def without_the_decision(db: Any, table: str, records: Iterable[Any], **more: Any) -> int:
        return 1 if table == "decisions" else insert(db, table, records, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.ledger, "insert", without_the_decision)
        return real(self, round, decision)


def head_first(self: Ledger, round: Round, decision: DecisionRow, real: Callable[..., Round]) -> Round:
    run = self.run_of(round.run_id)
    move = "UPDATE runs SET head_round = ?, head_checkpoint = ? WHERE id = ?"
    with transaction(self.db):
        execute(self.db, move, (round.number, decision.head_after, run.id))
    with transaction(self.db):  # which leads to the right end
        execute(self.db, move, (run.head_round, run.head_checkpoint, run.id))
        return real(self, round, decision)


@pytest.mark.parametrize(
    ("mutant", "symptom"),
    [
        pytest.param(in_two_transactions, "the decision is missing, altered, or in no event", id="decision, then head"),
        pytest.param(head_first, "does not follow from the decisions", id="head, then decision"),
    ],
)
def test_the_store_after_every_commit_catches(
    mutant: Callable[..., Round], symptom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Ledger.decide
    monkeypatch.setattr(Ledger, "decide", lambda self, round, decision, **more: mutant(self, round, decision, real))
    with pytest.raises(AssertionError, match=symptom):
        test_round_commits.test_the_store_is_sound_after_every_commit(tmp_path)


def counted_again(directory: Path) -> None:
    loaded = load_config(write_run(directory, KEEPING))
    with open_session(loaded, Quiet()) as session:
        assert loop.round.run_round(session).state == "kept"
    test_round_commits.test_every_verdict_counts_once(loaded.run_dir)


@pytest.mark.parametrize(
    ("module", "name", "double"),
    [
        (loop.run.evaluation, "figures", lambda verdicts, *args: stages.figures([*verdicts, *verdicts], *args)),
        (loop.run.comparison, "outcomes_of",
         lambda verdicts: {id: results * 2 for id, results in stages.outcomes_of(verdicts).items()}),
    ],
    ids=["in the figures", "in the evidence"],
)  # fmt: skip
def test_counting_again_catches(
    module: Any, name: str, double: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted_again(tmp_path / "real")
    monkeypatch.setattr(module, name, double)
    with pytest.raises(AssertionError):
        counted_again(tmp_path / "mutant")
