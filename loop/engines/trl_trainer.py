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
from transformers import TrainerCallback
from trl import SFTConfig

from loop.engines.base import CheckpointRef, EngineConfig, Progress, TrainingResult, TrainingRow, held_out
from loop.engines.hf_models import check_adapter, choose_device, load_model, load_tokenizer
from loop.engines.step_trainer import StepTrainer
from loop.errors import EngineError

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
    for input_ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        num = sum(label != -100 for label in labels[1:])
        tensors = (torch.tensor([each], device=model.device) for each in (input_ids, labels))
        with torch.no_grad():
            total += num * float(model(**dict(zip(("input_ids", "labels"), tensors, strict=True))).loss)
        count += num
    return total / count


def losses_of(trained: Any, rows: Columns, left_out: Columns) -> dict[str, float]:
    """`held_out_loss` and `train_loss`; empty where nothing was held out or, for want of memory, they cannot be measured."""
    if not (num_held_out := len(left_out["labels"])):
        return {}
    every = (
        len(rows["labels"]) // num_held_out
    )  # from the whole list, at whose beginning rows of earlier rounds may stand
    seen = {name: each[::every][:num_held_out] for name, each in rows.items()}
    try:
        return {"held_out_loss": mean_loss(trained, left_out), "train_loss": mean_loss(trained, seen)}
    except (RuntimeError, MemoryError) as error:  # torch's own error for memory is a RuntimeError
        print(f"the losses on held-out rows are not measured: {error}", file=sys.stderr)
        return {}


class Report(TrainerCallback):  # type: ignore[misc]
    """Counts optimizer steps, passes each on as progress, and stops at once when the loss is no number."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.num_steps = 0
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.num_steps = state.global_step
        self.progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise EngineError(f"the loss is {loss} at step {state.global_step}; lower training.learning_rate")
        self.losses.append(float(loss))


class StartingPoint:
    """Where a fine-tune starts: the full weights in float32, and how the parent lies on disk, which its child does, too."""

    def __init__(self, parent: CheckpointRef, device: torch.device) -> None:
        self.parent = parent
        weights = CheckpointRef(sha256=parent.sha256, path=parent.base_path or parent.path)
        model = load_model(weights, "auto", device)
        self.dtype, self.model = model.dtype, model.float()
        # The trainer changes the model's own.
        self.config, self.generation_config = copy.deepcopy((model.config, model.generation_config))

    def write(
        self, trained: Any, merge: bool, rows: Columns, left_out: Columns, out_dir: Path, report: Report
    ) -> TrainingResult:
        """Check, write and measure the trained weights, in the parent's precision. `merge`: an adapter into its base."""
        if not all(bool(parameter.isfinite().all()) for parameter in trained.parameters()):
            raise EngineError("the weights are not finite after the last step; lower training.learning_rate")
        adapter = isinstance(trained, PeftModel) and not merge
        if isinstance(trained, PeftModel) and not adapter:
            trained = trained.merge_and_unload()
        if not adapter:
            trained = trained.to(self.dtype)
            trained.config, trained.generation_config = self.config, self.generation_config
        trained.save_pretrained(out_dir)
        (out_dir / "README.md").unlink(missing_ok=True)  # peft's empty model card
        load_tokenizer(self.parent)[0].save_pretrained(out_dir)  # not the one that the trainer may have changed
        return TrainingResult(
            num_steps=report.num_steps,
            num_rows=len(rows["labels"]),
            num_completion_tokens=sum(label != -100 for labels in rows["labels"] for label in labels),
            losses=tuple(report.losses),
            num_held_out=len(left_out["labels"]),
            **losses_of(trained, rows, left_out),  # when the weights are written: no figure is worth them
            adapter=adapter,
        )


class TrlTrainer:
    """A Trainer over TRL."""

    def __init__(self, settings: EngineConfig, progress: Progress) -> None:
        self.device = choose_device(settings.device)
        self.progress = progress

    def fit(self, rows_file: Path, parent: CheckpointRef, settings: dict[str, Any], out_dir: Path) -> TrainingResult:
        """See `Trainer.fit`. An adapter parent is trained further; a full one gets a fresh adapter for LoRA."""
        rows, left_out = read_rows(rows_file, settings)
        tokenizer, _ = load_tokenizer(parent)
        start, lora = StartingPoint(parent, self.device), settings["lora"]
        model = start.model
        if parent.base_path is not None:
            check_adapter(parent.path)
            model = PeftModel.from_pretrained(model, parent.path, is_trainable=True)
        elif settings["method"] == "lora":
            torch.manual_seed(settings["seed"])
            model = get_peft_model(
                model,
                LoraConfig(
                    r=lora["rank"],
                    lora_alpha=lora["alpha"],
                    lora_dropout=lora["dropout"],
                    target_modules=lora["target_modules"],
                    task_type="CAUSAL_LM",
                ),
            )
        report = Report(self.progress)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = StepTrainer(
                model=model,
                budget=settings["micro_batch_size"] * max(map(len, rows["input_ids"])),
                args=self.arguments(settings, Path(scratch)),
                train_dataset=Dataset.from_dict(rows),
                processing_class=tokenizer,
                callbacks=[report],
            )
            trainer.train()
        trained = trainer.accelerator.unwrap_model(trainer.model)
        return start.write(trained, lora["merge"], rows, left_out, out_dir, report)

    def arguments(self, settings: dict[str, Any], scratch: Path, num_processes: int = 1, **more: Any) -> SFTConfig:
        """The arguments of TRL's trainer; `more` says how the model is spread over several processes."""
        on_gpu = self.device.type == "cuda"
        peak = settings["learning_rate"]
        if num_processes == 1:
            # StepTrainer cuts a step into forward passes.
            more = {"per_device_train_batch_size": settings["batch_size"], "gradient_accumulation_steps": 1}
        else:
            micro = settings["micro_batch_size"]
            more["per_device_train_batch_size"] = micro
            more["gradient_accumulation_steps"] = settings["batch_size"] // (micro * num_processes)
        arguments = SFTConfig(
            output_dir=str(scratch),
            seed=settings["seed"] % 2**32,
            num_train_epochs=settings["num_epochs"] or 1,
            max_steps=settings["num_steps"] or -1,
            learning_rate=peak,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr": settings["min_learning_rate"]},
            warmup_steps=settings["warmup_steps"],
            weight_decay=settings["weight_decay"],
            adam_beta1=settings["adam_beta1"],
            adam_beta2=settings["adam_beta2"],
            max_grad_norm=settings["max_grad_norm"],
            gradient_checkpointing=settings["gradient_checkpointing"],
            bf16=on_gpu,
            use_cpu=not on_gpu,
            max_length=None,  # rows are cut in read_rows
            packing=False,
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would report a loss that is no number as an earlier one
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            **more,
        )
        if on_gpu and num_processes == 1:
            arguments._n_gpu = (
                1  # else several GPUs would be used through DataParallel, with larger batches than asked for
            )
        return arguments

    def close(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
