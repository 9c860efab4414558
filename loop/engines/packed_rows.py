"""Several rows as one sequence without padding: attention stays within each row. Runs only inside a worker process.

Padding costs time, and a mask that hides it keeps the fast kernels out. So rows stand one after the other, and
transformers' own attention is asked once for each of them. Everything else in a layer looks at single tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from loop.engines.hf_cache import takes_rows_later

ROW_BY_ROW = "sdpa_row_by_row"
# A module's variable and no thread's: with gradient checkpointing autograd computes layers again in threads of its own.
_lengths: Sequence[int] = ()


@contextlib.contextmanager
def rows_apart(lengths: Sequence[int]) -> Iterator[None]:
    """Inside, forward and backward passes are over rows of these lengths, one after the other in a batch of one."""
    global _lengths
    before, _lengths = _lengths, lengths
    try:
        yield
    finally:
        _lengths = before


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **named: Any
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa within each row. (1, H, T, d) three times -> (1, T, H, d)."""
    if not _lengths:
        output, weights = sdpa_attention_forward(module, query, key, value, mask, **named)
        return output, weights
    rows = zip(*(each.split(list(_lengths), dim=2) for each in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **named)[0] for row in rows], dim=1), None


def _no_mask(*arguments: Any, **named: Any) -> Any:
    """None inside `rows_apart`, where attention is causal within each row by itself; else sdpa's mask."""
    return None if _lengths else sdpa_mask(*arguments, **named)


def pack_rows(model: Any) -> bool:
    """Let a model take packed rows. False where it cannot: a layer has a window or a state, or sdpa is not its attention."""
    if model.config._attn_implementation != "sdpa" or not takes_rows_later(DynamicCache(config=model.config)):
        return False
    AttentionInterface.register(ROW_BY_ROW, attend)
    AttentionMaskInterface.register(ROW_BY_ROW, _no_mask)
    model.set_attn_implementation(ROW_BY_ROW)
    return True
