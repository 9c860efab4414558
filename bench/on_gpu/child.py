"""The worker of `bench/gpu.py`: the product's own, which also answers what only the process that holds the engine knows.

Commands beside those of `loop.workers.child`: `reset_figures` and `figures`, `proof` and `held` (vLLM only).
"""

from __future__ import annotations

import sys
import time
from typing import Any, BinaryIO
from unittest import mock

from loop.engines.base import EngineConfig
from loop.workers import child


class Telling(child.Child):
    """A worker that notes what it does. `moments`: at each turn of vLLM's sampler, when, and the rows computed and held."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        super().__init__(commands, answers)
        self.moments: list[tuple[float, int, int]] = []
        self.reference_s = 0.0

    def answer(self, command: dict[str, Any]) -> Any:
        match command["op"]:
            case "load_sampler":
                settings = EngineConfig.model_validate(command["settings"])
                if settings.sampler == "vllm":
                    child.prepare_torch(settings.num_threads)
                    self._listen()
                return super().answer(command)
            case "reset_figures":
                self.moments.clear()
                self.reference_s = 0.0
                if cuda := _cuda():
                    cuda.reset_peak_memory_stats()
                return {}
            case "figures":
                cuda = _cuda()
                return {
                    "moments": self.moments,
                    "reference_s": self.reference_s,
                    "batch_size": getattr(self.engine, "batch_size", None),
                    "allocated_bytes": cuda.max_memory_allocated() if cuda else None,
                }
            case "proof":
                from loop.engines.weights_proof import distance

                proof = self.engine.proof
                return {"distance": distance(proof.logprobs, self.engine._served(proof)), "tolerance": proof.tolerance}
            case "held":
                return self.engine.engine.collective_rpc("held_weights", args=(command["path"],))
        return super().answer(command)

    def _listen(self) -> None:
        """Note what vLLM's sampler asks of its own parts."""
        from loop.engines import vllm_sampler

        room, reference = vllm_sampler.room, vllm_sampler.reference

        def noted_room(num_running: int, num_inside: int) -> int:
            self.moments.append((time.monotonic(), num_running, num_inside))
            return room(num_running, num_inside)

        def timed_reference(*given: Any) -> Any:
            began = time.monotonic()
            try:
                return reference(*given)
            finally:
                self.reference_s += time.monotonic() - began

        vllm_sampler.room, vllm_sampler.reference = noted_room, timed_reference


def _cuda() -> Any:
    """torch.cuda where this process has used a GPU. It never starts CUDA: vLLM's GPU belongs to another process."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


if __name__ == "__main__":
    with mock.patch.object(child, "Child", Telling):
        child.main()
