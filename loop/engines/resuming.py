"""Checkpoints inside a training, from which it continues as if it had never ended. Runs only inside a worker.

One process or several, ordinary tensors or shards: every process writes what it holds (torch.distributed.checkpoint), so the
number of processes may change in between. A checkpoint is whole or not there: it grows as `.checkpoint-N.part`, each of its
files is fsynced, and only then it is renamed. What is read is verified by SHA-256 first. Of a LoRA only the adapter is written.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from transformers import TrainerCallback

from loop.engines.base import Kept, Tell
from loop.engines.sharded import num_processes, process_number
from loop.errors import LeftTraining
from store.checkpoints import make_directory
from store.durable import fsync
from store.failpoints import reach

NAME = "checkpoint-"  # and the number of steps that it has behind it
STATE, SCHEDULER = "trainer_state.json", "scheduler.pt"  # the first name is transformers' own, which reads that file
HASHES = "sha256-{}-of-{}.json"  # of one process of so many: the SHA-256 of each file that it wrote
CANNOT = (OSError, RuntimeError, ValueError, LookupError, dcp.api.CheckpointException)


def all_agree(ours: bool, device: torch.device) -> bool:
    """Whether every process says yes. It waits for all of them."""
    if not dist.is_initialized():
        return ours
    told = torch.tensor([int(ours)], device=device)
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return bool(told.item())


def as_rank_0_says(ours: int, device: torch.device) -> int:
    """The number that the first process gives."""
    if not dist.is_initialized():
        return ours
    told = torch.tensor([ours], device=device)
    dist.broadcast(told, 0)
    return int(told.item())


# Writing


def save_checkpoint(
    directory: Path, model: Any, optimizer: Any, scheduler: Any, state: dict[str, Any], free_bytes: int, note: Tell
) -> None:
    """Write the state of a training as `directory`; then those of fewer steps go. Every process calls it.

    Where that is impossible, as on a full disk, nothing of it is left, and what was there before stays. Process 0 notes the
    reason in one line, and takes that back with the next state that is saved. It is not even tried where less than
    `free_bytes` would stay free.
    """
    device = next(model.parameters()).device
    part = directory.with_name(f".{directory.name}.part")
    try:
        _begin(part, model, device, free_bytes)
        _write(part, model, optimizer, scheduler, state, device)
        _all(lambda: _name(part, directory) if process_number() == 0 else None, device)
    except CANNOT as error:
        if process_number() == 0:
            free = shutil.disk_usage(next(each for each in part.parents if each.exists())).free
            shutil.rmtree(part, ignore_errors=True)
            why = f"{_first_cause(error)} ({free:,} bytes were free)"  # torch does not say that a disk is full
            text = f"the training's state is not saved at {directory}: {why}; it continues"
            print(text, file=sys.stderr)
            note(f"{text}, but what comes after its last state is lost if it is interrupted: make room")
        return
    if process_number() == 0:
        note("")
        for older in checkpoints_in(directory.parent)[1:]:
            shutil.rmtree(older, ignore_errors=True)


def _all(work: Callable[[], object], device: torch.device) -> None:
    """Do it in every process. Where one of them cannot, all raise; so none waits for ever for another."""
    failed: BaseException | None = None
    try:
        work()
    except CANNOT as error:
        failed = error
    if all_agree(failed is None, device):
        return
    if not dist.is_initialized():
        assert failed is not None
        raise failed
    causes: list[str | None] = [None] * num_processes()
    dist.all_gather_object(causes, failed and _first_cause(failed))
    raise OSError(next(f"rank {rank}: {cause}" for rank, cause in enumerate(causes) if cause))


def _begin(part: Path, model: Any, device: torch.device, free_bytes: int) -> None:
    needed = torch.tensor([sum(_local_bytes(each) for each in model.parameters() if each.requires_grad)], device=device)
    if dist.is_initialized():
        dist.all_reduce(needed)

    def prepare() -> None:
        if process_number() == 0:
            make_directory(part.parent)
            for leftover in part.parent.glob(f".{NAME}*.part"):
                shutil.rmtree(leftover)
            free = shutil.disk_usage(part.parent).free
            if free < (wanted := 3 * int(needed.item()) + free_bytes):  # weights and both moments
                raise OSError(errno.ENOSPC, f"{wanted:,} bytes are wanted")
            part.mkdir()

    _all(prepare, device)


def _local_bytes(parameter: Any) -> int:
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(local.numel() * local.element_size())


def _write(part: Path, model: Any, optimizer: Any, scheduler: Any, state: dict[str, Any], device: torch.device) -> None:
    # It fsyncs what it writes; an error in one process is raised in all.
    dcp.save(_tensors(model, optimizer), checkpoint_id=part, no_dist=not dist.is_initialized())

    def write_the_rest() -> None:
        reach("training.shards_written")
        ours = sorted(part.glob(f"__{process_number()}_*.distcp"))
        ours.append(_written(part / _random_file(process_number()), _torch_bytes(_random_state())))
        if process_number() == 0:
            ours += [part / ".metadata", _written(part / SCHEDULER, _torch_bytes(scheduler.state_dict()))]
            ours.append(_written(part / STATE, json.dumps(state).encode()))
        hashes = {file.name: _sha256(file) for file in ours}
        _written(part / HASHES.format(process_number(), num_processes()), json.dumps(hashes).encode())

    _all(write_the_rest, device)


def _name(part: Path, directory: Path) -> None:
    fsync(part)
    reach("training.written")
    shutil.rmtree(directory, ignore_errors=True)  # one that was found damaged
    os.rename(part, directory)
    reach("training.renamed")
    fsync(directory.parent)


def _tensors(model: Any, optimizer: Any) -> dict[str, Any]:
    """The weights that are trained, each once even where it is tied, and what the optimizer knows of them."""
    weights = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    return {"model": weights, "optimizer": get_optimizer_state_dict(model, optimizer)}


def _written(file: Path, content: bytes) -> Path:
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    return file


def _torch_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _first_cause(error: BaseException) -> str:
    if isinstance(error, dcp.api.CheckpointException):
        return next((f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items()), "unknown")
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


# Finding and reading


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints there, most steps first. They have their names, so each was whole when it got it."""
    found = [each for each in directory.glob(f"{NAME}*") if each.name.removeprefix(NAME).isdecimal()]
    return sorted(found, key=lambda each: int(each.name.removeprefix(NAME)), reverse=True)


def newest(directory: Path, device: torch.device) -> Path | None:
    """The checkpoint with most steps whose files are as they were written. Damaged ones are removed, which the log says.

    Every process calls it and gets the same; they share the reading.
    """
    steps = [int(each.name.removeprefix(NAME)) for each in checkpoints_in(directory)]
    # What rank 0 sees counts: over a network others may see an older list.
    while (step := as_rank_0_says(steps.pop(0) if steps else -1, device)) >= 0:
        checkpoint = directory / f"{NAME}{step}"
        if all_agree(_is_whole(checkpoint), device):
            return checkpoint
        if process_number() == 0:
            print(f"{checkpoint}: is damaged, so the training continues from an earlier state", file=sys.stderr)
            shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether the files are there and unchanged, of those processes whose files this one looks at."""
    try:
        written_by = sorted(checkpoint.glob(HASHES.format("*", "*")))
        num = int(written_by[0].stem.rpartition("-")[2])
        if written_by != sorted(checkpoint / HASHES.format(number, num) for number in range(num)):
            return False
        ours: Iterable[Path] = written_by[process_number() :: num_processes()]
        return all(
            _sha256(checkpoint / name) == sha256
            for hashes in ours
            for name, sha256 in json.loads(hashes.read_bytes()).items()
        )
    except (OSError, ValueError, LookupError):
        return False


def load_checkpoint(checkpoint: Path, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Put weights, moments and schedule as they were. Every process calls it; it reads only what it holds."""
    tensors = _tensors(model, optimizer)
    dcp.load(tensors, checkpoint_id=checkpoint, no_dist=not dist.is_initialized())  # the weights in place
    set_optimizer_state_dict(model, optimizer, tensors["optimizer"])
    scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER, weights_only=True))


def _random_file(number: int) -> str:
    return f"random-{number}.pt"


def _random_state() -> dict[str, Any]:
    numpy: Any = np.random.get_state()
    state: dict[str, Any] = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    state["numpy"] = [each.tolist() if isinstance(each, np.ndarray) else each for each in numpy]
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(checkpoint: Path) -> None:
    """The random numbers of this process continue. With another number of processes than before they begin anew."""
    file = checkpoint / _random_file(process_number())
    if not (checkpoint / HASHES.format(process_number(), num_processes())).exists():
        return
    state = torch.load(file, weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


# In a trainer


class ByTheClock(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint after each `every_s` seconds of the first process's clock, and when the training is to end.

    In the second case it raises LeftTraining, in every process after the same step. At the last step it asks for nothing.
    """

    def __init__(self, every_s: float, kept: Kept, clock: Callable[[], float] = time.monotonic) -> None:
        self.every_s, self.kept, self.clock = every_s, kept, clock
        self.saved_at, self.leaves = clock(), False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved_at = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            return
        is_due = self.clock() - self.saved_at >= self.every_s
        asked = as_rank_0_says(2 if self.kept.is_asked_to_end() else int(is_due), args.device)
        self.leaves = asked == 2
        control.should_save |= asked > 0

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved_at = self.clock()
        if self.leaves:
            raise LeftTraining(f"the training was left after step {state.global_step} of {state.max_steps}")


class Resumable:
    """What makes transformers' Trainer save and continue so; stands before it among the bases of a class.

    Trainer's own way writes in place, and refuses models that were sharded while they were loaded: these need
    `save_only_model=True` among its arguments, which has no other meaning here. The batches that were trained on are skipped,
    and random numbers continue after that, which is exact where a batch is a whole step.
    """

    kept: Kept | None = None
    note: Tell
    model: Any
    optimizer: Any
    lr_scheduler: Any
    args: Any
    state: Any

    def continued(self, kept: Kept, every_s: float, note: Tell) -> Path | None:
        """Save in this place from now on; the checkpoint to be given to `train`, if there is one."""
        self.kept, self.note = kept, note
        self.add_callback(ByTheClock(every_s, kept))  # type: ignore[attr-defined]
        return newest(kept.directory, self.args.device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self.kept is not None, "nothing asks for a checkpoint elsewhere"
        self.store_flos()  # type: ignore[attr-defined]
        save_checkpoint(
            self.kept.directory / f"{NAME}{self.state.global_step}",
            self.model,
            self._plain_optimizer(),
            self.lr_scheduler,
            dataclasses.asdict(self.state),
            self.kept.free_bytes,
            self.note,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing yet: the weights come with the optimizer."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_checkpoint(Path(checkpoint), self.model, self._plain_optimizer(), self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(Path(checkpoint))

    def _plain_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's wrapper around it
