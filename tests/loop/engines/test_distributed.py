"""A fine-tune by two processes of a CPU is that of one, and leaves nothing behind when it is killed."""

from __future__ import annotations

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
from tests.support.engines import no_progress, settings, some_rows, training, write_rows
from tests.support.waiting import HANG_S, wait_until

TWO = settings(num_training_processes=2)


def start(tmp_path: Path, engine: EngineConfig, progress: Any = no_progress, pulse: Any = lambda: None) -> Worker:
    message = {"op": "load_trainer", "settings": engine}
    return Worker(
        message, log_file=tmp_path / "log", stall_timeout_s=HANG_S, progress=progress, pulse=pulse, tag="trainer"
    )


def ranks(token: str) -> list[psutil.Process]:
    """The processes of the group, without what launched them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(guard.TREE) == token and "RANK" in process.environ():
                found.append(process)
        except psutil.Error:
            pass
    return found


def test_two_processes_train_as_one(tiny: CheckpointRef, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recipe = training(num_epochs=2, micro_batch_size=1)  # ten rows: the last step of an epoch has two
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    results, steps = [], []
    for name, engine in (("one", settings()), ("two", TWO)):
        (tmp_path / name).mkdir()
        worker = start(tmp_path, engine, lambda done, total: steps.append((done, total)))
        try:
            results.append(RemoteTrainer(worker).fit(rows, tiny, recipe, tmp_path / name))
        finally:
            worker.end()
    one, two = results
    assert two.losses == pytest.approx(one.losses, rel=1e-4) and len(two.losses) == 6
    assert two.model_dump(exclude={"losses"}) == one.model_dump(exclude={"losses"})
    assert steps[-1] == (6, 6)
    files = [{file.name for file in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    before = load_file(tiny.path / "model.safetensors")
    for name, tensor in weights[0].items():
        assert tensor.dtype == weights[1][name].dtype
        apart, moved = (tensor.float() - other[name].float() for other in (weights[1], before))
        assert apart.norm() < 0.02 * moved.norm(), (
            name
        )  # one number may go astray: Adam makes much of a gradient near 0


@pytest.mark.parametrize("whom", ["guard", *(pytest.param(one, marks=pytest.mark.slow) for one in ("rank", "engine"))])
def test_a_killed_process_ends_them_all(whom: str, tiny: CheckpointRef, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    (tmp_path / "out").mkdir()
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if not killed:
            group = ranks(worker.token)
            assert len(group) >= 2
            victim = {"rank": group[-1].pid, "engine": group[0].parent().parent().pid, "guard": worker.process.pid}
            killed.append(victim[whom])
            os.kill(killed[0], signal.SIGKILL)

    worker = start(tmp_path, TWO, kill)
    try:
        with pytest.raises(EngineError) as raised:
            recipe = training(num_steps=100000, micro_batch_size=1)
            RemoteTrainer(worker).fit(rows, tiny, recipe, tmp_path / "out")
        assert killed and "\n" not in str(raised.value)
        wait_until(lambda: not ranks(worker.token))
        assert not list((tmp_path / "out").iterdir())
    finally:
        worker.end()
