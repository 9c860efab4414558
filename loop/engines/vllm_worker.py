"""Finishes a change of weights that vLLM leaves half done on a CPU. Runs inside vLLM's own worker processes.

On a CPU vLLM packs each layer's weights for its kernels. `reload_weights` packs every layer again except the output layer of
a model whose embeddings are tied to it: its old packed copy stays in use beside the new weights, without a warning (seen in
0.32.0 with SmolLM2 and models like it).
"""

from __future__ import annotations

from typing import Any


class Extension:
    """Mixed into vLLM's worker class, which has the `model_runner`."""

    model_runner: Any

    def repack_shared_weights(self) -> int:
        """Pack the weights of the layers that keep them beside the packed copy. The number of such layers, on a GPU 0."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        shared = [
            module
            for module in self.model_runner.get_model().modules()
            if hasattr(module, "cpu_linear") and module.weight.numel()
        ]
        for module in shared:
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
        return len(shared)
