"""What attention holds for one row beside the row itself, where no fused kernel spares it. Imports no torch.

Most models attend through torch's fused kernels, which hold no scores. The table is that of transformers 5.19; a test
compares it.
"""

from __future__ import annotations

from collections.abc import Mapping

# Models that transformers computes eagerly: all heads' scores of a layer in bfloat16, and their softmax in float32.
EAGER = frozenset({
    "bloom", "codegen", "deepseek_v4", "gpt_neo", "gpt_neox_japanese", "gptj", "hy_v4", "mimo_v2_flash", "mpt", "openai-gpt", "xglm",
})  # fmt: skip
EAGER_BYTES = 2 + 4  # a head and pair of tokens
# Models with sinks, for `loop.engines.hf_attention`, and sliding windows: their mask, its copy with the sink, both as a bias.
WITH_SINKS = frozenset({"gpt_oss", "granite_swa", "granitemoe_swa"})
MASK_BYTES = 1 + 1 + 2  # a pair of tokens, of all heads together
CARD_BYTES = 80_000_000_000  # of a GPU, where nothing says how large it is
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


def attention_bytes(config: Mapping[str, object], num_tokens: int) -> int:
    """For a row of `num_tokens`, by the model's config.json; 0 for a model that attends through fused kernels alone."""
    if config.get("model_type") in WITH_SINKS:
        return MASK_BYTES * num_tokens**2
    if config.get("model_type") not in EAGER:
        return 0
    heads = next((value for key in _HEADS if isinstance(value := config.get(key), int)), 1)
    return EAGER_BYTES * heads * num_tokens**2


def attention_mistake(config: Mapping[str, object], num_tokens: int, memory_bytes: int = CARD_BYTES) -> str | None:
    """Why rows of `num_tokens` cannot be trained in this memory, of attention alone; None if they may."""
    needed = attention_bytes(config, num_tokens)
    if needed <= memory_bytes:
        return None
    return (
        f"attention over a row of {num_tokens:,} tokens takes {needed / 1e9:.0f} GB, as transformers has no fused kernel for "
        f"{config['model_type']}; lower training.max_tokens to {int(num_tokens * (memory_bytes / needed) ** 0.5):,}"
    )
