"""What befalls one of two processes that train together: a full disk, a death, a standstill. No hang, and one line that says it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loop.engines.base import CheckpointRef, Kept
from loop.engines.slate import Slate
from loop.errors import EngineError, StalledError
from loop.stages.training import train
from loop.system.disk import is_no_room
from loop.workers.worker import RemoteTrainer, Worker
from store.checkpoints import sweep_temporaries
from store.failpoints import VARIABLE
from tests.loop.engines.test_distributed import ranks
from tests.support.engines import contents, many_rows, no_progress, settings, training, write_rows
from tests.support.waiting import HANG_S, wait_until

TWO = settings(num_training_processes=2)
EACH_STEP = {"save_every_s": 1e-9, "batch_size": 8, "candidates": 1}
Start = Callable[..., RemoteTrainer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a trainer by two processes, with a failpoint in them. Nothing is left of it after the test."""
    with contextlib.ExitStack() as stack:

        def begin(failpoint: str = "", progress: Any = no_progress, **more: Any) -> RemoteTrainer:
            how = {"stall_timeout_s": HANG_S, "log_file": tmp_path / "log", "environment": {VARIABLE: failpoint}} | more
            worker = Worker({"op": "load_trainer", "settings": TWO}, progress=progress, tag="trainer", **how)
            stack.callback(wait_until, lambda: not ranks(worker.token))
            stack.callback(worker.end)
            return RemoteTrainer(worker)

        yield begin


def fit(trainer: RemoteTrainer, parent: CheckpointRef, tmp_path: Path, **recipe: Any) -> Any:
    """Train it, and keep its state after each step."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    rows = write_rows(tmp_path / "rows.jsonl", many_rows(30))
    return trainer.fit(rows, parent, training(**EACH_STEP | recipe), out, Kept(directory=tmp_path / "kept"))


# A full disk


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_costs_a_state_and_not_the_training(
    rank: int, start: Start, tiny: CheckpointRef, tmp_path: Path
) -> None:
    """Whichever process finds no room, and where the log takes nothing either. The state before stays, and the user is told."""
    notes: list[str] = []
    trainer = start(f"training.shards_written=full#{rank}@2+", note=notes.append, log_file=Path("/dev/full"))
    assert fit(trainer, tiny, tmp_path, num_steps=4).num_steps == 4
    assert os.listdir(tmp_path / "kept") == ["checkpoint-1"]
    assert notes[-1].startswith(f"the training's state is not saved at {tmp_path / 'kept' / 'checkpoint-3'}: ")
    assert f": rank {rank}: [Errno 28] No space left on device" in notes[-1]
    assert " bytes were free); it continues" in notes[-1] and notes[-1].endswith("make room")
    assert not any("\n" in note for note in notes)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("tmp")] == []


@pytest.mark.slow
@pytest.mark.parametrize(("when", "num_candidates"), [("the last step", 1), ("step 2", 2)])
def test_a_full_disk_while_weights_are_written(
    when: str, num_candidates: int, start: Start, tiny: CheckpointRef, tmp_path: Path
) -> None:
    """Process 0 alone writes them. One line says it, nothing half-written stays, and the training continues later."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    kept, rows = Kept(directory=checkpoints / "training-1"), [*map(as_completion, many_rows(30))]
    recipe = training(**EACH_STEP | {"num_steps": 4, "candidates": num_candidates})
    steps: list[int] = []
    for failpoint in ("training.weights_written=full#0", "training.weights_written=full#1@1+"):
        trainer = start(failpoint, lambda done, total: steps.append(done))
        try:
            trained = train(rows, tiny, recipe, trainer, checkpoints / "round-0001", kept)
        except EngineError as error:
            said = error
            steps.clear()
            trainer.close()
            sweep_temporaries(checkpoints)  # as `loop.run.attempting` does
            assert os.listdir(checkpoints) == ["training-1"]
    assert is_no_room(said), "the run waits for room"
    wanted = rf"{checkpoints}/\S+: the weights after {when} cannot be written: [^\n]*No space left on device[^\n]* \([\d,]+ bytes are free\); make room"
    assert re.fullmatch(wanted, str(said)), said
    assert steps[0] >= (4 if when == "the last step" else 2) and trained.result.num_steps == 4
    assert (checkpoints / "round-0001" / "model.safetensors").exists()


def as_completion(row: Any) -> Any:
    return SimpleNamespace(prompt_token_ids=row.prompt_token_ids, token_ids=row.completion_token_ids)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["160k", "320k"])
def test_a_disk_that_is_too_small(size: str, start: Start, tiny: CheckpointRef, tmp_path: Path) -> None:
    """A true one, on which all of it lies: there is no room for the weights, or for what lies beside them, and nothing is left."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        with pytest.raises(
            EngineError, match=rf"^{small}/out: the weights after the last step cannot be written: [^\n]*"
        ) as raised:
            fit(start(), tiny, small, num_steps=2)
        assert is_no_room(raised.value) and str(raised.value).endswith("; make room")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


# Deaths


@pytest.mark.parametrize(
    ("rank", "number", "said"),
    [
        (1, signal.SIGKILL, r"was killed \(out of memory\?\); lower training\.micro_batch_size, or see the worker's log"),
        pytest.param(0, signal.SIGKILL, r"was killed \(out of memory\?\); .*", marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSEGV, r"ended by signal 11 \(Segmentation fault\); .* worker's log", marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSEGV, r"ended by signal 11 \(Segmentation fault\); .* worker's log", marks=pytest.mark.slow),
        pytest.param(1, None, r"ended with exit code 3; its last words are in the worker's log", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_process_that_dies_ends_the_others_and_is_named(
    rank: int, number: int | None, said: str, start: Start, tiny: CheckpointRef, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if number is not None and not killed:
            killed.append(rank_of(trainer, rank))
            os.kill(killed[0], number)

    trainer = start("" if number else f"training.shards_written=exit#{rank}@3", kill)
    with pytest.raises(EngineError, match=rf"^rank {rank} of 2 training processes {said}$"):
        fit(trainer, tiny, tmp_path, num_steps=100000)
    wait_until(lambda: not ranks(trainer.worker.token))
    assert not contents(tmp_path / "out")


def rank_of(trainer: RemoteTrainer, rank: int) -> int:
    """The process of that rank."""
    (pid,) = [each.pid for each in ranks(trainer.worker.token) if each.environ()["RANK"] == str(rank)]
    return pid


# Standstills


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "how"), [(1, "stopped"), (0, "stopped"), (1, "waits"), (0, "waits")])
def test_a_process_that_stands_still_is_named(
    rank: int, how: str, start: Start, tiny: CheckpointRef, tmp_path: Path
) -> None:
    """Stopped from outside, or for ever busy with nothing before it joins the others. The worker is ended for it."""
    stopped: list[int] = []

    def stop(done: int, total: int) -> None:
        if how == "stopped" and not stopped:
            stopped.append(rank_of(trainer, rank))
            os.kill(stopped[0], signal.SIGSTOP)

    failpoint = f"training.shards_written=hang#{rank}@3" if how == "waits" else ""
    trainer = start(failpoint, stop, stall_timeout_s=20.0)
    said = f"and was ended; the others of 2 training processes wait for rank {rank}; if it is only slow, raise "
    with pytest.raises(StalledError, match=rf"^trainer: it made no progress for 20 s \(it did nothing\) {said}[^\n]*$"):
        fit(trainer, tiny, tmp_path, num_steps=100000)
    wait_until(lambda: not ranks(trainer.worker.token))


# Their slates


def test_a_slate_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    slate = Slate(tmp_path / "slate")
    assert slate.read() == (0, "")
    slate.clear()
    assert slate.read() == (0, "")
    slate.write("\u00e9" * 5000)
    size = slate.file.stat().st_size
    slate.write("12 \U0001f600")
    assert Slate(slate.file).read() == (2, "12 \U0001f600") and slate.file.stat().st_size == size
    slate.file.write_bytes(slate.file.read_bytes().replace(b"2]", b"1]"))  # half of one and half of another
    assert slate.read() == (0, "")


def test_a_slate_takes_a_text_where_the_disk_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slate = Slate(tmp_path / "slate")
    slate.clear()
    slate.write("before")

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loop.engines.slate.os.pwrite", full)
    slate.write("after")
    assert slate.read() == (1, "before")
