"""The candidates that a fine-tune leaves along its way: their weights alone, no optimizer. Runs only inside a worker.

The training that goes on notices nothing: what is written is a cast copy, tensor by tensor, and of LoRA the small adapter. An
adapter that is to be merged is merged once training has ended, into a base that is read again.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from loop.engines.base import candidate_steps, earlier_dir
from loop.errors import EngineError
from store.checkpoints import sync_tree

Saved = Callable[[Any, Path], None]  # a model with its own weights into a directory


def check_finite(model: Any, when: str) -> None:
    """EngineError for weights that are no numbers."""
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise EngineError(f"the weights are not finite after {when}; lower training.learning_rate")


def cast_state(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights in another precision and in main memory. What is tied stays tied; the model stays as it is."""
    cast: dict[tuple[int, torch.Size, tuple[int, ...]], torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        key = tensor.data_ptr(), tensor.shape, tensor.stride()
        if key not in cast:
            cast[key] = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        state[name] = cast[key]
    return state


class AlongTheWay(TrainerCallback):  # type: ignore[misc]
    """Writes the model after each of these steps but the last, which the trainer writes itself.

    Durably: a state of the training that is saved later promises that the candidates before it are there.
    """

    def __init__(self, settings: dict[str, Any], out_dir: Path, save: Saved) -> None:
        self.settings, self.out_dir, self.save = settings, out_dir, save
        self.steps: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = candidate_steps(state.max_steps, self.settings)[:-1]

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            check_finite(model, f"step {state.global_step}")
            directory = earlier_dir(self.out_dir, state.global_step)
            shutil.rmtree(directory, ignore_errors=True)  # of a process that came this far and was killed
            self.save(model, directory)
            sync_tree(directory)


def merge_into(base: Any, adapter_dir: Path) -> Any:
    """The adapter in a directory merged into its base, which is changed; the adapter's files are gone then."""
    merged = PeftModel.from_pretrained(base, adapter_dir).merge_and_unload()
    shutil.rmtree(adapter_dir)
    return merged


def forget_training(device: torch.device) -> None:
    """Free what a training held that nobody refers to any more, so that one model has room again."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
