"""How fast this machine multiplies matrices of the size that sampling does. Runs only inside a worker process."""

from __future__ import annotations

import statistics
import time

import torch

ROWS, WIDTH, LAYER = 64, 1024, 4096  # rows of a batch; a layer of a small model
MEASURED_S = 0.3


def measured_flops(dtype: torch.dtype) -> float:
    """Floating-point operations per second in a precision, the mean over a moment."""
    states, weights = torch.randn(ROWS, WIDTH, dtype=dtype), torch.randn(LAYER, WIDTH, dtype=dtype)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < MEASURED_S:
        before = time.perf_counter()
        torch.nn.functional.linear(states, weights)
        times.append(time.perf_counter() - before)
    return 2 * ROWS * WIDTH * LAYER / statistics.mean(times)
