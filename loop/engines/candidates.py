"""The candidates that a fine-tune leaves along its way: their weights alone, no optimizer. Runs only inside a worker.

The training that goes on notices nothing: tensors are cast and written one by one, of LoRA only the small adapter. An adapter that
is to be merged is merged once training has ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from loop.engines import sharded
from loop.engines.base import candidate_steps, earlier_dir
from store.checkpoints import sync_tree


class AlongTheWay(TrainerCallback):  # type: ignore[misc]
    """Calls `leave` after each of these steps but the last, with the number of steps and the directory for the candidate.

    It is durable then: a state of the training that is saved later promises that the candidates before it are there.
    """

    def __init__(self, settings: dict[str, Any], out_dir: Path, leave: Callable[[int, Path], None]) -> None:
        self.settings, self.out_dir, self.leave = settings, out_dir, leave
        self.steps: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = candidate_steps(state.max_steps, self.settings)[:-1]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.steps:
            return
        directory = earlier_dir(self.out_dir, state.global_step)
        writes = sharded.process_number() == 0
        if writes:
            shutil.rmtree(directory, ignore_errors=True)  # of a process that came this far and was killed
        self.leave(state.global_step, directory)
        if writes:
            sync_tree(directory)
