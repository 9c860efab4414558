"""Fine-tuning with TRL's SFTTrainer on the sampled token ids, loss on the completion alone. Runs only inside a worker.

No text is tokenised here: tokenising prompt plus completion again merges tokens across the border, and the model would
learn tokens that it never sampled. Weights are trained in float32 (on a GPU they are multiplied in bfloat16) and written in the
parent's own precision. One process and a group of them run the same code; see `loop.engines.sharded`.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import TrainerCallback
from trl import SFTConfig

from loop.engines import sharded
from loop.engines.base import (
    CheckpointRef,
    EngineConfig,
    Kept,
    Meeting,
    Progress,
    Tell,
    TrainingResult,
    Value,
    candidate_steps,
    earlier_dir,
)
from loop.engines.candidates import AlongTheWay
from loop.engines.hf_models import check_adapter, choose_device, load_in_four_bits, load_model, load_tokenizer
from loop.engines.rows import Rows, write_rows
from loop.engines.step_trainer import StepTrainer
from loop.errors import EngineError
from store.failpoints import reach
from store.shared import link_tree

LEFT = "candidate_step"  # the key of a candidate's entry in the Trainer's log


class Job(Value):
    """A fine-tune as its processes are told: `Trainer.fit`'s arguments, with the rows as `loop.engines.rows` writes them."""

    engine: EngineConfig
    rows: Path
    held_out: Path
    parent: CheckpointRef
    settings: dict[str, Any]
    out_dir: Path
    kept: Kept | None = None
    meeting: Meeting | None = None

    @property
    def base(self) -> Path:
        """The whole weights that are trained, or that an adapter is trained over."""
        return self.parent.base_path or self.parent.path

    @property
    def is_lora(self) -> bool:
        return self.parent.base_path is not None or self.settings["method"] == "lora"


class Report(TrainerCallback):  # type: ignore[misc]
    """Passes each optimizer step on as progress, and stops at once when the loss is no number."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if not math.isfinite(loss := logs.get("loss", 0.0)):
            raise EngineError(f"the loss is {loss} at step {state.global_step}; lower training.learning_rate")


def train(job: Job, device: torch.device, scratch: Path, progress: Progress, note: Tell) -> Iterator[TrainingResult]:
    """The part of one process, on `device`. Two reports: one when all weights are written, and one with their losses.

    Process 0 notes what the user should know of a training that goes on.

    The weights are written, adapters not merged, by process 0. What is measured afterwards can't cost them.
    """
    rows, left_out = Rows(job.rows), Rows(job.held_out)
    start = _StartingPoint(job, device)
    along = (
        job.out_dir if job.kept is None else job.kept.directory / job.out_dir.name
    )  # where candidates outlive a process

    def leave(num_steps: int, directory: Path) -> None:
        start.save(trainer.model, f"step {num_steps}", directory)
        trainer.state.log_history.append({LEFT: num_steps} | losses_of(trainer, left_out))

    trainer = StepTrainer(
        model=start.model,
        rows=rows,
        batch_size=job.settings["batch_size"],
        budget=job.settings["micro_batch_size"] * max(rows.lengths),
        args=arguments(job.settings, scratch, device),
        processing_class=load_tokenizer(job.parent)[0],
        callbacks=[Report(progress), AlongTheWay(job.settings, along, leave)],
    )
    start.model = None
    trainer.train(trainer.continued(job.kept, job.settings["save_every_s"], note) if job.kept else None)
    start.save(trainer.model, "the last step", job.out_dir)
    result = TrainingResult(
        num_steps=trainer.state.global_step,
        num_rows=len(rows),
        num_completion_tokens=rows.num_learned,
        losses=tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
        num_held_out=len(left_out),
        adapter=job.is_lora,
    )
    figures = {entry.pop(LEFT): entry for entry in copy.deepcopy(trainer.state.log_history) if LEFT in entry}
    earlier = []
    for step in candidate_steps(result.num_steps, job.settings)[:-1]:
        losses = {name: figures[step].get(name) for name in ("held_out_loss", "train_loss")}
        told = {"num_steps": step, "losses": result.losses[:step]} | losses
        earlier.append(result.model_copy(update=told))
        if job.kept is not None and sharded.process_number() == 0:
            link_tree(earlier_dir(along, step), earlier_dir(job.out_dir, step))
    result = result.model_copy(update={"earlier": tuple(earlier)})
    yield result
    yield result.model_copy(update=losses_of(trainer, left_out))


def losses_of(trainer: StepTrainer, left_out: Rows) -> dict[str, float]:
    """`held_out_loss` and `train_loss`; empty where nothing was held out or, for want of memory, they cannot be measured."""
    if not len(left_out):
        return {}
    every = len(trainer.rows) // len(left_out)  # from the whole list: rows of earlier rounds may stand first
    seen = list(range(0, len(trainer.rows), every))[: len(left_out)]
    try:
        return {"held_out_loss": trainer.mean_loss(left_out), "train_loss": trainer.mean_loss(trainer.rows, seen)}
    except (RuntimeError, MemoryError) as error:  # torch's own error for memory is a RuntimeError
        if sharded.num_processes() > 1:
            raise  # the other processes wait for this one
        print(f"the losses on held-out rows are not measured: {error}", file=sys.stderr)
        return {}


class _StartingPoint:
    """Where a fine-tune starts, and how the parent lies on disk, which its child does, too."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.dtype = job, sharded.dtype_on_disk(job.base)
        if job.is_lora and job.settings["lora"].get("four_bit"):  # settings of older versions say nothing
            self.model: Any = load_in_four_bits(job.base, device)
        else:
            self.model = sharded.load(job.base, training_dtype(job.is_lora, device), device)
        # The trainer changes the model's own.
        self.config, self.generation_config = copy.deepcopy((self.model.config, self.model.generation_config))
        for ours in ("distributed_config", "quantization_config"):
            vars(self.config).pop(ours, None)
        if job.parent.base_path is not None:
            check_adapter(job.parent.path)
            self.model = PeftModel.from_pretrained(self.model, job.parent.path, is_trainable=True)
        elif job.is_lora:
            torch.manual_seed(job.settings["seed"])
            self.model = get_peft_model(self.model, lora_config(job.settings["lora"]))

    def save(self, model: Any, when: str, out_dir: Path) -> None:
        """Write a model's weights as they are, an adapter alone. All processes call this, in a training or after it."""
        if not sharded.is_finite(model):
            raise EngineError(f"the weights are not finite after {when}; lower training.learning_rate")
        try:
            self._write(model, out_dir)
        except Exception as error:
            # safetensors raises an error of its own, tokenizers a plain Exception; both are written in Rust.
            if not isinstance(error, OSError | SafetensorError) and "(os error " not in str(error):
                raise
            free = shutil.disk_usage(next(each for each in (out_dir, *out_dir.parents) if each.exists())).free
            raise EngineError(
                f"{out_dir}: the weights after {when} cannot be written: {error} ({free:,} bytes are free); make room"
            ) from error

    def _write(self, model: Any, out_dir: Path) -> None:
        writes = sharded.process_number() == 0
        if writes:
            out_dir.mkdir(parents=True, exist_ok=True)
        if isinstance(model, PeftModel):
            adapter = {name: each for name, each in model.state_dict().items() if "lora_" in name}
            model.save_pretrained(out_dir, state_dict=adapter, is_main_process=writes)
            sharded.wait_for_all()
        else:
            sharded.save(model, self.dtype, self.config, self.generation_config, out_dir)
        if writes and isinstance(model, PeftModel):
            _sort_names(model, out_dir / "adapter_config.json")
        if writes:
            reach("training.weights_written")
            (out_dir / "README.md").unlink(missing_ok=True)  # peft's empty model card
            load_tokenizer(self.job.parent)[0].save_pretrained(out_dir)  # not the one that the trainer may have changed


def _sort_names(model: PeftModel, file: Path) -> None:
    """peft writes sets of modules as lists in the order of Python's hashes, which is another one in each process."""
    config = json.loads(file.read_text())
    for name, value in vars(model.active_peft_config).items():
        if isinstance(value, set):
            config[name] = sorted(value)
    file.write_text(json.dumps(config, indent=2, sort_keys=True))


def training_dtype(is_lora: bool, device: torch.device) -> torch.dtype:
    """The precision of the weights while they train. Those that an adapter leaves alone need no float32 on a GPU."""
    return torch.bfloat16 if is_lora and device.type == "cuda" else torch.float32


def lora_config(lora: dict[str, Any]) -> LoraConfig:
    """peft's settings for [training.lora]."""
    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        task_type="CAUSAL_LM",
    )


def arguments(settings: dict[str, Any], scratch: Path, device: torch.device) -> SFTConfig:
    """The arguments of TRL's trainer, which takes a whole optimizer step as a batch."""
    on_gpu = device.type == "cuda"
    as_they_are = ("learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
                   "gradient_checkpointing")  # fmt: skip
    arguments = SFTConfig(
        output_dir=str(scratch),
        seed=settings["seed"] % 2**32,
        num_train_epochs=settings["num_epochs"] or 1,
        max_steps=settings["num_steps"] or -1,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": settings["min_learning_rate"]},
        per_device_train_batch_size=settings["batch_size"],
        gradient_accumulation_steps=1,
        router_aux_loss_coef=0.0,  # plain cross-entropy for mixtures of experts, too
        bf16=on_gpu,
        use_cpu=not on_gpu,
        max_length=None,  # rows were cut when they were written
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would report a loss that is no number as an earlier one
        report_to="none",
        save_strategy="no",  # `Resumable` does
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{key: settings[key] for key in as_they_are},
    )
    if on_gpu:
        arguments._n_gpu = 1  # DataParallel would use all GPUs, with larger batches than asked for
    return arguments


class TrlTrainer:
    """A Trainer over TRL, with as many processes as `num_training_processes` says.

    `note` is told what the user should know; `waits`, for which process of a group the others wait.
    """

    def __init__(
        self,
        settings: EngineConfig,
        progress: Progress,
        note: Tell = lambda text: None,
        waits: Tell = lambda text: None,
    ) -> None:
        self.settings, self.progress, self.note, self.waits = settings, progress, note, waits
        self.device = choose_device(settings.device)

    def fit(
        self,
        rows_file: Path,
        parent: CheckpointRef,
        settings: dict[str, Any],
        out_dir: Path,
        kept: Kept | None = None,
        meeting: Meeting | None = None,
    ) -> TrainingResult:
        """See `Trainer.fit`. An adapter parent is trained further; a full one gets a fresh adapter for LoRA.

        With a `meeting` these are the processes of one machine among several, each of which is told the same; the first machine
        writes the weights.
        """
        # Beside the rows: they take 4 bytes a token again, which is too much where /tmp is main memory.
        with tempfile.TemporaryDirectory(dir=rows_file.parent) as name:
            scratch = Path(name)
            rows, held_out = write_rows(rows_file, settings, scratch)
            job = Job(
                engine=self.settings,
                rows=rows,
                held_out=held_out,
                parent=parent,
                settings=settings,
                out_dir=out_dir,
                kept=kept,
                meeting=meeting,
            )
            if self.settings.num_training_processes > 1 or meeting:
                from loop.engines.distributed import train_in_group

                result = train_in_group(job, self.device, scratch, self.progress, self.note, self.waits)
            else:
                (*_, result) = train(job, self.device, scratch / "out", self.progress, self.note)
        gc.collect()  # what the training held, before another model is loaded
        if result.adapter and settings["lora"]["merge"] and not (meeting and meeting.number):
            result = self._merge(job, result)
        return result

    def _merge(self, job: Job, result: TrainingResult) -> TrainingResult:
        """Replace each adapter that was written by whole weights, one after the other, on the CPU."""
        directories = [*(earlier_dir(job.out_dir, each.num_steps) for each in result.earlier), job.out_dir]
        for directory in directories:
            merge_adapter(job.base, directory)
            self.progress(result.num_steps, result.num_steps)  # a sign of life
        whole = {"adapter": False}
        earlier = tuple(each.model_copy(update=whole) for each in result.earlier)
        return result.model_copy(update=whole | {"earlier": earlier})

    def close(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def merge_adapter(base: Path, directory: Path) -> None:
    """Whole weights in the base's precision in place of the adapter in a directory; the tokenizer beside it stays."""
    cpu = torch.device("cpu")
    model = load_model(CheckpointRef(sha256="", path=base), torch.float32, cpu)
    config, generation_config = copy.deepcopy((model.config, model.generation_config))
    merged = PeftModel.from_pretrained(model, directory).merge_and_unload()
    scratch = directory.with_name(f"{directory.name}.merged")
    scratch.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        sharded.save(merged, sharded.dtype_on_disk(base), config, generation_config, scratch)
        for file in directory.glob("adapter_*"):
            file.unlink()
        for file in scratch.iterdir():
            file.rename(directory / file.name)
