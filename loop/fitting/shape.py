"""What a model's config.json says of its size: layers, widths, parameters. Reads that file and nothing else; imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.config.settings import Model
from loop.errors import ConfigError
from loop.inputs import BUILT_IN_MODEL, FAKE_MODEL, model_directory, num_parameters_of

SMOLLM2: dict[str, Any] = {  # SmolLM2-135M-Instruct, so that nothing has to be converted first
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
    "dtype": "float32",
}  # fmt: skip
NORMS_QUERIES = ("qwen3", "qwen3_moe")  # model types that normalise queries and keys
HAS_BIASES = ("qwen2", "qwen2_moe", "gpt_oss")  # of queries, keys and values, whatever config.json says
TIED = ("gemma", "gemma2", "gemma3_text")  # their configs leave out that the embeddings are tied
ROUTED = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder. `queries` and `keys` are heads times their size; `inside` is the width of the feed-forward part.

    Of a mixture `inside` is that of one expert, of which a token uses `num_used` of `num_experts` in each layer.
    """

    num_layers: int
    hidden: int
    inside: int
    vocabulary: int
    queries: int
    keys: int
    tied: bool
    norms_queries: bool
    num_experts: int = 0
    num_used: int = 0
    num_others: int = (
        0  # parameters of a layer beside its matrices: biases, norms, sinks, experts that all tokens share
    )
    saved_bytes: int = 2  # of a weight on disk, where it is not quantised; trained weights are saved likewise
    counted: int | None = None  # the parameters that the model's files hold, where they are on this machine

    @property
    def num_in_a_layer(self) -> int:
        return self._outside_experts + self.num_experts * 3 * self.hidden * self.inside

    @property
    def num_parameters(self) -> int:
        """All of them, tied ones once."""
        tables = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.counted or self.num_layers * self.num_in_a_layer + tables + self.hidden

    @property
    def num_active(self) -> int:
        """Those that one token is multiplied with: of a mixture its experts, and the output layer once."""
        layer = self._outside_experts + self.num_used * 3 * self.hidden * self.inside
        return self.num_layers * layer + self.vocabulary * self.hidden

    @property
    def _outside_experts(self) -> int:
        dense = 0 if self.num_experts else 3 * self.hidden * self.inside
        attention = 2 * self.hidden * (self.queries + self.keys)
        return attention + dense + self.num_experts * self.hidden + self.num_others

    def num_adapted(self, rank: int) -> int:
        """The parameters of a low-rank adapter of every linear layer but the output's (of a mixture: of its attention)."""
        attention = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys)
        dense = 0 if self.num_experts else 3 * (self.hidden + self.inside)
        return self.num_layers * rank * (attention + dense)


def shape_of(config: dict[str, Any], counted: int | None = None) -> Shape:
    """The sizes that a config.json gives. LookupError or TypeError where it has none of these keys."""
    config = config.get("text_config", config)
    kind, hidden, heads = str(config.get("model_type")), int(config["hidden_size"]), int(config["num_attention_heads"])
    num_keys, head = int(config.get("num_key_value_heads") or heads), int(config.get("head_dim") or hidden // heads)
    experts = next((int(config[name]) for name in ROUTED if config.get(name)), 0)
    inside = int((experts and config.get("moe_intermediate_size")) or config["intermediate_size"])
    norms, others = kind in NORMS_QUERIES, 2 * hidden
    others += 2 * head if norms else 0
    if config.get("attention_bias") or kind in HAS_BIASES:
        others += (heads + 2 * num_keys) * head
        others += hidden if kind not in ("qwen2", "qwen2_moe") else 0
    if kind == "gpt_oss":
        others += heads + experts * (2 * inside + hidden + 1)  # sinks, and the biases of experts and router
    if shared := int(config.get("shared_expert_intermediate_size") or 0):
        others += 3 * hidden * shared + hidden
    return Shape(
        num_layers=int(config["num_hidden_layers"]), hidden=hidden, inside=inside, vocabulary=int(config["vocab_size"]),
        queries=heads * head, keys=num_keys * head, tied=bool(config.get("tie_word_embeddings", kind in TIED)),
        norms_queries=norms, num_experts=experts,
        num_used=int(config.get("num_experts_per_tok") or config.get("experts_per_token") or 0),
        num_others=others, counted=counted,
    )  # fmt: skip


def model_config(model: Model, base_dir: Path) -> dict[str, Any] | None:
    """The config.json of a `model.source`; None for the fake model. ConfigError with the remedy where it cannot be had."""
    if model.source == FAKE_MODEL:
        return None
    if model.source == BUILT_IN_MODEL:
        return SMOLLM2
    directory = model_directory(model.source, base_dir)
    path = directory / "config.json" if directory else _cached(model)
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"model.source: {path}: {error.strerror}; name a directory that save_pretrained wrote"
        ) from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ConfigError(f"model.source: {path} is not a JSON object; fetch the model again")
    return config


def model_shape(model: Model, base_dir: Path) -> Shape | None:
    """`shape_of` a `model.source`, with the parameters counted where its files are here. As `model_config`, and None where
    config.json names no sizes that the formula knows."""
    if (config := model_config(model, base_dir)) is None:
        return None
    packed = "quantization_config" in config  # its files do not show how many parameters there are
    try:
        return shape_of(config, None if packed else num_parameters_of(model.source, base_dir))
    except (LookupError, TypeError, ValueError):
        return None


def _cached(model: Model) -> Path:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model.source, "config.json", revision=model.revision)
    if not isinstance(path, str):
        raise ConfigError(
            f"model.source: {model.source!r} is not in the local cache, so its size is not known; fetch its config.json "
            f"(`hf download {model.source} config.json`), or give a directory that holds it"
        )
    return Path(path)
