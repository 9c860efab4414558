"""A fine-tune by several processes of one group, started by torchrun, which accelerate reads. Runs only inside a worker.

`DistributedTrainer` starts the group and waits; `python -m loop.engines.distributed JOB` is one rank of it. They talk
through small files in a scratch directory, which cannot hang. Whatever is started descends from the worker's guard and
inherits its token, so it ends with the worker. On GPUs weights, gradients and optimizer state are sharded (FSDP 2), or
as a DeepSpeed file says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loop.engines.base import CheckpointRef, EngineConfig, Progress, TrainingResult
from loop.errors import EngineError, LoopError

POLL_S = 0.2
END_S = 10.0  # for torchrun to end its ranks


class DistributedTrainer:
    """A Trainer over a group of processes on this machine."""

    def __init__(self, settings: EngineConfig, progress: Progress) -> None:
        self.settings, self.progress, self.num_processes = settings, progress, settings.num_training_processes

    def fit(self, rows_file: Path, parent: CheckpointRef, settings: dict[str, Any], out_dir: Path) -> TrainingResult:
        """See `Trainer.fit`. The rows of an optimizer step are those that one process would take."""
        share = settings["micro_batch_size"] * self.num_processes
        if settings["batch_size"] % share:
            raise EngineError(
                f"training.batch_size {settings['batch_size']} is not a multiple of micro_batch_size times "
                f"{self.num_processes} training processes; lower micro_batch_size or engine.num_training_processes"
            )
        if settings["method"] == "lora" or parent.base_path is not None:
            raise EngineError("LoRA is trained by one process; set engine.num_training_processes = 1")
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            job = {
                "engine": self.settings.model_dump(mode="json"),
                "rows_file": str(rows_file),
                "parent": parent.model_dump(mode="json"),
                "settings": settings,
                "out_dir": str(out_dir),
            }
            (scratch / "job.json").write_text(json.dumps(job))
            self._run(scratch)
            return TrainingResult.model_validate_json((scratch / "result.json").read_text())

    def _run(self, scratch: Path) -> None:
        threads = self.settings.num_threads or max(1, len(os.sched_getaffinity(0)) // self.num_processes)
        command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"]
        command += [f"--nproc-per-node={self.num_processes}", "-m", "loop.engines.distributed", str(scratch)]
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


def write_whole(file: Path, text: str) -> None:
    """The file has all of the text or is not there."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(file)


def rank_main(scratch: Path) -> None:
    """One rank. The first error of each is left in a file."""
    rank = int(os.environ["RANK"])
    try:
        job = json.loads((scratch / "job.json").read_text())
        result = train(job, rank, scratch)
        if rank == 0:
            write_whole(scratch / "result.json", result.model_dump_json())
    except BaseException as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0][:400]
        text = first if isinstance(error, LoopError) else f"{type(error).__name__}: {first}"
        write_whole(scratch / f"error.{rank}", text)
        os._exit(1)  # an orderly end would wait for the other ranks


def train(job: dict[str, Any], rank: int, scratch: Path) -> TrainingResult:
    """The part of one rank. Rank 0 gathers the weights and writes them as the one-process trainer does."""
    import torch
    from accelerate.data_loader import SeedableRandomSampler
    from datasets import Dataset
    from trl import SFTTrainer

    from loop.engines.hf_models import load_model, load_tokenizer
    from loop.engines.trl_trainer import Report, TrlTrainer, read_rows, write_trained

    num_processes = int(os.environ["WORLD_SIZE"])
    settings, parent = job["settings"], CheckpointRef.model_validate(job["parent"])
    trainer_of_one = TrlTrainer(EngineConfig.model_validate(job["engine"]), lambda done, total: None)
    on_gpu = trainer_of_one.device.type == "cuda"
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        trainer_of_one.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    rows, left_out = read_rows(Path(job["rows_file"]), settings)
    num_rows = len(rows["labels"])
    num_fill = -num_rows % (settings["micro_batch_size"] * num_processes)
    filled = {"input_ids": rows["input_ids"] + [rows["input_ids"][0][:2]] * num_fill}
    filled["labels"] = rows["labels"] + [[-100] * len(filled["input_ids"][-1])] * num_fill

    class Padded(SeedableRandomSampler):  # type: ignore[misc]
        """The order of one process, then rows without loss, so that every rank has as many batches."""

        def __iter__(self) -> Iterator[int]:
            yield from super().__iter__()
            yield from range(num_rows, num_rows + num_fill)

        def __len__(self) -> int:
            return int(num_rows + num_fill)

    class GroupTrainer(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return Padded(range(num_rows), generator=torch.Generator(), data_seed=self.args.seed)

    def progress(done: int, total: int) -> None:
        if rank == 0:
            write_whole(scratch / "progress", f"{done} {total}")

    model = load_model(parent, "auto", torch.device("cpu"))
    saved_dtype, model = model.dtype, model.float()
    report = Report(progress)
    spread: dict[str, Any] = {}
    if on_gpu:
        spread = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2}}
    arguments = trainer_of_one.arguments(settings, scratch / "out", num_processes, **spread)
    trainer = GroupTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(filled),
        processing_class=load_tokenizer(parent)[0],
        callbacks=[report],
    )
    trainer.train()
    if "fsdp" in spread and not trainer.is_fsdp_enabled:
        raise EngineError("accelerate did not shard the model; unset ACCELERATE_* in the environment")
    state = trainer.accelerator.get_state_dict(trainer.model)
    result = TrainingResult(num_steps=0, num_rows=0, num_completion_tokens=0, losses=())
    if rank == 0:
        whole = load_model(parent, "auto", trainer_of_one.device).float()
        config, generation_config = whole.config, whole.generation_config
        whole.load_state_dict(state)
        result = write_trained(
            whole, parent, settings, rows, left_out, Path(job["out_dir"]), saved_dtype, config, generation_config,
            num_steps=trainer.state.global_step, losses=report.losses,
        )  # fmt: skip
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return result


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
