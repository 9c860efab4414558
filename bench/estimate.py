"""The memory of a fine-tune three ways: by the formula, counted on fake tensors, and with real tensors on this CPU.

    python bench/estimate.py                # full sizes, formula and count: ten minutes or so
    python bench/estimate.py --small        # a small model, the count with and without memory behind it, a minute
    python bench/estimate.py --docs         # the tables of docs/recipes.md, by the formula alone

The count on real tensors is of a small model in float32, by a process of its own; RssAnon is what the kernel says of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from loop.config.loading import load_config
from loop.config.settings import Config
from loop.engines.base import TrainingPass, TrainingPeak
from loop.fitting.estimate import Need, estimate
from loop.fitting.formula import sampling_memory, training_memory
from loop.fitting.machine import Machine
from loop.fitting.shape import SMOLLM2, Shape, shape_of

ROOT = Path(__file__).parent.parent
MODELS: dict[str, dict[str, Any]] = {  # what their config.json files hold
    "SmolLM2-135M": SMOLLM2,
    "Qwen3-4B": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "dtype": "bfloat16",
    },
    "Llama-3.1-8B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False, "dtype": "bfloat16",
    },
    "GPT-OSS-20B": {
        "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32,
        "num_experts_per_tok": 4, "attention_bias": True, "tie_word_embeddings": False, "dtype": "bfloat16",
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "tie_word_embeddings": False, "dtype": "bfloat16",
    },
}  # fmt: skip
SMALL: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 16384, "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True, "max_position_embeddings": 65536,
}  # fmt: skip
CASES = [
    ("Qwen3-4B", 1, 4096), ("Qwen3-4B", 2, 4096), ("Qwen3-4B", 8, 65536), ("Llama-3.1-8B", 2, 4096),
    ("Llama-3.1-8B", 8, 65536), ("Qwen3-30B-A3B", 8, 4096), ("Qwen3-30B-A3B", 8, 65536),
]  # fmt: skip
MACHINES = [
    ("one of 24 GB", 1, 25.2),
    ("one of 80 GB", 1, 84.0),
    ("eight of 80 GB", 8, 84.0),
    ("eight of 141 GB", 8, 150.0),
]
RECIPES = {
    "llama-3.1-8b-instruct": "Llama-3.1-8B", "qwen3-4b-instruct": "Qwen3-4B", "qwen3-4b-thinking": "Qwen3-4B",
    "qwen3-30b-a3b-instruct": "Qwen3-30B-A3B", "qwen3-30b-a3b-thinking": "Qwen3-30B-A3B", "gpt-oss-20b": "GPT-OSS-20B",
}  # fmt: skip


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(config: dict[str, Any], work: TrainingPass, real: bool) -> dict[str, Any]:
    """Count in this process, which must be fresh; with `real` also what it took beyond what it had before."""
    from loop.engines.memory_tracker import peak_of_training

    # What is loaded at first use is there by then.
    peak_of_training(
        SMALL | {"hidden_size": 64, "num_hidden_layers": 1}, work.model_copy(update={"row_tokens": 32}), real
    )
    begin, most, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], anonymous_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        peak = peak_of_training(config, work, real)
    finally:
        done.set()
        watcher.join()
    return peak.model_dump() | {"resident_bytes": most[0] - begin}


def measured(config: dict[str, Any], work: TrainingPass, real: bool = False) -> tuple[TrainingPeak, int]:
    """The count, and what the kernel says, by a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--one",
        json.dumps({"config": config, "work": work.model_dump(), "real": real}),
    ]
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # what is freed goes back at once: malloc keeps nothing
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    told = json.loads(done.stdout.splitlines()[-1])
    resident = told.pop("resident_bytes")
    return TrainingPeak.model_validate(told), resident


def training_table(cases: list[tuple[str, int, int]]) -> None:
    print("| model | GPUs | tokens | formula, GB | counted, GB | formula / counted |\n|---|---|---|---|---|---|")
    for name, num, tokens in cases:
        work = TrainingPass(num_processes=num, num_rows=1, row_tokens=tokens, on_gpu=True)
        formula = training_memory(shape_of(MODELS[name]), work).peak
        counted = measured(MODELS[name], work)[0].peak_bytes
        print(
            f"| {name} | {num} | {tokens:,} | {formula / 1e9:.1f} | {counted / 1e9:.1f} | {formula / counted:.3f} |",
            flush=True,
        )


def small_table() -> None:
    print(
        "| processes | tokens | formula, MB | counted on fake, MB | counted on real, MB | RssAnon, MB |\n|---|---|---|---|---|---|"
    )
    for num, tokens in ((1, 512), (2, 1024)):
        work = TrainingPass(num_processes=num, num_rows=1, row_tokens=tokens, on_gpu=False)
        formula, (fake, _) = training_memory(shape_of(SMALL), work).peak, measured(SMALL, work)
        real, resident = measured(SMALL, work, real=True)
        figures = " | ".join(f"{each / 1e6:.0f}" for each in (formula, fake.peak_bytes, real.peak_bytes, resident))
        print(f"| {num} | {tokens:,} | {figures} |", flush=True)


def memory_rows() -> list[list[str]]:
    """docs/recipes.md: what each model takes at 4,096 tokens."""
    rows = []
    for name, config in MODELS.items():
        shape = shape_of(config)
        sampling = sampling_memory(shape, 1, True, 2)
        parts = [_full(shape, num, tokens) for num, tokens in ((1, 4096), (8, 4096), (8, 65536))]
        lora = training_memory(
            shape, TrainingPass(num_processes=1, num_rows=1, row_tokens=2048, on_gpu=True, lora_rank=16)
        )
        figures = [
            shape.num_parameters / 1e9,
            sampling.weights / 1e9,
            sampling.token / 1e3,
            12 * shape.num_parameters / 1e9,
        ]
        rows.append([name, *map(_short, figures), *map(_short, parts), _short(lora.peak / 1e9)])
    return rows


def _full(shape: Shape, num: int, tokens: int) -> float:
    work = TrainingPass(num_processes=num, num_rows=1, row_tokens=tokens, on_gpu=True)
    return training_memory(shape, work).peak / 1e9


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def machine_rows() -> list[list[str]]:
    """docs/recipes.md: each recipe of the paper on each machine: the peak of training a GPU, or what would help."""
    rows = []
    for recipe, model in RECIPES.items():
        config = load_config(ROOT / "recipes" / f"{recipe}.toml").config
        cells = [
            _on(config, shape_of(MODELS[model]), Machine((int(gb * 1e9),) * num, 1 << 41, 1 << 45))
            for _, num, gb in MACHINES
        ]
        rows.append([f"`{recipe}.toml`", *cells])
    return rows


def _on(config: Config, shape: Shape, machine: Machine) -> str:
    needs = {need.what: need for need in estimate(config, shape, machine).needs}
    training, sampling = needs["training"], min((needs[w] for w in ("sampling", "evaluating")), key=_order)
    if sampling.verdict == "cannot":
        return "no: sampling does not fit"
    words = {"fits": "yes", "tight": "only just", "cannot": "no"}[training.verdict]
    told = f"{words}: {training.needed_bytes / 1e9:.0f} GB"
    return told if training.verdict == "fits" else f"{told}; {training.remedy.replace('set ', '', 1)}"


def _order(need: Need) -> int:
    return ("cannot", "tight", "fits").index(need.verdict)


def docs() -> str:
    """Both tables, as docs/recipes.md has them."""
    memory = [
        "model",
        "P (billions)",
        "sampling, bfloat16",
        "KV cache, kB a token",
        "at rest, 12 P",
        "peak on 1 GPU",
        "on 8",
        "on 8, 65,536 tokens",
        "LoRA, 2,048 tokens",
    ]
    machines = ["recipe", *(name for name, _, _ in MACHINES)]
    return "\n\n".join(_table(header, rows) for header, rows in ((memory, memory_rows()), (machines, machine_rows())))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model, with real tensors, too")
    parser.add_argument("--docs", action="store_true", help="the tables of docs/recipes.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        told = json.loads(asked.one)
        print(json.dumps(measure(told["config"], TrainingPass.model_validate(told["work"]), told["real"])))
    elif asked.docs:
        print(docs())
    elif asked.small:
        small_table()
    else:
        training_table(CASES)
        small_table()


if __name__ == "__main__":
    main()
