"""The table of models without fused attention is transformers' own, and a row that is too long is refused in one line."""

from __future__ import annotations

import pytest

from loop.engines.attention_memory import EAGER, WITH_SINKS, attention_bytes, attention_mistake


def test_the_table_is_that_of_transformers() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    for kind in EAGER | WITH_SINKS:
        assert not getattr(transformers, NAMES[kind])._supports_sdpa
    for kind in ("llama", "qwen3", "qwen3_moe", "mistral", "gpt2"):
        assert getattr(transformers, NAMES[kind])._supports_sdpa and not attention_bytes({"model_type": kind}, 65536)


@pytest.mark.parametrize(
    ("config", "num_tokens", "gigabytes"),
    [
        ({"model_type": "gpt_oss", "num_attention_heads": 64}, 33_000, 4.4),
        ({"model_type": "mpt", "n_heads": 64}, 16_384, 103.1),
        ({"model_type": "bloom", "n_head": 32}, 2_048, 0.8),
        ({"model_type": "qwen3", "num_attention_heads": 32}, 33_000, 0.0),
        ({}, 33_000, 0.0),
    ],
)
def test_bytes(config: dict[str, object], num_tokens: int, gigabytes: float) -> None:
    assert attention_bytes(config, num_tokens) / 1e9 == pytest.approx(gigabytes, abs=0.05)
    problem = attention_mistake(config, num_tokens)
    assert (problem is None) == (gigabytes <= 80)
    if problem:
        assert problem == (
            "attention over a row of 16,384 tokens takes 103 GB, as transformers has no fused kernel for mpt; "
            "lower training.max_tokens to 14,433"
        )
        assert attention_mistake(config, 14_433) is None
