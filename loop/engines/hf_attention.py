"""Attention with sinks through torch's fused kernels: for GPT-OSS, which transformers 5.19 computes eagerly otherwise.

A head's sink is one more score beside those of the keys, with no value: softmax over [scores, sink], of which the sink's
share is dropped. Eager attention holds all heads' scores, H T^2 of them. Here the sink is one more key, whose value is zero,
and whose product with a query is the sink: queries get one more dimension that holds it, and that key a one there.
The kernel is then the one of any other model, forwards and backwards. Runs only inside a worker process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

SINKS = "fused_with_sinks"  # with "sdpa" in its name transformers would refuse it for these models
MORE = 8  # dimensions of a head; fused kernels want a multiple of eight


def sink_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    s_aux: torch.Tensor | None = None,
    **named: Any,
) -> tuple[torch.Tensor, Any]:
    """transformers' sdpa with the sinks `s_aux` (H,). (B, H, t, d), (B, H_kv, T, d) twice, (B, 1, t, T) -> (B, t, H, d)."""
    if s_aux is None:
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **named)
        return output, weights
    num_rows, num_heads, num_tokens, size = query.shape
    sinks = (s_aux.to(query.dtype) / scaling).reshape(1, num_heads, 1, 1).expand(num_rows, -1, num_tokens, 1)
    query = torch.cat([query, pad(sinks, (0, MORE - 1))], dim=-1)
    is_sink = pad(key.new_ones(1), (size, MORE - 1)).expand(*key.shape[:2], 1, -1)
    key = torch.cat([is_sink, pad(key, (0, MORE))], dim=2)
    # As wide as the keys: kernels that need no memory for the scores want both of one size.
    value = pad(value, (0, size + MORE - value.shape[-1], 1, 0))
    first = 0
    if attention_mask is not None:
        attention_mask = pad(attention_mask[..., : key.shape[2] - 1], (1, 0), value=attention_mask.dtype == torch.bool)
    elif num_tokens > 1:  # the causal kernel lets query i see the keys up to i: one query more, and each sees the sink
        query, first = pad(query, (0, 0, 1, 0)), 1
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **named)
    return output[:, first:, :, :size], weights


def use_sink_attention(model: Any) -> None:
    """Let a model that would attend eagerly because of its sinks do so through torch's kernels."""
    has_sinks = any("sinks" in module._parameters for module in model.modules())
    # What flex attention supports computes its sinks nowhere but in the attention function.
    if model.config._attn_implementation == "eager" and model._supports_flex_attn and has_sinks:
        AttentionInterface.register(SINKS, sink_attention)
        AttentionMaskInterface.register(SINKS, sdpa_mask)
        model.set_attn_implementation(SINKS)
