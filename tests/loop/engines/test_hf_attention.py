"""Attention with sinks is transformers' own, forwards and backwards, and holds no scores."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, DynamicCache

from loop.engines.hf_attention import SINKS
from loop.engines.hf_models import load_model
from tests.support.engines import GREEDY, HOT, ask, at, chat, forced, in_process
from tests.support.tiny import make_tiny_gpt_oss, make_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
WINDOW = 16  # of every other layer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gpt_oss(tmp_path_factory.mktemp("models") / "gpt-oss")


@pytest.fixture(scope="module")
def fused(path: Path) -> Any:
    return load_model(at(path), torch.float32, torch.device("cpu")).eval()


@pytest.fixture(scope="module")
def eager(path: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    assert model.config._attn_implementation == "eager"
    return model


def tokens(num_rows: int, num_tokens: int) -> torch.Tensor:
    return torch.randint(3, 400, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))


def test_models_with_sinks_are_loaded_with_it_and_others_are_not(fused: Any, tmp_path: Path) -> None:
    assert fused.config._attn_implementation == SINKS
    other = load_model(at(make_tiny_model(tmp_path, trained=False)), "auto", torch.device("cpu"))
    assert other.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("num_tokens", [1, WINDOW - 1, 70])
def test_logits_and_gradients_are_those_of_eager_attention(fused: Any, eager: Any, num_tokens: int) -> None:
    ids = tokens(2, num_tokens)
    masks: list[torch.Tensor | None] = [None]
    if num_tokens > 1:  # padded on the right, as rows are in training
        masks.append(torch.ones_like(ids).masked_fill(torch.arange(num_tokens) >= torch.tensor([[num_tokens], [9]]), 0))
    for mask in masks:
        seen = slice(None) if mask is None else mask.bool()
        for model in (fused, eager):
            model.zero_grad()
            model(input_ids=ids, attention_mask=mask).logits[seen].square().sum().backward()
        with torch.no_grad():
            ours, theirs = (model(input_ids=ids, attention_mask=mask).logits[seen] for model in (fused, eager))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        for (name, one), other in zip(fused.named_parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=2e-3, rtol=2e-3, msg=name)
            assert "sinks" not in name or bool(one.grad.abs().sum() > 0)


def test_with_a_cache_a_slice_at_a_time(fused: Any, eager: Any) -> None:
    ids, ends = tokens(2, 60), [0, 25, 26, 27, 50, 51, 60]
    logits = []
    for model in (fused, eager):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            pieces = [
                model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True).logits
                for start, end in itertools.pairwise(ends)
            ]
        logits.append(torch.cat(pieces, dim=1))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_samples_are_the_models_own(path: Path, eager: Any) -> None:
    sampler = in_process(at(path))
    for params in (GREEDY, HOT):
        drawn = ask(sampler, [chat(f"r{i}", seed=i, task=3 * i) for i in range(6)], params)
        for generated in drawn.values():
            assert generated.logprob_sum == forced(eager, generated)


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that any operation gives while this is on."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.untyped_storage().nbytes())
        return output


def test_no_scores_are_held(fused: Any, eager: Any) -> None:
    """Only the mask of the sliding windows has T^2 entries, of a byte each and for all heads together."""
    num_tokens = 768
    ids = tokens(1, num_tokens)
    most = {}
    for name, model in (("fused", fused), ("eager", eager)):
        with Largest() as largest:
            model(input_ids=ids, logits_to_keep=1).logits.sum().backward()
        most[name] = largest.most
    num_heads = fused.config.num_attention_heads
    assert most["eager"] >= num_heads * num_tokens**2 * 4
    assert most["fused"] <= (num_tokens + 1) ** 2 * 4 < most["eager"] / 3
