"""A fine-tune by several processes of one group, started by torchrun, which accelerate reads. Runs only inside a worker.

`DistributedTrainer` starts the group and waits; `loop.engines.distributed_rank` is one process of it. They talk through
small files in a scratch directory, which cannot hang. Whatever is started descends from the worker's guard and inherits its
token, so it ends with the worker.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loop.engines.base import CheckpointRef, EngineConfig, Kept, Progress, TrainingResult, Value
from loop.errors import EngineError

POLL_S = 0.2


class Job(Value):
    """What the ranks are told: the arguments of `Trainer.fit`, and the settings of the engine."""

    engine: EngineConfig
    rows_file: Path
    parent: CheckpointRef
    settings: dict[str, Any]
    out_dir: Path


class DistributedTrainer:
    """A Trainer over a group of processes on this machine."""

    def __init__(self, settings: EngineConfig, progress: Progress) -> None:
        self.settings, self.progress, self.num_processes = settings, progress, settings.num_training_processes

    def fit(
        self,
        rows_file: Path,
        parent: CheckpointRef,
        settings: dict[str, Any],
        out_dir: Path,
        kept: Kept | None = None,
    ) -> TrainingResult:
        """See `Trainer.fit`. The rows of an optimizer step are those that one process would take."""
        # loop.config.settings refuses all others.
        assert settings["batch_size"] % (settings["micro_batch_size"] * self.num_processes) == 0
        assert settings["method"] == "full" and parent.base_path is None
        job = Job(engine=self.settings, rows_file=rows_file, parent=parent, settings=settings, out_dir=out_dir)
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            (scratch / "job.json").write_text(job.model_dump_json())
            (scratch / "progress").touch()
            self._run(scratch)
            return TrainingResult.model_validate_json((scratch / "result.json").read_text())

    def _run(self, scratch: Path) -> None:
        threads = self.settings.num_threads or max(1, len(os.sched_getaffinity(0)) // self.num_processes)
        command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"]
        command += [f"--nproc-per-node={self.num_processes}", "-m", "loop.engines.distributed_rank", str(scratch)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        seen = ""
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as process:
            try:
                while process.returncode is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_S)
                    if (text := (scratch / "progress").read_text()) != seen:
                        seen = text
                        done, total = map(int, text.split())
                        self.progress(done, total)
            finally:
                process.terminate()  # torchrun ends its ranks then; nothing happens where it has ended
        errors = sorted(scratch.glob("error.*"), key=lambda file: file.stat().st_mtime_ns)
        if errors:
            raise EngineError(errors[0].read_text())
        if process.returncode or not (scratch / "result.json").exists():
            raise EngineError(
                "a training process was ended from outside (out of memory?) and the others with it; lower "
                "training.micro_batch_size, or see the worker's log"
            )

    def close(self) -> None:
        """Nothing outlives `fit`."""
