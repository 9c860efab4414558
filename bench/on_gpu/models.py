"""Models with random weights for `bench/gpu.py`: written, changed and compared. Each function that needs torch runs in a
process of its own (`python -m bench.on_gpu.models`), so that the bench itself never holds memory of a GPU.

The weights are those of a Qwen3 before any training, in bfloat16, with the tokenizer and the chat template of SmolLM2. Such a model
draws nearly all tokens alike, so every so many of them are given out as tokens that end a text: lengths are uneven then.
Embeddings and output layer are not tied: with random weights a tied model repeats its last token.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from bench.measuring import last_line

VOCABULARY = 49152  # SmolLM2's
SIZES: dict[str, dict[str, int]] = {  # those with a B in their names are the shapes of Qwen3's models
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 32},
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128},
}  # fmt: skip


def config_of(size: str) -> dict[str, Any]:
    """What the config.json of a model of this size says."""
    more = {"model_type": "qwen3", "vocab_size": VOCABULARY, "max_position_embeddings": 8192, "dtype": "bfloat16"}
    return SIZES[size] | more | {"tie_word_embeddings": False}


def in_a_process(*words: str | Path | float) -> Any:
    """What one of the functions below tells, run in a process of its own."""
    return last_line("-m", "bench.on_gpu.models", *map(str, words))


def write(size: str, mean_tokens: str, directory: str) -> dict[str, Any]:
    """A model whose completions have `mean_tokens` tokens on average, as far as they may be that long."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    from loop.engines.hf_models import smollm2_gguf

    logging.disable_progress_bar()
    gguf = smollm2_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    known = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    fields = {key: value for key, value in config_of(size).items() if key not in ("model_type", "dtype")}
    config = AutoConfig.for_model("qwen3", **fields, **known)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    ends = sorted({tokenizer.eos_token_id, *range(1000, VOCABULARY, int(mean_tokens))})
    model.generation_config = GenerationConfig(**known | {"eos_token_id": ends})
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return {"num_parameters": model.num_parameters()}


def change(source: str, amount: str, directory: str) -> dict[str, Any]:
    """The model with noise on each tensor, `amount` times as large as what is there."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, directory)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(1)
    for file in sorted(Path(directory).glob("*.safetensors")):
        tensors = load_file(file, device=device)
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=draw, device=device) * tensor.float().square().mean().sqrt()
            tensors[name] = (tensor.float() + float(amount) * noise).to("cpu", tensor.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return {}


def compare(first: str, second: str) -> dict[str, Any]:
    """How many elements of two models differ, of how many, and the largest difference."""
    from safetensors.torch import load_file

    num = num_other = 0
    largest = 0.0
    for file in sorted(Path(first).glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(Path(second, file.name))
        if ours.keys() != theirs.keys():
            raise ValueError(f"{file.name} of {second} has other tensors")
        for name, tensor in ours.items():
            differences = (tensor.double() - theirs[name].double()).abs()
            num, num_other = num + tensor.numel(), num_other + int(differences.count_nonzero())
            largest = max(largest, float(differences.max()))
    return {"num": num, "num_other": num_other, "largest": largest}


def cuda() -> dict[str, Any]:
    """What torch knows of the GPU."""
    import torch

    seen = torch.cuda.is_available()
    return {
        "seen": seen,
        "cuda": torch.version.cuda,
        "bfloat16": torch.cuda.is_bf16_supported() if seen else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if seen else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("write", "change", "compare", "cuda"))
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_args()
    print(json.dumps(globals()[asked.what](*asked.arguments)))


if __name__ == "__main__":
    main()
