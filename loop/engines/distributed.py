"""A fine-tune by several processes of one group, started by torchrun, which accelerate reads. Runs only inside a worker.

`DistributedTrainer` starts the group and waits; `loop.engines.distributed_rank` is one process of it. They talk through
small files in a scratch directory, which cannot hang. Whatever is started descends from the worker's guard and inherits its
token, so it ends with the worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loop.engines.base import CheckpointRef, EngineConfig, Progress, TrainingResult
from loop.errors import EngineError

POLL_S = 0.2
END_S = 10.0  # that torchrun has to end its ranks


class DistributedTrainer:
    """A Trainer over a group of processes on this machine."""

    def __init__(self, settings: EngineConfig, progress: Progress) -> None:
        self.settings, self.progress, self.num_processes = settings, progress, settings.num_training_processes

    def fit(self, rows_file: Path, parent: CheckpointRef, settings: dict[str, Any], out_dir: Path) -> TrainingResult:
        """See `Trainer.fit`. The rows of an optimizer step are those that one process would take."""
        # loop.config.settings refuses all others.
        assert settings["batch_size"] % (settings["micro_batch_size"] * self.num_processes) == 0
        assert settings["method"] == "full" and parent.base_path is None
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            engine, ref = self.settings.model_dump(mode="json"), parent.model_dump(mode="json")
            job = {
                "engine": engine,
                "rows_file": str(rows_file),
                "parent": ref,
                "settings": settings,
                "out_dir": str(out_dir),
            }
            (scratch / "job.json").write_text(json.dumps(job))
            self._run(scratch)
            return TrainingResult.model_validate_json((scratch / "result.json").read_text())

    def _run(self, scratch: Path) -> None:
        threads = self.settings.num_threads or max(1, len(os.sched_getaffinity(0)) // self.num_processes)
        command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"]
        command += [f"--nproc-per-node={self.num_processes}", "-m", "loop.engines.distributed_rank", str(scratch)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        seen = ""
        try:
            while True:
                try:
                    code: int | None = process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    code = None
                report = scratch / "progress"
                text = report.read_text() if report.exists() else ""
                if text != seen:
                    seen = text
                    done, total = map(int, text.split())
                    self.progress(done, total)
                if code is not None:
                    break
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        errors = sorted(scratch.glob("error.*"), key=lambda file: file.stat().st_mtime_ns)
        if errors:
            raise EngineError(errors[0].read_text())
        if code or not (scratch / "result.json").exists():
            raise EngineError(
                "a training process was ended from outside (out of memory?) and the others with it; lower "
                "training.micro_batch_size, or see the worker's log"
            )

    def close(self) -> None:
        """Nothing outlives `fit`."""
