"""A fine-tune by two processes of a CPU is that of one, and leaves nothing behind when it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.engines.base import CheckpointRef, EngineConfig
from loop.errors import EngineError
from loop.system import trees as guard
from loop.workers.worker import RemoteTrainer, Worker
from tests.support.engines import contents, settings, some_rows, training, write_rows
from tests.support.waiting import HANG_S, wait_until

TWO = settings(num_training_processes=2)


def start(tmp_path: Path, engine: EngineConfig, progress: Any) -> RemoteTrainer:
    init = {"op": "load_trainer", "settings": engine}
    worker = Worker(init, log_file=tmp_path / "log", stall_timeout_s=HANG_S, progress=progress, tag="trainer")
    return RemoteTrainer(worker)


def ranks(token: str) -> list[psutil.Process]:
    """The processes of the group, without what launched them."""
    group = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(guard.TREE) == token and "RANK" in process.environ():
                group.append(process)
    return group


def test_two_processes_train_as_one(tiny: CheckpointRef, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recipe = training(num_epochs=2, micro_batch_size=1)  # ten rows: the last step of an epoch has two
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    results, steps = [], []
    for name, engine in (("one", settings()), ("two", TWO)):
        with contextlib.closing(start(tmp_path, engine, lambda done, total: steps.append((done, total)))) as trainer:
            (tmp_path / name).mkdir()
            results.append(trainer.fit(rows, tiny, recipe, tmp_path / name))
    alone, two = results
    assert two.losses == pytest.approx(alone.losses, rel=1e-4) and len(two.losses) == 6
    assert two.model_dump(exclude={"losses"}) == alone.model_dump(exclude={"losses"})
    assert steps[-1] == (6, 6)
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "two").keys()
    paths = (tmp_path / "one", tmp_path / "two", tiny.path)
    ours, theirs, before = (load_file(path / "model.safetensors") for path in paths)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        apart, moved = (tensor.float() - other[name].float() for other in (theirs, before))
        # A single number may go astray: Adam makes much of a gradient near 0.
        assert apart.norm() < 0.02 * moved.norm(), name


@pytest.mark.parametrize("whom", ["guard", *(pytest.param(who, marks=pytest.mark.slow) for who in ("rank", "engine"))])
def test_a_killed_process_ends_them_all(whom: str, tiny: CheckpointRef, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    (tmp_path / "out").mkdir()
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if not killed:
            worker = trainer.worker
            group = ranks(worker.token)
            assert len(group) >= 2
            victim = {"rank": group[-1].pid, "engine": group[0].parent().parent().pid, "guard": worker.process.pid}
            killed.append(victim[whom])
            os.kill(killed[0], signal.SIGKILL)

    with contextlib.closing(start(tmp_path, TWO, kill)) as trainer:
        with pytest.raises(EngineError) as raised:
            trainer.fit(rows, tiny, training(num_steps=100000, micro_batch_size=1), tmp_path / "out")
        assert killed and "\n" not in str(raised.value)
        wait_until(lambda: not ranks(trainer.worker.token))
        assert not list((tmp_path / "out").iterdir())
