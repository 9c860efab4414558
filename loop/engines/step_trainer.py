"""SFTTrainer with the same optimizer steps and less work in each: no padding, equal shares, the output layer on completions alone.

The rows of a step are those that one process would take, whatever their number: each process draws the same order, and `deal` says
who takes what, so that no process has to be asked. The Trainer counts tokens, clips, steps, logs and schedules as always.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Dataset, Sampler
from trl import SFTTrainer

from loop.engines.batching import deal
from loop.engines.packed_rows import pack_rows, rows_apart
from loop.engines.resuming import Resumable
from loop.engines.rows import IGNORED, Rows

NUM_POSITIONS = 256  # their logits are held at a time
# Changes that a model may make to its logits after the output layer; with one of these TRL's own loss is used.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class SummedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """The sum over (N, D) hidden states of the cross-entropy of labels (N,) under an output layer (V, D).

    It never holds more than NUM_POSITIONS x V logits: their gradient is computed at once and scaled in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = hidden.new_zeros(())
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        pieces = (each.split(NUM_POSITIONS) for each in (hidden, labels, hidden_grad))
        for states, wanted, grad in zip(*pieces, strict=True):
            logits = states @ weight.T  # (n, V)
            norms = logits.logsumexp(-1, keepdim=True)  # (n, 1)
            total += (norms - logits.gather(1, wanted[:, None])).sum()
            if not any(ctx.needs_input_grad):
                continue
            probabilities = logits.sub_(norms).exp_()
            probabilities[torch.arange(len(wanted)), wanted] -= 1
            torch.mm(probabilities, weight, out=grad)
            if weight_grad is not None:
                weight_grad.addmm_(probabilities.T, states)
        ctx.grads = hidden_grad, weight_grad
        return total

    @staticmethod
    def backward(ctx: Any, *scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        hidden_grad, weight_grad = ctx.grads
        ctx.grads = None
        return hidden_grad.mul_(scale[0]), None if weight_grad is None else weight_grad.mul_(scale[0]), None


def has_plain_head(model: Any) -> bool:
    """Whether the logits are the last hidden states times one float32 matrix on the CPU, and nothing else."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    kind = (
        type(head).__mro__[2] if isinstance(head, FSDPModule) else type(head)
    )  # FSDP puts a class of its own in front
    plain = kind is torch.nn.Linear and head.bias is None
    plain = plain and head.weight.device.type == "cpu" and head.weight.dtype == torch.float32
    return plain and not any(getattr(config, name, None) for name in LOGIT_CHANGES)


def add_summed_loss(model: Any) -> None:
    """`model(..., summed_loss_of=labels)` then returns the loss summed over the labels that are not -100.

    Inside the model's own forward, so that adapters and wrappers around it see an ordinary call.
    """
    original = model.forward

    @functools.wraps(original)
    def forward(*arguments: Any, summed_loss_of: torch.Tensor | None = None, **more: Any) -> Any:
        if summed_loss_of is None:
            return original(*arguments, **more)
        hidden = model.base_model(*arguments, **more).last_hidden_state[:, :-1]  # (B, T - 1, D)
        labels = summed_loss_of[:, 1:]
        learnt = labels != IGNORED
        return SummedCrossEntropy.apply(hidden[learnt], model.get_output_embeddings().weight, labels[learnt])

    model.forward = forward


class Steps(Dataset[dict[str, Any]]):  # type: ignore[misc]
    """What this process takes in each optimizer step of an epoch: step n has rows n * batch_size and on of the epoch's order."""

    def __init__(self, rows: Rows, batch_size: int, budget: int, seed: int, process: int, num_processes: int) -> None:
        self.rows, self.batch_size, self.budget, self.seed = rows, batch_size, budget, seed
        self.process, self.num_processes = process, num_processes
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        self.order = torch.randperm(len(self.rows), generator=generator).tolist()

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        taken = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        passes = deal([self.rows.lengths[row] for row in taken], self.num_processes, self.budget)
        return self.rows.packed([[[taken[each] for each in rows] for rows in one] for one in passes], self.process)


class InOrder(Sampler[list[int]]):  # type: ignore[misc]
    """One step at a time. The Trainer, which may skip the first ones, looks for `set_epoch` here."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.set_epoch = steps.set_epoch
        self.batch_sampler = self  # where it looks as long as none is skipped

    def __iter__(self) -> Iterator[list[int]]:
        return ([step] for step in range(len(self.steps)))

    def __len__(self) -> int:
        return len(self.steps)


def passes_of(inputs: dict[str, Any]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """The lengths of the rows of each forward pass, and its tensors (1, T), from what `Rows.packed` gives."""
    start = 0
    for lengths in inputs["row_lengths"]:
        end = start + sum(lengths)
        yield lengths, {name: inputs[name][:, start:end] for name in ("input_ids", "labels", "position_ids")}
        start = end


class StepTrainer(Resumable, SFTTrainer):  # type: ignore[misc]
    """Takes whole optimizer steps; a forward pass of a process takes at most `budget` tokens, or a single longer row."""

    def __init__(self, *arguments: Any, rows: Rows, batch_size: int, budget: int, **more: Any) -> None:
        super().__init__(*arguments, train_dataset=rows.dataset, **more)
        assert self.args.gradient_accumulation_steps == 1 and not self.aux_loss_enabled
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.budget = budget if pack_rows(inner) else 0  # else each row has a pass of its own
        self.rows, self.batch_size = rows, batch_size
        self.sums_loss = has_plain_head(inner)
        if self.sums_loss:
            add_summed_loss(inner)

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The steps of this process. accelerate, which would deal rows in turn, does not see it."""
        world, rank = self.args.world_size, self.args.process_index
        steps = Steps(self.rows, self.batch_size, self.budget, self.args.seed, rank, world)
        return DataLoader(steps, batch_sampler=InOrder(steps), collate_fn=lambda taken: taken[0])

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        for lengths, part in passes_of(inputs):
            with rows_apart(lengths if self.budget else ()):
                total += super().training_step(model, part, num_items_in_batch)
        return total

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The sum over a pass, per learned token of the whole step. Gradients are averaged over processes, hence the factor."""
        assert not return_outputs and num_items_in_batch is not None
        return self.summed_loss(model, inputs) * self.args.world_size / num_items_in_batch.clamp(min=1)

    def summed_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The cross-entropy over the labels of a pass, summed, in nats."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if self.sums_loss:
            return model(**inputs, use_cache=False, summed_loss_of=labels)
        return -model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.sum()

    def mean_loss(self, rows: Rows, indices: list[int] | None = None) -> float:
        """The mean loss per completion token over these rows, in nats. All processes call this and get the same."""
        model, indices = self.model_wrapped, list(range(len(rows))) if indices is None else indices
        passes = deal([rows.lengths[index] for index in indices], self.args.world_size, self.budget)
        own = rows.packed([[[indices[n] for n in each] for each in one] for one in passes], self.args.process_index)
        sums = torch.zeros(2, dtype=torch.float64)
        was_training = model.training
        model.eval()
        try:
            for lengths, part in passes_of(self._prepare_inputs(own)):
                with torch.no_grad(), self.compute_loss_context_manager(), rows_apart(lengths if self.budget else ()):
                    loss = float(self.summed_loss(model, part))
                sums += torch.tensor([loss, int((part["labels"][:, 1:] != IGNORED).sum())])
        finally:
            model.train(was_training)
            for module in model.modules():  # a forward pass without a backward one leaves some weights gathered
                if isinstance(module, FSDPModule):
                    module.reshard()
        if dist.is_initialized():
            dist.all_reduce(sums)
        return float(sums[0] / sums[1])
