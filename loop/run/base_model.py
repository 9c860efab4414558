"""From `model.source` to the directory of the base model's weights. Imports no torch: whatever needs it runs in a worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from loop.config.settings import Config
from loop.engines.fake import write_fake_model
from loop.inputs import BUILT_IN_MODEL, FAKE_MODEL, model_directory
from loop.workers.worker import Worker
from store.checkpoints import sync_tree

CONVERSION = "smollm2-135m-instruct-q4_1-float32-1"  # the last number: of the conversion
FAKE_SKILL = 0.4


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/ssd-loop, or ~/.cache/ssd-loop."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssd-loop"


def base_model(config: Config, base_dir: Path, run_dir: Path, pulse: Callable[[], None] = lambda: None) -> Path:
    """The directory of the base model; converted or fetched first where that is needed. ConfigError if it cannot be had.

    `pulse` is called about once a second meanwhile; what it raises ends that.
    """
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
            _in_worker(config, run_dir, pulse, {"op": "convert_smollm2", "target": str(directory)})
        return directory
    local = model_directory(source, base_dir)
    if local is not None:
        return local.resolve()
    command = {"op": "fetch_hub_model", "name": source, "revision": config.model.revision}
    return Path(_in_worker(config, run_dir, pulse, command))


def _in_worker(config: Config, run_dir: Path, pulse: Callable[[], None], command: Mapping[str, object]) -> str:
    worker = Worker(
        dict(command),
        log_file=run_dir / "logs" / "model.log",
        stall_timeout_s=config.engine.stall_timeout_s,
        progress=lambda done, total: None,
        pulse=pulse,
        tag="preparing the model",
    )
    try:
        return str(worker.info)
    finally:
        worker.end()
