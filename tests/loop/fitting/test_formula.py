"""The formula against figures that the tracker counted (`python bench/estimate.py`), and that it moves the right way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.estimate import MODELS
from loop.engines.base import TrainingPass
from loop.fitting.formula import sampling_memory, training_memory
from loop.fitting.shape import Shape, shape_of

# Model, processes, tokens, what differs, and the peak in GB that the tracker counted under torch 2.13 and transformers 5.19.
COUNTED: list[tuple[str, int, int, dict[str, Any], float]] = [
    ("Qwen3-4B", 8, 65536, {"padded": True}, 48.789),
    ("Qwen3-4B", 1, 4096, {}, 67.5),
    ("Qwen3-4B", 2, 4096, {}, 36.1),
    ("Qwen3-4B", 8, 65536, {}, 35.1),
    ("Llama-3.1-8B", 2, 4096, {}, 67.4),
    ("Llama-3.1-8B", 8, 65536, {}, 50.1),
    ("Qwen3-30B-A3B", 8, 4096, {}, 67.2),
    ("Qwen3-30B-A3B", 8, 65536, {}, 85.3),
    ("Qwen3-30B-A3B", 8, 4096, {"padded": True}, 67.336),
    ("Qwen3-30B-A3B", 8, 65536, {"padded": True}, 99.131),
]


@pytest.mark.parametrize(("name", "num", "tokens", "more", "peak_gb"), COUNTED)
def test_it_gives_what_was_counted(name: str, num: int, tokens: int, more: dict[str, Any], peak_gb: float) -> None:
    work = TrainingPass(num_processes=num, num_rows=1, row_tokens=tokens, on_gpu=True, **more)
    assert training_memory(shape_of(MODELS[name]), work).peak / 1e9 == pytest.approx(peak_gb, rel=0.03)


def test_at_rest_are_twelve_bytes_a_parameter() -> None:
    shape = shape_of(MODELS["Qwen3-4B"])
    for num in (1, 2, 8):
        work = TrainingPass(num_processes=num, num_rows=1, row_tokens=64, on_gpu=True)
        assert training_memory(shape, work).at_rest == 12 * shape.num_parameters // num


SHAPES = st.builds(
    Shape,
    num_layers=st.integers(1, 80), hidden=st.integers(64, 8192), inside=st.integers(8192, 30000),
    vocabulary=st.integers(1000, 300_000), queries=st.integers(64, 16384), keys=st.integers(64, 4096),
    tied=st.booleans(), norms_queries=st.booleans(),
)  # fmt: skip
WORK = st.builds(
    TrainingPass,
    num_processes=st.integers(2, 32), num_rows=st.integers(1, 8), row_tokens=st.integers(16, 100_000),
    on_gpu=st.booleans(), padded=st.booleans(), gradient_checkpointing=st.booleans(),
    lora_rank=st.none() | st.integers(1, 64),
)  # fmt: skip


@given(SHAPES, WORK)
def test_more_of_anything_takes_more_and_more_processes_take_less(shape: Shape, work: TrainingPass) -> None:
    peak = training_memory(shape, work).peak
    for larger in (
        work.model_copy(update={"row_tokens": work.row_tokens + 64}),
        work.model_copy(update={"num_rows": work.num_rows + 1}),
        work.model_copy(update={"padded": True}),
        work.model_copy(update={"gradient_checkpointing": False}),
    ):
        assert training_memory(shape, larger).peak >= peak
    assert training_memory(replace(shape, num_layers=shape.num_layers + 1), work).peak > peak
    assert training_memory(replace(shape, hidden=shape.hidden + 64), work).peak > peak
    assert training_memory(shape, work.model_copy(update={"num_processes": work.num_processes * 2})).peak <= peak


@given(SHAPES, st.booleans())
def test_an_engine_of_more_gpus_takes_less_of_each(shape: Shape, on_gpu: bool) -> None:
    one, two = (sampling_memory(shape, num, on_gpu, 2) for num in (1, 2))
    assert two.weights <= one.weights and two.token <= one.token and two.activations <= one.activations
    assert one.weights == 2 * shape.num_parameters
