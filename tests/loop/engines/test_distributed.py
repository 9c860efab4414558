"""A fine-tune by two processes of a CPU is that of one, and leaves nothing behind when it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.engines.base import CheckpointRef, EngineConfig, TrainingResult, TrainingRow, earlier_dir
from loop.errors import EngineError
from loop.system import ourselves
from loop.system import trees as guard
from loop.workers.worker import RemoteTrainer, Worker
from tests.support.engines import EOS, at, contents, many_rows, settings, some_rows, training, write_rows
from tests.support.tiny import make_random_model, make_tiny_model
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


def trained(
    tmp_path: Path,
    parent: CheckpointRef,
    recipe: dict[str, Any],
    num_processes: int,
    rows: list[TrainingRow] | None = None,
) -> tuple[TrainingResult, Path]:
    """What so many processes report, and the directory that they wrote."""
    name = f"with-{num_processes}"
    file = write_rows(tmp_path / "rows.jsonl", some_rows() if rows is None else rows)
    (tmp_path / name).mkdir()
    steps: list[tuple[int, int]] = []
    engine = settings(num_training_processes=num_processes)
    with contextlib.closing(start(tmp_path, engine, lambda done, total: steps.append((done, total)))) as trainer:
        result = trainer.fit(file, parent, recipe, tmp_path / name)
    assert steps[-1] == (result.num_steps, result.num_steps)
    return result, tmp_path / name


def check_equal(tmp_path: Path, parent: CheckpointRef, recipe: dict[str, Any], num_processes: int, **more: Any) -> None:
    """They train as one process does: losses, weights, and what lies on the disk under which names in which precision."""
    from safetensors.torch import load_file

    one, alone = trained(tmp_path, parent, recipe, 1, **more)
    several, together = trained(tmp_path, parent, recipe, num_processes, **more)
    assert len(one.losses) == one.num_steps and several.losses == pytest.approx(one.losses, abs=2e-6)
    inexact = {"losses", "held_out_loss", "train_loss", "earlier"}
    assert several.model_dump(exclude=inexact) == one.model_dump(exclude=inexact)
    for ours, theirs in zip([one, *one.earlier], [several, *several.earlier], strict=True):
        assert (theirs.held_out_loss, theirs.train_loss) == pytest.approx(
            (ours.held_out_loss, ours.train_loss), abs=1e-4
        )
    steps = [each.num_steps for each in one.earlier]
    pairs = [(earlier_dir(alone, step), earlier_dir(together, step)) for step in steps] + [(alone, together)]
    for ours_dir, theirs_dir in pairs:
        assert contents(ours_dir).keys() == contents(theirs_dir).keys()
        (file,) = ours_dir.glob("*.safetensors")
        ours, theirs = load_file(file), load_file(theirs_dir / file.name)
        assert ours.keys() == theirs.keys()
        assert all(each.dtype == theirs[name].dtype for name, each in ours.items())
        apart = max(float((each.float() - theirs[name].float()).abs().max()) for name, each in ours.items())
        assert apart < 2e-5, apart
        if file.name.startswith("model"):  # an adapter has nothing of its parent
            before = load_file(parent.path / file.name)
            assert ours.keys() == before.keys()
            moved = max(float((each.float() - before[name].float()).abs().max()) for name, each in ours.items())
            assert moved > 1e-3


GENTLE = {"num_epochs": 2, "learning_rate": 1e-3, "min_learning_rate": 1e-4, "held_out": 2}
# The last of ten or more rows are fewer than a batch, and of four processes some have nothing in it.


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """A mixture of experts, whose weights are fused while they are trained; with a candidate along the way."""
    parent = at(make_random_model(tmp_path / "model", "qwen3-moe"))
    check_equal(tmp_path, parent, training(**GENTLE) | {"candidates": 2}, 2, rows=many_rows(42))


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("kind", ["tied llama", "llama", "qwen3", "qwen3-moe", "gpt-oss"])
def test_several_processes_train_as_one(kind: str, num_processes: int, tmp_path: Path) -> None:
    if kind == "tied llama":
        parent = at(make_tiny_model(tmp_path / "model"))
    else:
        parent = at(make_random_model(tmp_path / "model", kind))
    check_equal(tmp_path, parent, training(**GENTLE), num_processes)


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_is_trained_by_two_processes(merge: bool, tmp_path: Path) -> None:
    parent = at(make_random_model(tmp_path / "model", "qwen3"))
    recipe = training("lora", merge=merge, **GENTLE | {"learning_rate": 1e-2}) | {"candidates": 2}
    check_equal(tmp_path, parent, recipe, 2, rows=many_rows(42))


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(600, *[12] * 7), (12,), (300, 12)])
def test_uneven_rows_do_not_hang(lengths: tuple[int, ...], tmp_path: Path) -> None:
    """One row as long as all others together; fewer rows than processes."""
    rows = [
        TrainingRow(prompt_token_ids=(9, 10), completion_token_ids=(*[20] * (length - 3), EOS)) for length in lengths
    ]
    parent = at(make_random_model(tmp_path / "model", "qwen3"))
    check_equal(tmp_path, parent, training(**GENTLE | {"held_out": 0}, micro_batch_size=1), 2, rows=rows)


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_all_processes_with_one_line(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = make_random_model(tmp_path / "model", "qwen3")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"^[^\n]*the loss is nan at step 1; lower training\.learning_rate$"):
        trained(tmp_path, at(path), training(), 2)
    assert not contents(tmp_path / "with-2")


RANK = """
import sys, json, torch
from pathlib import Path
from loop.engines import sharded
from torch.distributed.tensor import DTensor
torch.set_num_threads(1)
sharded.start_group(torch.device("cpu"))
model = sharded.load(Path(sys.argv[1]), torch.float32, torch.device("cpu"))
held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())
Path(sys.argv[2], f"rank-{sharded.process_number()}.json").write_text(json.dumps([held, sum(p.numel() for p in model.parameters())]))
sharded.wait_for_all()
"""


@pytest.mark.slow
def test_each_process_holds_its_share(tmp_path: Path) -> None:
    path = make_random_model(tmp_path / "model", "qwen3-moe")
    (tmp_path / "rank.py").write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*torchrun, tmp_path / "rank.py", path, tmp_path], check=True, env=os.environ | ourselves.environment()
    )
    shares = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("rank-*.json"))]
    assert len(shares) == 2
    for held, whole in shares:
        assert held <= 0.5 * whole + 100


@pytest.mark.slow
def test_a_parent_that_is_no_safetensors_is_refused_in_one_line(tmp_path: Path) -> None:
    path = make_random_model(tmp_path / "model", "qwen3")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(EngineError, match=rf"^{path}: holds no weights in safetensors, [^\n]*; convert the model$"):
        trained(tmp_path, at(path), training(), 2)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["guard", "rank", "engine"])
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
