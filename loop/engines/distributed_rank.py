"""One process of a fine-tune by several: `python -m loop.engines.distributed_rank SCRATCH`, as torchrun starts it.

`loop.engines.distributed` wrote what is to be done into SCRATCH, and reads there what came of it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

from loop.engines import sharded
from loop.engines.hf_models import choose_device
from loop.engines.lossy_log import make_log_lossy
from loop.engines.slate import LONGEST, Slate, error_of, left_by
from loop.engines.trl_trainer import Job, train
from loop.errors import LeftTraining, LoopError

LOOK_S = 1.0


def write_whole(file: Path, text: str) -> None:
    """The file has all of the text or is not there."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(file)


def tell_where(slate: Slate) -> None:
    """Keep on the slate how many collective operations this process has begun: who has begun fewer is waited for."""
    told = -1
    while True:
        if (num := sharded.num_collectives()) != told:
            slate.write(f"{os.getpid()} {num}")
            told = num
        time.sleep(LOOK_S)


def run(job: Job, scratch: Path) -> None:
    """The part of this process. The first one of each machine reports: that the weights are written, then also their losses."""
    reports = os.environ["LOCAL_RANK"] == "0"
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    device = choose_device(job.engine.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    slate = Slate(scratch / f"rank-{os.environ['RANK']}")
    threading.Thread(target=tell_where, args=(slate,), daemon=True).start()
    sharded.start_group(device)
    steps, notes = Slate(scratch / "progress"), Slate(scratch / "note")

    def progress(done: int, total: int) -> None:
        if reports:
            steps.write(f"{done} {total}")

    for result in train(job, device, scratch / "out", progress, notes.write):
        if reports:
            write_whole(scratch / "result.json", result.model_dump_json())
        sharded.wait_for_all()
    torch.distributed.destroy_process_group()


def main(scratch: Path) -> None:
    """One process. The first error of each is left on its slate."""
    make_log_lossy()
    try:
        run(Job.model_validate_json((scratch / "job.json").read_text()), scratch)
    except LeftTraining as left:  # all processes, after the same step
        left_by(scratch, os.environ["RANK"]).write(str(left))
    except BaseException as error:
        first = (str(error).strip().splitlines() or [""])[0][:LONGEST]
        text = first if isinstance(error, LoopError) else f"{type(error).__name__}: {first}"
        error_of(scratch, os.environ["RANK"]).write(text)
        traceback.print_exc()
        os._exit(1)  # an orderly end would wait for the other processes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
