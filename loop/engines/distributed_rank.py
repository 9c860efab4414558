"""One process of a fine-tune by several: `python -m loop.engines.distributed_rank SCRATCH`, as torchrun starts it.

`loop.engines.distributed` wrote what is to be done into SCRATCH, and reads there what came of it. On GPUs weights, gradients
and optimizer state are sharded (FSDP 2).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from trl import SFTTrainer

from loop.engines.base import TrainingResult
from loop.engines.distributed import Job
from loop.engines.hf_models import load_model, load_tokenizer
from loop.engines.trl_trainer import Columns, Report, StartingPoint, TrlTrainer, read_rows
from loop.errors import EngineError, LoopError


def write_whole(file: Path, text: str) -> None:
    """The file has all of the text or is not there."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(file)


class Padded(SeedableRandomSampler):  # type: ignore[misc]
    """The order of one process, then rows without loss, so that every rank has as many batches."""

    def __init__(self, num_rows: int, num_fill: int, seed: int) -> None:
        super().__init__(range(num_rows), generator=torch.Generator(), data_seed=seed)
        self.fill = range(num_rows, num_rows + num_fill)

    def __iter__(self) -> Iterator[int]:
        yield from super().__iter__()
        yield from self.fill

    def __len__(self) -> int:
        return self.fill.stop


class GroupTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains on `rows`, filled up so that each of `num_processes` gets whole batches."""

    def __init__(self, rows: Columns, num_processes: int, args: Any, **more: Any) -> None:
        self.num_rows = len(rows["labels"])
        self.num_fill = -self.num_rows % (args.per_device_train_batch_size * num_processes)
        filled = {"input_ids": rows["input_ids"] + [rows["input_ids"][0][:2]] * self.num_fill}
        filled["labels"] = rows["labels"] + [[-100] * len(filled["input_ids"][-1])] * self.num_fill
        super().__init__(args=args, train_dataset=Dataset.from_dict(filled), **more)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Padded(self.num_rows, self.num_fill, self.args.seed)


def train(job: Job, rank: int, scratch: Path) -> TrainingResult | None:
    """The part of one rank. Rank 0 gathers the weights, writes them as the one-process trainer does, and reports."""
    num_processes = int(os.environ["WORLD_SIZE"])
    trainer_of_one = TrlTrainer(job.engine, lambda done, total: None)
    on_gpu = trainer_of_one.device.type == "cuda"
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        trainer_of_one.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    rows, left_out = read_rows(job.rows_file, job.settings)

    def progress(done: int, total: int) -> None:
        if rank == 0:
            write_whole(scratch / "progress", f"{done} {total}")

    spread = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2}} if on_gpu else {}
    trainer = GroupTrainer(
        rows,
        num_processes,
        args=trainer_of_one.arguments(job.settings, scratch / "out", num_processes, **spread),
        model=load_model(job.parent, "auto", torch.device("cpu")).float(),
        processing_class=load_tokenizer(job.parent)[0],
        callbacks=[Report(progress)],
    )
    trainer.train()
    if on_gpu and not trainer.is_fsdp_enabled:
        raise EngineError("accelerate did not shard the model; unset ACCELERATE_* in the environment")
    state = trainer.accelerator.get_state_dict(trainer.model)
    result = None
    if rank == 0:
        start = StartingPoint(job.parent, trainer_of_one.device)
        start.model.load_state_dict(state)
        result = start.write(start.model, True, rows, left_out, job.out_dir, trainer.state)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return result


def main(scratch: Path) -> None:
    """One rank. The first error of each is left in a file."""
    rank = int(os.environ["RANK"])
    try:
        result = train(Job.model_validate_json((scratch / "job.json").read_text()), rank, scratch)
        if result is not None:
            write_whole(scratch / "result.json", result.model_dump_json())
    except BaseException as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0][:400]
        text = first if isinstance(error, LoopError) else f"{type(error).__name__}: {first}"
        write_whole(scratch / f"error.{rank}", text)
        os._exit(1)  # an orderly end would wait for the other ranks


if __name__ == "__main__":
    main(Path(sys.argv[1]))
