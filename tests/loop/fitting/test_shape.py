"""The parameters that a config.json stands for are those of the model that transformers builds of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loop.config.settings import Model
from loop.errors import ConfigError
from loop.fitting.shape import SMOLLM2, model_config, model_shape, shape_of
from loop.inputs import SMOLLM2_PARAMETERS, num_parameters_of
from tests.support.tiny import make_tiny_model

TINY: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
MODELS = [
    {"model_type": "llama", "tie_word_embeddings": False},
    {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True},
    {"model_type": "qwen2", "tie_word_embeddings": True},
    {"model_type": "qwen3", "tie_word_embeddings": True},
    {"model_type": "mistral"},
    {"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True},
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["model_type"])
def test_counts_as_transformers_does(model: dict[str, Any]) -> None:
    from loop.engines.memory_tracker import num_parameters

    assert shape_of(TINY | model).num_parameters == num_parameters(TINY | model)


def test_counts_what_is_in_the_files(tmp_path: Path) -> None:
    directory = make_tiny_model(tmp_path / "tiny", trained=False)
    config = json.loads((directory / "config.json").read_text())
    assert shape_of(config).num_parameters == num_parameters_of(str(directory), tmp_path)


def test_knows_the_built_in_model_without_its_files() -> None:
    assert shape_of(SMOLLM2).num_parameters == SMOLLM2_PARAMETERS


def test_a_token_uses_few_of_many_experts() -> None:
    shape = shape_of(TINY | MODELS[5])
    unused = 3 * (6 - 2) * 3 * 32 * 24  # of three layers
    assert (
        shape.num_parameters - shape.num_active == unused + 320 * 32 + 32
    )  # and the embedding, which is looked up, with the last norm


def test_a_model_that_is_not_here_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"'owner/model' is not in the local cache.*`hf download owner/model config.json`"
    ) as told:
        model_config(Model(source="owner/model"), tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "is not a JSON object"), ("{", "is not a JSON object"), (None, "No such file")]
)
def test_a_config_that_cannot_be_read_gives_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    (tmp_path / "model").mkdir()
    if text is not None:
        (tmp_path / "model/config.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        model_config(Model(source="./model"), tmp_path)


def test_a_config_without_sizes_has_no_shape(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "mamba"}')
    assert model_shape(Model(source="./model"), tmp_path) is None
    assert model_shape(Model(source="fake"), tmp_path) is None
