"""The distribution that tokens are drawn from is that of transformers' own processors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loop.engines.base import CheckpointRef, Request, SamplingParams
from tests.support.engines import ask, in_process

pytestmark = pytest.mark.usefixtures("one_thread")


def warped(logits: Any, params: SamplingParams, before: Any = None) -> Any:
    """The logits as transformers' own processors leave them; `before`: the tokens before, for the repetition penalty."""
    import transformers

    if params.repetition_penalty != 1:
        logits = transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(before, logits.clone())
    logits = transformers.TemperatureLogitsWarper(params.temperature)(None, logits) if params.temperature else logits
    logits = transformers.TopKLogitsWarper(params.top_k)(None, logits) if params.top_k else logits
    return transformers.TopPLogitsWarper(params.top_p)(None, logits) if params.top_p < 1 else logits


def full(logits: Any, params: SamplingParams) -> Any:
    """`truncated_distribution` as (B, V)."""
    import torch

    from loop.engines.drawing import truncated_distribution

    probabilities, ids = truncated_distribution(logits, params)
    if ids is None:
        return probabilities
    return torch.zeros_like(logits).scatter(1, ids, probabilities)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.sampled_from([5, 400, 3000]),
    spread=st.sampled_from([0.01, 1.0, 4.0]),
    temperature=st.floats(0.3, 3.0),
    top_k=st.sampled_from([0, 1, 3, 20, 2500]),
    top_p=st.sampled_from([0.05, 0.5, 0.8, 0.95, 0.999, 1.0]),
)
def test_the_distribution_is_that_of_transformers(
    seed: int, vocabulary: int, spread: float, temperature: float, top_k: int, top_p: float
) -> None:
    """In float64, so that the border of the nucleus cannot fall differently for rounding. Flat logits over 3,000 tokens
    need a nucleus of more than the 1,024 that are sorted first."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocabulary, generator=generator, dtype=torch.float64) * spread
    logits[2] *= 8  # a sharp row beside flat ones
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=1)
    distribution = full(logits, params)
    torch.testing.assert_close(distribution, warped(logits, params).softmax(-1), atol=1e-9, rtol=1e-9)
    for row in range(3):
        torch.testing.assert_close(full(logits[row : row + 1], params)[0], distribution[row], atol=0, rtol=0)


def test_ties_fall_the_same_whoever_else_is_in_the_batch() -> None:
    import torch

    from loop.engines.drawing import truncated_distribution

    logits = torch.randn(2, 3000, generator=torch.Generator().manual_seed(1)).mul(8).round()  # many ties in a sharp row
    logits[1] = 0  # needs far more than the tokens that are sorted first
    params = SamplingParams(temperature=1.0, top_p=0.99, max_new_tokens=1)
    _, alone = truncated_distribution(logits[:1], params)
    _, beside = truncated_distribution(logits, params)
    assert alone is not None and beside is not None
    assert beside.shape[1] == 3000
    assert torch.equal(alone[0], beside[0, : alone.shape[1]])


@hypothesis_settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), penalty=st.floats(0.5, 2.0))
def test_the_repetition_penalty_is_that_of_transformers(seed: int, penalty: float) -> None:
    import torch

    from loop.engines.hf_sampler import TransformersSampler

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 50, generator=generator)
    before = torch.randint(0, 50, (4, 12), generator=generator)
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, before, True)
    params = SamplingParams(temperature=0.0, repetition_penalty=penalty, max_new_tokens=1)
    expected = warped(logits, params, before)
    tokens, logprobs = TransformersSampler._choose(None, logits, [0.0] * 4, params, seen)  # type: ignore[arg-type]
    assert tokens.tolist() == expected.argmax(-1).tolist()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=2.0, max_new_tokens=1),
        SamplingParams(temperature=2.5, top_k=20, top_p=0.9, max_new_tokens=1),
        SamplingParams(temperature=2.5, top_p=0.9, repetition_penalty=1.4, max_new_tokens=1),
    ],
)
def test_drawn_frequencies_are_the_distribution(tiny: CheckpointRef, params: SamplingParams) -> None:
    """2,000 first tokens against teacher-forced logits through transformers' processors; chi-square, fixed seeds."""
    import torch
    from scipy.stats import chisquare

    sampler = in_process(tiny, batch_size=500)
    count = 2000
    completions = ask(sampler, [Request(id=f"r{i}", prefill="def ", seed=i) for i in range(count)], params)
    drawn = torch.tensor([generated.token_ids[0] for generated in completions.values()]).bincount(minlength=400)
    prompt = torch.tensor([completions["r0"].prompt_token_ids])
    with torch.no_grad():
        logits = sampler.model(input_ids=prompt).logits[:, -1]
    expected = warped(logits, params, prompt).softmax(-1)[0].double()
    assert int(drawn[expected == 0].sum()) == 0
    common = expected * count >= 5
    observed = torch.cat([drawn[common], drawn[~common].sum()[None]]).double()
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]) * count
    keep = wanted > 0
    assert keep.sum() > 2
    wanted = wanted[keep] / wanted[keep].sum() * count
    assert chisquare(observed[keep].numpy(), wanted.numpy()).pvalue > 0.001
