"""From `model.source` to the directory of the base model's weights. Imports no torch: whatever needs it runs in a worker."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loop.config.machine import Engine
from loop.config.settings import Config
from loop.engines.attention_memory import attention_mistake
from loop.engines.fake import write_fake_model
from loop.engines.mxfp4 import is_mxfp4, name_of_dequantised
from loop.errors import ConfigError
from loop.inputs import BUILT_IN_MODEL, FAKE_MODEL, longest_row, model_directory
from loop.workers.worker import Worker
from store.checkpoints import sync_tree

CONVERSION = "smollm2-135m-instruct-q4_1-float32-1"  # the last number: of the conversion
FAKE_SKILL = 0.4


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/ssd-loop, or ~/.cache/ssd-loop."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssd-loop"


def base_model(config: Config, base_dir: Path, run_dir: Path, pulse: Callable[[], None] = lambda: None) -> Path:
    """The directory of the base model; fetched or converted first where that is needed. ConfigError if it cannot be had.

    A model in MXFP4 is dequantised: see `loop.engines.mxfp4`.

    `pulse` is called about once a second meanwhile; what it raises ends that.
    """

    def prepare(command: dict[str, Any]) -> Any:
        return in_worker(command, run_dir / "logs" / "model.log", config.engine, "preparing the model", pulse)

    source = config.model.source
    if source == FAKE_MODEL:
        directory = run_dir / "fake-model"
        if not (directory / "model.safetensors").exists():
            write_fake_model(directory, FAKE_SKILL)
            sync_tree(directory)
        return directory
    if source == BUILT_IN_MODEL:
        directory = cache_directory() / "models" / CONVERSION
        if not (directory / "config.json").exists():
            prepare({"op": "convert_smollm2", "target": str(directory)})
        return directory
    local = model_directory(source, base_dir)
    if local is not None:
        found = local.resolve()
    else:
        found = Path(prepare({"op": "fetch_hub_model", "name": source, "revision": config.model.revision}))
        if problem := attention_mistake(json.loads((found / "config.json").read_bytes()), longest_row(config)):
            raise ConfigError(f"training.max_tokens: {problem}")  # of a local model it is known before
    if not is_mxfp4(found):
        return found
    directory = cache_directory() / "models" / name_of_dequantised(found)
    if not (directory / "config.json").exists():
        prepare({"op": "dequantise", "source": str(found), "target": str(directory)})
    return directory


def in_worker(
    command: dict[str, Any], log_file: Path, engine: Engine, tag: str, pulse: Callable[[], None] = lambda: None
) -> Any:
    """The answer to one command, by a worker of its own that is gone afterwards."""
    worker = Worker(
        command, log_file=log_file, stall_timeout_s=engine.stall_timeout_s, progress=lambda done, total: None,
        pulse=pulse, tag=tag,
    )  # fmt: skip
    try:
        return worker.info
    finally:
        worker.end()
