"""SFTTrainer with the same optimizer steps and less work in each: little padding, the output layer on completions alone.

TRL draws the rows of a step, counts their tokens, clips, steps and logs as always. Only the cut of a step's rows into forward
passes differs, which does not change the sum of their gradients.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from trl import SFTTrainer

from loop.engines.batching import micro_batches
from loop.engines.resuming import Resumable

PASS_COST = {"cpu": 64, "cuda": 1024}  # the cost of a pass beyond its tokens, in tokens: kernels, adding up gradients
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
        weight_grad = torch.zeros_like(weight) if weight.requires_grad else None
        pieces = (each.split(NUM_POSITIONS) for each in (hidden, labels, hidden_grad))
        for states, wanted, grad in zip(*pieces, strict=True):
            logits = states @ weight.T  # (n, V)
            norms = logits.logsumexp(-1, keepdim=True)  # (n, 1)
            total += (norms - logits.gather(1, wanted[:, None])).sum()
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
    plain = type(head) is torch.nn.Linear and head.bias is None
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
        learnt = labels != -100
        return SummedCrossEntropy.apply(hidden[learnt], model.get_output_embeddings().weight, labels[learnt])

    model.forward = forward


class StepTrainer(Resumable, SFTTrainer):  # type: ignore[misc]
    """Takes whole optimizer steps (of this process) as batches; a forward pass takes at most `budget` tokens."""

    def __init__(self, *arguments: Any, budget: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        assert self.args.gradient_accumulation_steps == 1
        self.budget = budget
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.sums_loss = not self.aux_loss_enabled and has_plain_head(inner)
        if self.sums_loss:
            add_summed_loss(inner)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        lengths = inputs["attention_mask"].sum(1).tolist()
        passes = micro_batches(lengths, self.budget, PASS_COST.get(self.args.device.type, 1024))
        total = torch.zeros((), device=self.args.device)
        for number, rows in enumerate(passes, start=1):
            width = lengths[rows[0]]
            part = {name: each[rows, :width] for name, each in inputs.items()}
            waits = number < len(passes)  # processes add up their gradients once per step
            with self.accelerator.no_sync(model) if waits else contextlib.nullcontext():
                total += super().training_step(model, part, num_items_in_batch)
        return total

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.sums_loss or return_outputs or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        loss = model(**inputs, use_cache=False, summed_loss_of=labels) / num_items_in_batch.clamp(min=1)
        # With several processes the count covers all of them, and their gradients are averaged.
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss
