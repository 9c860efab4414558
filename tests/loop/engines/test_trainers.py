"""One contract over all trainers, in process and remote."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.engines.base import CheckpointRef, Trainer
from loop.errors import EngineError
from tests.support.engines import at, contents, fit, sample, some_rows, training
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


KINDS = [
    ("fake", "full", True),
    ("fake remote", "full", True),
    ("trl", "full", True),
    ("trl", "lora", True),
    ("trl", "lora", False),
    pytest.param("trl remote", "full", True, marks=pytest.mark.slow),
    pytest.param("trl remote", "lora", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "method", "merge"), KINDS)
def test_the_contract(
    name: str, method: str, merge: bool, trainers: Callable[[str], Trainer], fake: CheckpointRef, tiny: CheckpointRef,
    tmp_path: Path,
) -> None:  # fmt: skip
    trainer = trainers(name)
    seen: list[tuple[int, int]] = []
    holder: Any = trainer.worker if "remote" in name else trainer
    holder.progress = lambda done, total: seen.append((done, total))
    parent = fake if name.startswith("fake") else tiny
    before = contents(parent.path)
    rows = some_rows()
    settings = training(method, merge=merge, num_epochs=2)

    result = fit(trainer, parent, settings, tmp_path / "one")
    assert result.num_steps == 6  # three batches of four for ten rows, the last one smaller, twice
    assert (result.num_rows, result.num_completion_tokens) == (10, sum(len(row.completion_token_ids) for row in rows))
    assert len(result.losses) == 6 and all(math.isfinite(loss) and loss > 0 for loss in result.losses)
    adapter = name.startswith("trl") and not merge
    assert result.adapter == adapter
    assert seen[-1] == (6, 6) and seen == sorted(seen)

    written = contents(tmp_path / "one")
    assert {Path(file).suffix for file in written} <= {".safetensors", ".json", ".jinja", ".txt"}
    assert contents(parent.path) == before
    assert fit(trainer, parent, settings, tmp_path / "two") == result
    assert contents(tmp_path / "two") == written

    base_path = parent.path if adapter else None
    child = at(tmp_path / "one", base_path)
    assert sample(child, name) != sample(parent, name) or name.startswith("fake")
    again = fit(trainer, child, training(method, merge=merge, num_steps=3), tmp_path / "three")
    assert again.num_steps == 3 and again.adapter == adapter
    sample(at(tmp_path / "three", base_path), name)

    with pytest.raises(EngineError, match="completion"):
        fit(trainer, parent, settings, tmp_path / "none", rows=[])
    assert fit(trainer, parent, settings, tmp_path / "four") == result, "an error spoils the trainer"


def test_remote_and_in_process_agree_to_the_bit(
    trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    here, remote = (fit(trainers(name), tiny, training(), tmp_path / name) for name in ("trl", "trl remote"))
    assert here == remote and contents(tmp_path / "trl") == contents(tmp_path / "trl remote")


@pytest.mark.slow
def test_a_trainer_that_stays_up_does_not_grow(trainers: Callable[[str], Trainer], tmp_path: Path) -> None:
    """After each of twenty fits less is left than one checkpoint takes, where a fit takes four times that and more."""
    path = make_tiny_model(tmp_path / "model", head_size=256, trained=False)
    size_bytes = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    trainer: Any = trainers("trl remote")

    def fit_once(path: Path, name: str) -> None:
        fit(trainer, at(path), training(num_steps=1), tmp_path / name)

    def rss_bytes() -> int:
        guard = psutil.Process(trainer.worker.process.pid)
        return max(process.memory_info().rss for process in [guard, *guard.children(recursive=True)])

    fit_once(path, "first")
    before = rss_bytes()
    for number in range(20):
        fit_once(path, f"fit-{number}")
        shutil.rmtree(tmp_path / f"fit-{number}")
        assert abs(rss_bytes() - before) < size_bytes, number
    small = make_tiny_model(tmp_path / "small", trained=False)
    fit_once(small, "small-fit")
    assert before - rss_bytes() < size_bytes, "the first fit left something behind"
