"""A fine-tune by several processes of one group, started by torchrun. Runs only inside a worker.

`train_in_group` starts the group and waits; `loop.engines.distributed_rank` is one process of it. They talk through
small files in a scratch directory, which cannot hang. Whatever is started descends from the worker's guard and inherits its
token, so it ends with the worker.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from loop.engines.base import EngineConfig, Progress, TrainingResult
from loop.engines.trl_trainer import Job
from loop.errors import EngineError, LeftTraining

POLL_S = 0.2


def train_in_group(job: Job, device: torch.device, scratch: Path, progress: Progress) -> TrainingResult:
    """Run `train` in `num_training_processes` processes on this machine. It raises what the first of them said."""
    (scratch / "job.json").write_text(job.model_dump_json())
    (scratch / "progress").touch()
    returncode = _run(job.engine, device, scratch, progress)
    for left in scratch.glob("left.*"):
        raise LeftTraining(left.read_text())
    result, errors = scratch / "result.json", sorted(scratch.glob("error.*"), key=lambda file: file.stat().st_mtime_ns)
    if result.exists():  # the weights are written
        if errors or returncode:
            why = errors[0].read_text() if errors else "a process was ended from outside"
            print(f"the losses on held-out rows are not measured: {why}", file=sys.stderr)
        return TrainingResult.model_validate_json(result.read_text())
    if errors:
        raise EngineError(errors[0].read_text())
    raise EngineError(
        "a training process was ended from outside (out of memory?) and the others with it; lower "
        "training.micro_batch_size, or see the worker's log"
    )


def _run(engine: EngineConfig, device: torch.device, scratch: Path, progress: Progress) -> int:
    """Start the group and pass its progress on until it has ended. Its exit code."""
    num_processes = engine.num_training_processes
    threads = engine.num_threads or max(1, len(os.sched_getaffinity(0)) // num_processes)
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"]
    command += [f"--nproc-per-node={num_processes}", "-m", "loop.engines.distributed_rank", str(scratch)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if device.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # transformers would take a GPU where torch sees one
    seen = ""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as process:
        try:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                if (text := (scratch / "progress").read_text()) != seen:
                    seen = text
                    done, total = map(int, text.split())
                    progress(done, total)
        finally:
            process.terminate()  # torchrun ends its processes then; nothing happens where it has ended
    return process.returncode
