"""One process of a fine-tune by several: `python -m loop.engines.distributed_rank SCRATCH`, as torchrun starts it.

`loop.engines.distributed` wrote what is to be done into SCRATCH, and reads there what came of it.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch

from loop.engines import sharded
from loop.engines.hf_models import choose_device
from loop.engines.trl_trainer import Job, train
from loop.errors import LeftTraining, LoopError


def write_whole(file: Path, text: str) -> None:
    """The file has all of the text or is not there."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(file)


def run(job: Job, scratch: Path) -> None:
    """The part of this process. Process 0 reports: first the weights, then also their losses."""
    reports = os.environ["RANK"] == "0"
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    device = choose_device(job.engine.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    sharded.start_group(device)

    def progress(done: int, total: int) -> None:
        if reports:
            write_whole(scratch / "progress", f"{done} {total}")

    for result in train(job, device, scratch / "out", progress):
        if reports:
            write_whole(scratch / "result.json", result.model_dump_json())
        sharded.wait_for_all()
    torch.distributed.destroy_process_group()


def main(scratch: Path) -> None:
    """One process. The first error of each is left in a file."""
    try:
        run(Job.model_validate_json((scratch / "job.json").read_text()), scratch)
    except LeftTraining as left:  # all processes, after the same step
        write_whole(scratch / f"left.{os.environ['RANK']}", str(left))
    except BaseException as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0][:400]
        text = first if isinstance(error, LoopError) else f"{type(error).__name__}: {first}"
        write_whole(scratch / f"error.{os.environ['RANK']}", text)
        os._exit(1)  # an orderly end would wait for the other processes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
