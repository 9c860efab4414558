"""Draws tokens from logits: temperature, top-k, top-p, and a uniform number per token. Runs only inside a worker process."""

from __future__ import annotations

import torch

from loop.engines.base import SamplingParams

TOP_P_SHORTCUT = 1024  # this many likeliest tokens are sorted first; a nucleus rarely needs more


def truncated_distribution(logits: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Probabilities to draw from, and the token ids that they belong to (None: all, in order).

    logits: (B, V) after the repetition penalty. The order is transformers': temperature, then top-k, then top-p over what
    top-k left; where tokens tie at the k-th place, k in all are kept. Returns (B, K) and (B, K), most likely first
    where ids are given. A row's result does not depend on the other rows.
    """
    scaled = logits / params.temperature
    if params.top_k == 0 and params.top_p >= 1.0:
        return scaled.softmax(-1), None
    if params.top_k:
        kept, ids = scaled.topk(min(params.top_k, scaled.shape[-1]), dim=-1)
        probabilities = kept.softmax(-1)
    else:
        mass = scaled.logsumexp(-1, keepdim=True)
        kept, ids = scaled.topk(min(TOP_P_SHORTCUT, scaled.shape[-1]), dim=-1)
        probabilities = (kept - mass).exp()
        short = probabilities.sum(-1, keepdim=True) < params.top_p
        if bool(short.any()):
            first = ids
            kept, ids = scaled.sort(-1, descending=True)
            ids[:, : first.shape[1]] = ids[:, : first.shape[1]].where(short, first)  # ties in a row's usual order
            probabilities = (kept - mass).exp()
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= params.top_p, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True), ids


def draw(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The index where each row's cumulative probability passes its uniform number. (B, K), (B,) -> (B,)."""
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=probabilities.shape[-1] - 1)[:, 0]
