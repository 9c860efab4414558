"""How fast fine-tuning is beside plain SFTTrainer: `python bench/training.py [--rows N] [--pairs K]`.

Both train the same ragged rows (input_ids and labels) in float32 on the CPU, in the same random order, with 16 rows an
optimizer step. Plain SFTTrainer takes 8 a pass, twice, with its own padding and its own loss; all else it is given is
what ours is given. Each runs in a process of its own, in turn: only the ratio of a pair means something. The time is
that of the steps, without imports and loading; the memory is the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import in_turns, last_line, timed
from loop.config.settings import Training
from loop.engines.base import CheckpointRef, TrainingRow
from loop.run.base_model import CONVERSION, cache_directory

BATCH_SIZE, MICRO_BATCH_SIZE = 16, 8
PROMPT_LENGTHS, COMPLETION_LENGTHS = (60, 160), (16, 256)  # tokens


def rows_of(count: int) -> list[TrainingRow]:
    """Random tokens; prompts of uniform length, completions mostly short: the lengths are uniform cubed."""
    stream = random.Random(0)
    low, high = COMPLETION_LENGTHS
    rows = []
    for _ in range(count):
        prompt = [stream.randrange(1000, 40000) for _ in range(stream.randint(*PROMPT_LENGTHS))]
        completion = [stream.randrange(1000, 40000) for _ in range(low + round((high - low) * stream.random() ** 3))]
        rows.append(TrainingRow(prompt_token_ids=prompt, completion_token_ids=completion))
    return rows


def train(who: str, num_rows: int, checkpointing: bool) -> dict[str, Any]:
    """One epoch by "plain" or "ours" in this process: seconds, peak memory in bytes, the loss of each step."""
    import torch
    from datasets import Dataset
    from trl import SFTTrainer

    from loop.engines.hf_models import load_model, load_tokenizer
    from loop.engines.rows import Rows, write_rows
    from loop.engines.step_trainer import StepTrainer
    from loop.engines.trl_trainer import arguments

    torch.set_num_threads(2)
    table = {"batch_size": BATCH_SIZE, "micro_batch_size": MICRO_BATCH_SIZE, "num_epochs": 1,
             "gradient_checkpointing": checkpointing}  # fmt: skip
    settings = Training.model_validate(table).model_dump(mode="json") | {"seed": 0}
    checkpoint = CheckpointRef(sha256="", path=cache_directory() / "models" / CONVERSION)
    rows, cpu = rows_of(num_rows), torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        args = arguments(settings, scratch, cpu)
        given: dict[str, Any] = {
            "model": load_model(checkpoint, torch.float32, cpu),
            "processing_class": load_tokenizer(checkpoint)[0],
        }
        if who == "plain":
            args.per_device_train_batch_size = MICRO_BATCH_SIZE
            args.gradient_accumulation_steps = BATCH_SIZE // MICRO_BATCH_SIZE
            prompts, completions = (
                [list(getattr(row, f"{part}_token_ids")) for row in rows] for part in ("prompt", "completion")
            )
            pairs = list(zip(prompts, completions, strict=True))
            columns = {
                "input_ids": [prompt + completion for prompt, completion in pairs],
                "labels": [[-100] * len(prompt) + completion for prompt, completion in pairs],
            }
            trainer = SFTTrainer(args=args, train_dataset=Dataset.from_dict(columns), **given)
        else:
            (scratch / "rows.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
            ours = Rows(write_rows(scratch / "rows.jsonl", settings | {"held_out": 0}, scratch)[0])
            budget = MICRO_BATCH_SIZE * max(ours.lengths)
            trainer = StepTrainer(args=args, rows=ours, batch_size=BATCH_SIZE, budget=budget, **given)
        _, seconds = timed(trainer.train)
    return {
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def figures(num_rows: int = 32, pairs: int = 3, checkpointing: bool = True) -> dict[str, Any]:
    """Medians over the pairs: rows per second and peak memory, ours over plain; the largest relative gap of a loss."""
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    more = [] if checkpointing else ["--no-checkpointing"]
    for _, who in in_turns(runs, pairs):
        runs[who].append(last_line(__file__, "--one", who, "--rows", str(num_rows), *more))
    both = list(zip(runs["plain"], runs["ours"], strict=True))
    speeds = [plain["seconds"] / ours["seconds"] for plain, ours in both]
    memory = [ours["peak_bytes"] / plain["peak_bytes"] for plain, ours in both]
    gaps = [
        abs(loss / other - 1)
        for plain, ours in both
        for loss, other in zip(ours["losses"], plain["losses"], strict=True)
    ]
    return {
        "num_steps": len(both[0][0]["losses"]),
        "speed_ratio": round(statistics.median(speeds), 2),
        "speed_ratios": [round(ratio, 2) for ratio in speeds],
        "memory_ratio": round(statistics.median(memory), 3),
        "plain_peak_gib": round(statistics.median(plain["peak_bytes"] for plain, _ in both) / 2**30, 2),
        "ours_peak_gib": round(statistics.median(ours["peak_bytes"] for _, ours in both) / 2**30, 2),
        "largest_loss_gap": max(gaps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep the activations: faster, more memory")
    parser.add_argument("--one", choices=["plain", "ours"], help=argparse.SUPPRESS)  # a process of figures()
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train(options.one, options.rows, not options.no_checkpointing)))
        return
    measured = figures(options.rows, options.pairs, not options.no_checkpointing)
    pairs = ", ".join(map(str, measured["speed_ratios"]))
    peaks = f"{measured['ours_peak_gib']} and {measured['plain_peak_gib']} GiB"
    gap = f"{measured['largest_loss_gap']:.1e} over {measured['num_steps']} steps"
    print(f"rows per second, ours over plain: {measured['speed_ratio']} (pairs: {pairs}; to reach: 1.3)")
    print(f"peak memory, ours over plain: {measured['memory_ratio']} ({peaks}; at most 1.0)")
    print(f"largest relative difference of a step's loss: {gap}")


if __name__ == "__main__":
    main()
