"""What the tracker counts: the same with and without memory behind the tensors, and what the kernel says of a process."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from bench.estimate import MODELS, SMALL, measured
from loop.engines.base import TrainingPass, TrainingPeak
from loop.engines.memory_tracker import Live, num_parameters, peak_of_training
from loop.errors import EngineError
from loop.fitting.formula import training_memory
from loop.fitting.shape import shape_of

TINY: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 640, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
}  # fmt: skip


def tiny(**changed: Any) -> TrainingPass:
    return TrainingPass(**({"num_processes": 1, "num_rows": 1, "row_tokens": 96, "on_gpu": False} | changed))


def test_a_storage_counts_once_and_until_it_is_gone() -> None:
    with Live() as live:
        one = torch.zeros(1000)
        view = one[:10]
        assert (live.now, live.peak) == (4000, 4000)
        two = torch.ones(500, dtype=torch.bfloat16)
        assert live.now == 5000
        two.untyped_storage().resize_(0)  # as FSDP frees gathered weights
        assert live.now == 4000
        del one, view, two
        gc.collect()
        assert (live.now, live.peak) == (0, 5000)


def test_fake_tensors_count_as_real_ones_do() -> None:
    fake, real = (peak_of_training(TINY, tiny(), real=real) for real in (False, True))
    assert fake.num_parameters == num_parameters(TINY)
    assert fake.at_rest_bytes == pytest.approx(12 * fake.num_parameters, rel=0.001)
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)


@pytest.mark.slow
def test_what_takes_more_is_counted_as_more() -> None:
    plain = peak_of_training(TINY, tiny(on_gpu=True))
    for more in (
        {"row_tokens": 192},
        {"num_rows": 2},
        {"padded": True, "row_tokens": 192},
        {"gradient_checkpointing": False},
    ):
        assert peak_of_training(TINY, tiny(on_gpu=True, **more)).peak_bytes > plain.peak_bytes, more
    adapter = peak_of_training(TINY, tiny(on_gpu=True, lora_rank=4))
    assert adapter.num_adapter == shape_of(TINY).num_adapted(4)
    assert adapter.at_rest_bytes < plain.at_rest_bytes / 3


def test_a_model_that_cannot_be_built_gives_one_line() -> None:
    with pytest.raises(EngineError, match=r"config.json: transformers cannot build this model: .*") as told:
        num_parameters({"model_type": "abacus"})
    assert "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize(("num", "tokens"), [(1, 512), (2, 1024)])
def test_it_is_what_the_kernel_says(num: int, tokens: int) -> None:
    """RssAnon of a process with real tensors, in float32 on this CPU."""
    work = TrainingPass(num_processes=num, num_rows=1, row_tokens=tokens, on_gpu=False)
    fake, _ = measured(SMALL, work)
    real, resident = measured(SMALL, work, real=True)
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=0.02)
    assert fake.peak_bytes == pytest.approx(resident, rel=0.05, abs=3e7)  # what is loaded at first use, beside tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "work"),
    [
        ({}, {}),
        ({"tie_word_embeddings": False}, {"num_processes": 2}),
        ({}, {"num_processes": 8, "row_tokens": 16384}),
        ({}, {"lora_rank": 16}),
        ({}, {"num_processes": 8, "lora_rank": 16}),
        ({}, {"gradient_checkpointing": False}),
        ({}, {"on_gpu": False}),
        ({}, {"padded": True, "num_rows": 4, "row_tokens": 1024}),
    ],
)
def test_the_formula_is_within_a_tenth(changes: dict[str, Any], work: dict[str, Any]) -> None:
    """Of a model of Qwen3-4B's widths with few layers, whose layers count for little and whose ends for much."""
    config = MODELS["Qwen3-4B"] | {"num_hidden_layers": 8} | changes
    asked = TrainingPass(**({"num_processes": 1, "num_rows": 1, "row_tokens": 4096, "on_gpu": True} | work))
    counted: TrainingPeak = measured(config, asked)[0]
    assert training_memory(shape_of(config), asked).peak == pytest.approx(counted.peak_bytes, rel=0.1)
