"""What loading and saving take when processes share a model: `python bench/sharding.py [--hidden-size N] [--processes N]`.

A Qwen3 with random weights, 1.1 billion of them by default, in bfloat16 on the disk, is loaded for training (float32) and saved in its
own precision by several processes of a CPU: in slices, as the trainer does, and whole in each process. Given are, for each process, the
peak of anonymous memory (what can't be dropped, Python with its libraries included) while loading and what saving adds, and the time
of both. Times mean something only beside each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LOOK_S = 0.02


def build(directory: Path, hidden_size: int) -> int:
    """Write the model; its number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=24 * hidden_size, hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=20,
        num_attention_heads=max(1, hidden_size // 128), num_key_value_heads=max(1, hidden_size // 256), head_dim=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    return int(model.num_parameters())


def anonymous_bytes() -> int:
    """The anonymous memory of this process now, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def peak_of(figures: dict[str, float], name: str) -> Iterator[None]:
    """The most anonymous memory inside, and the seconds."""
    stop, most = threading.Event(), [anonymous_bytes()]

    def watch() -> None:
        while not stop.wait(LOOK_S):
            most.append(max(most.pop(), anonymous_bytes()))

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    try:
        yield
    finally:
        figures[f"{name}_s"] = time.monotonic() - began
        stop.set()
        thread.join()
        figures[f"{name}_peak_bytes"] = max(*most, anonymous_bytes())


def one_process(way: str, directory: Path, out: Path) -> None:
    """Load and save as one process of the group; print the figures as a line of JSON."""
    import copy
    import gc

    import torch

    from loop.engines import sharded
    from loop.engines.base import CheckpointRef
    from loop.engines.hf_models import load_model

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    sharded.start_group(cpu)
    figures: dict[str, Any] = {"way": way, "before_bytes": anonymous_bytes()}
    with peak_of(figures, "load"):
        if way == "slices":
            model = sharded.load(directory, torch.float32, cpu)
        else:
            model = load_model(CheckpointRef(sha256="", path=directory), "auto", cpu).float()
    gc.collect()
    sharded.wait_for_all()
    figures["loaded_bytes"] = anonymous_bytes()
    config = copy.deepcopy(model.config)
    vars(config).pop("distributed_config", None)
    with peak_of(figures, "save"):
        if way == "slices":
            sharded.save(model, torch.bfloat16, config, model.generation_config, out)
        elif sharded.process_number() == 0:
            model.to(torch.bfloat16).save_pretrained(out)
        sharded.wait_for_all()
    print(json.dumps(figures), flush=True)
    sharded.wait_for_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "MODEL", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, directory, out = options.one
        one_process(way, Path(directory), Path(out))
        return
    with tempfile.TemporaryDirectory() as name:
        model = Path(name, "model")
        num = build(model, options.hidden_size)
        share = 4 * num / options.processes
        print(f"{num / 1e9:.3f} billion parameters; a share in float32 is {share / 1e9:.2f} GB")
        print(
            "| way | load: peak, GB | over 1.05 shares, GB | save: adds, GB | load + save, s |\n|---|---|---|---|---|"
        )
        for way in ("slices", "whole"):
            Path(name, way).mkdir()
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command = [
                *torchrun,
                f"--nproc-per-node={options.processes}",
                __file__,
                "--one",
                way,
                model,
                Path(name, way),
            ]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            each = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            peak = [figures["load_peak_bytes"] for figures in each]
            added = [figures["save_peak_bytes"] - figures["loaded_bytes"] for figures in each]
            seconds = max(figures["load_s"] + figures["save_s"] for figures in each)
            cells = (
                " / ".join(f"{value / 1e9:.2f}" for value in values)
                for values in (peak, [p - 1.05 * share for p in peak], added)
            )
            print(f"| {way} | {' | '.join(cells)} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
