"""What runs inside vLLM's own worker processes: finishing a change of weights that vLLM leaves half done on a CPU.

There, vLLM packs each layer's weights for its kernels. `reload_weights` packs all layers anew but the output layer of a
model whose embeddings are tied to it: the old packed copy stays in use beside the new weights, and nothing says so (seen in
0.32.0 with SmolLM2 and SmolLM2-like models).
"""

from __future__ import annotations

from typing import Any


class Repack:
    """Mixed into vLLM's worker class; `model_runner` is that class's."""

    model_runner: Any

    def repack_shared_weights(self) -> int:
        """Pack the weights of layers that keep their own beside the packed copy; how many. None on a GPU."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        shared = [
            module
            for module in self.model_runner.get_model().modules()
            if hasattr(module, "cpu_linear") and module.weight.numel()
        ]
        for module in shared:
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
        return len(shared)
