"""Fine-tuning with TRL's SFTTrainer on the sampled token ids, loss on the completion alone. Runs only inside a worker.

No text is tokenised here: tokenising prompt plus completion again merges tokens across the border, and the model would
learn tokens that it never sampled. Weights are trained in float32 (on a GPU under bfloat16 autocast) and written in the
parent's own precision.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback, TrainerState
from trl import SFTConfig

from loop.engines.base import (
    CheckpointRef,
    EngineConfig,
    Kept,
    Progress,
    TrainingResult,
    TrainingRow,
    candidate_steps,
    earlier_dir,
    held_out,
)
from loop.engines.candidates import AlongTheWay, cast_state, check_finite, forget_training, merge_into
from loop.engines.hf_models import check_adapter, choose_device, load_model, load_tokenizer
from loop.engines.step_trainer import StepTrainer
from loop.errors import EngineError
from store.shared import link_tree

Columns = dict[str, list[list[int]]]


def read_rows(rows_file: Path, settings: dict[str, Any]) -> tuple[Columns, Columns]:
    """The rows to train on and the rows held out: input_ids and labels (-100 on the prompt), cut at max_tokens."""
    columns: Columns = {"input_ids": [], "labels": []}
    max_tokens = settings["max_tokens"]
    with rows_file.open(encoding="utf-8") as lines:
        for line in lines:
            row = TrainingRow.model_validate_json(line)
            prompt, completion = list(row.prompt_token_ids), list(row.completion_token_ids)
            completion = completion[: max(0, max_tokens - len(prompt))]
            if completion:
                columns["input_ids"].append(prompt + completion)
                columns["labels"].append([-100] * len(prompt) + completion)
    if not columns["labels"]:
        raise EngineError(f"no completion fits into training.max_tokens = {max_tokens}; raise it")
    left_out = held_out(columns["input_ids"], settings)
    trained, held = (
        {name: [row for index, row in enumerate(rows) if (index in left_out) == out] for name, rows in columns.items()}
        for out in (False, True)
    )
    return trained, held


def mean_loss(model: Any, rows: Columns) -> float:
    """The mean loss per completion token, in nats. One row at a time, so without padding."""
    model.eval()
    total, count = 0.0, 0
    for each in zip(rows["input_ids"], rows["labels"], strict=True):
        input_ids, labels = (torch.tensor([values], device=model.device) for values in each)
        num = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += num * float(model(input_ids=input_ids, labels=labels).loss)
        count += num
    return total / count


def losses_of(trained: Any, rows: Columns, left_out: Columns) -> dict[str, float]:
    """`held_out_loss` and `train_loss`; empty where nothing was held out or, for want of memory, they cannot be measured."""
    if not (num_held_out := len(left_out["labels"])):
        return {}
    every = len(rows["labels"]) // num_held_out  # from the whole list: rows of earlier rounds may stand first
    seen = {name: each[::every][:num_held_out] for name, each in rows.items()}
    try:
        return {"held_out_loss": mean_loss(trained, left_out), "train_loss": mean_loss(trained, seen)}
    except (RuntimeError, MemoryError) as error:  # torch's own error for memory is a RuntimeError
        print(f"the losses on held-out rows are not measured: {error}", file=sys.stderr)
        return {}


class Report(TrainerCallback):  # type: ignore[misc]
    """Passes each optimizer step on as progress, and stops at once when the loss is no number."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if not math.isfinite(loss := logs.get("loss", 0.0)):
            raise EngineError(f"the loss is {loss} at step {state.global_step}; lower training.learning_rate")


class StartingPoint:
    """Where a fine-tune starts: the full weights in float32, and how the parent lies on disk, which its child does, too."""

    def __init__(self, parent: CheckpointRef, device: torch.device) -> None:
        self.parent, self.device = parent, device
        self.base = CheckpointRef(sha256=parent.sha256, path=parent.base_path or parent.path)
        model = load_model(self.base, "auto", device)
        self.dtype, self.model = model.dtype, model.float()
        # The trainer changes the model's own.
        self.config, self.generation_config = copy.deepcopy((model.config, model.generation_config))

    def write(
        self, trained: Any, merge: bool, rows: Columns, left_out: Columns, out_dir: Path, state: TrainerState
    ) -> TrainingResult:
        """Check, write and measure the trained weights, in the parent's precision. `merge`: an adapter into its base."""
        check_finite(trained, "the last step")
        if isinstance(trained, PeftModel) and merge:
            trained = trained.merge_and_unload()
        adapter = isinstance(trained, PeftModel)
        if not adapter:
            trained = self._as_on_disk(trained)
        self._save(trained, out_dir)
        return TrainingResult(
            num_steps=state.global_step,
            num_rows=len(rows["labels"]),
            num_completion_tokens=sum(label != -100 for labels in rows["labels"] for label in labels),
            losses=tuple(entry["loss"] for entry in state.log_history if "loss" in entry),
            num_held_out=len(left_out["labels"]),
            **losses_of(trained, rows, left_out),  # when the weights are written: no figure is worth them
            adapter=adapter,
        )

    def write_along_the_way(self, model: Any, out_dir: Path) -> None:
        """Write the weights of a training that goes on: an adapter as it is, else a copy in the parent's precision."""
        if isinstance(model, PeftModel):
            self._save(model, out_dir)
            return
        own = model.config, model.generation_config
        model.config, model.generation_config = copy.deepcopy((self.config, self.generation_config))
        try:
            self._save(model, out_dir, state_dict=cast_state(model, self.dtype))
            model.config.dtype = self.dtype  # transformers has written that of the model, which is being trained
            model.config.save_pretrained(out_dir)
        finally:
            model.config, model.generation_config = own

    def finish(self, out_dir: Path, merge: bool, rows: Columns, left_out: Columns) -> dict[str, float]:
        """Merge what `write_along_the_way` has written, where that is asked for, and measure its losses as `write` does."""
        adapter = (out_dir / "adapter_config.json").exists()
        if not adapter and not left_out["labels"]:
            return {}
        model = load_model(self.base if adapter else CheckpointRef(sha256="", path=out_dir), "auto", self.device)
        if adapter and merge:
            model = self._as_on_disk(merge_into(model.float(), out_dir))
            self._save(model, out_dir)
        elif adapter:
            model = PeftModel.from_pretrained(model.float(), out_dir)
        return losses_of(model, rows, left_out)

    def _as_on_disk(self, model: Any) -> Any:
        model = model.to(self.dtype)
        model.config, model.generation_config = self.config, self.generation_config
        return model

    def _save(self, model: Any, out_dir: Path, **more: Any) -> None:
        model.save_pretrained(out_dir, **more)
        (out_dir / "README.md").unlink(missing_ok=True)  # peft's empty model card
        load_tokenizer(self.parent)[0].save_pretrained(out_dir)  # not the one that the trainer may have changed


class TrlTrainer:
    """A Trainer over TRL."""

    def __init__(self, settings: EngineConfig, progress: Progress) -> None:
        self.device = choose_device(settings.device)
        self.progress = progress

    def fit(
        self,
        rows_file: Path,
        parent: CheckpointRef,
        settings: dict[str, Any],
        out_dir: Path,
        kept: Kept | None = None,
    ) -> TrainingResult:
        """See `Trainer.fit`. An adapter parent is trained further; a full one gets a fresh adapter for LoRA."""
        rows, left_out = read_rows(rows_file, settings)
        start, merge = StartingPoint(parent, self.device), settings["lora"]["merge"]
        result = self._train(start, rows, left_out, settings, out_dir, kept)
        earlier = []
        for step in candidate_steps(result.num_steps, settings)[:-1]:
            start.model = None
            forget_training(self.device)
            if kept is not None:
                link_tree(earlier_dir(kept.directory / out_dir.name, step), earlier_dir(out_dir, step))
            told = {"num_steps": step, "losses": result.losses[:step], "held_out_loss": None, "train_loss": None}
            told |= start.finish(earlier_dir(out_dir, step), merge, rows, left_out)
            earlier.append(result.model_copy(update=told))
            self.progress(result.num_steps, result.num_steps)  # a sign of life
        return result.model_copy(update={"earlier": tuple(earlier)})

    def _train(
        self,
        start: StartingPoint,
        rows: Columns,
        left_out: Columns,
        settings: dict[str, Any],
        out_dir: Path,
        kept: Kept | None,
    ) -> TrainingResult:
        """The fine-tune and its last candidate; earlier ones lie beside it or with what is kept, adapters not merged yet."""
        parent, lora, model = start.parent, settings["lora"], start.model
        if parent.base_path is not None:
            check_adapter(parent.path)
            model = PeftModel.from_pretrained(model, parent.path, is_trainable=True)
        elif settings["method"] == "lora":
            torch.manual_seed(settings["seed"])
            adapter = LoraConfig(
                r=lora["rank"],
                lora_alpha=lora["alpha"],
                lora_dropout=lora["dropout"],
                target_modules=lora["target_modules"],
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, adapter)
        along = out_dir if kept is None else kept.directory / out_dir.name
        with tempfile.TemporaryDirectory() as scratch:
            trainer = StepTrainer(
                model=model,
                budget=settings["micro_batch_size"] * max(map(len, rows["input_ids"])),
                args=self.arguments(settings, Path(scratch)),
                train_dataset=Dataset.from_dict(rows),
                processing_class=load_tokenizer(parent)[0],
                callbacks=[Report(self.progress), AlongTheWay(settings, along, start.write_along_the_way)],
            )
            trainer.train(trainer.continued(kept, settings["save_every_s"]) if kept else None)
        trained = trainer.accelerator.unwrap_model(trainer.model)
        return start.write(trained, lora["merge"], rows, left_out, out_dir, trainer.state)

    def arguments(self, settings: dict[str, Any], scratch: Path, num_processes: int = 1, **more: Any) -> SFTConfig:
        """The arguments of TRL's trainer; `more` says how the model is spread over several processes."""
        on_gpu = self.device.type == "cuda"
        num_passes = 1  # StepTrainer cuts a step into forward passes
        if num_processes > 1:
            num_passes = settings["batch_size"] // (settings["micro_batch_size"] * num_processes)
        as_they_are = ("learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
                       "gradient_checkpointing")  # fmt: skip
        arguments = SFTConfig(
            output_dir=str(scratch),
            seed=settings["seed"] % 2**32,
            num_train_epochs=settings["num_epochs"] or 1,
            max_steps=settings["num_steps"] or -1,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr": settings["min_learning_rate"]},
            per_device_train_batch_size=settings["batch_size"] // (num_passes * num_processes),
            gradient_accumulation_steps=num_passes,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            max_length=None,  # rows are cut in read_rows
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would report a loss that is no number as an earlier one
            report_to="none",
            save_strategy="no",  # `Resumable` does
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **{key: settings[key] for key in as_they_are},
            **more,
        )
        if on_gpu and num_processes == 1:
            arguments._n_gpu = 1  # DataParallel would use all GPUs, with larger batches than asked for
        return arguments

    def close(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
