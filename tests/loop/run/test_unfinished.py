"""What an unfinished training keeps belongs to it alone, and goes when it is of no use any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.run import unfinished as module
from loop.run.opening import open_session
from loop.run.unfinished import forget_unfinished, unfinished
from tests.support.engines import training
from tests.support.runs import Quiet, write_run

Inputs = dict[str, Any]
INPUTS: Inputs = {"checkpoint": "1" * 64, "num_rows": 3, "rows_sha256": "2" * 64, "settings": training()}


def with_setting(**changed: Any) -> Inputs:
    return INPUTS | {"settings": INPUTS["settings"] | changed}


def test_another_training_never_continues_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, weights, settings and versions do. What only costs time and memory may be another."""
    with open_session(load_config(write_run(tmp_path)), Quiet()) as session:
        round, checkpoints = session.ledger.begin_round(session.run_id), session.loaded.run_dir / "checkpoints"

        def named(inputs: Inputs) -> Path:
            return unfinished(session, round, inputs).directory

        own = named(INPUTS)
        assert own.parent == checkpoints and not own.exists(), "it is there once something is written"
        own.mkdir(parents=True)
        (own / "checkpoint-3").mkdir()
        (checkpoints / "round-0007").mkdir()
        for same in ({"micro_batch_size": 1}, {"gradient_checkpointing": False}, {"save_every_s": 7.0}):
            assert named(with_setting(**same)) == own and (own / "checkpoint-3").exists()
        others: list[Callable[[], Path]] = [
            lambda: named(INPUTS | {"rows_sha256": "3" * 64}),
            lambda: named(INPUTS | {"checkpoint": "3" * 64}),
            lambda: named(with_setting(learning_rate=1.0)),
            lambda: named(with_setting(seed=1)),
            lambda: named(with_setting(candidates=2)),
        ]
        for other in others:
            own.mkdir(exist_ok=True)
            assert other() != own and not own.exists(), "and what cannot be of use is removed"
        own.mkdir()
        monkeypatch.setattr(module, "machine", lambda: {"torch": "0.0"})
        assert named(INPUTS) != own and not own.exists()
        own.mkdir()
        forget_unfinished(session)
        assert [path.name for path in checkpoints.iterdir()] == ["round-0007"]


def test_its_state_leaves_room_for_the_weights(tmp_path: Path) -> None:
    with open_session(load_config(write_run(tmp_path)), Quiet()) as session:
        round = session.ledger.begin_round(session.run_id)
        weights = session.ledger.checkpoints.known(round.parent_checkpoint).size_bytes
        least = session.loaded.config.storage.min_free_bytes
        for num in (1, 3):
            assert unfinished(session, round, with_setting(candidates=num)).free_bytes == least + num * weights
