"""How busy the processes of a fine-tune are: `python bench/dealing.py [--steps N]`. A simulation; nothing is trained.

Lengths of rows are lognormal, as completions' are; a step has 32 rows, and a pass of a process at most one row of the longest
kind (`training.micro_batch_size = 1`). All processes wait for the slowest in each pass, so a step takes as long as the sum of its
passes' largest shares. Busy: the tokens of the step, divided by what fits into that time on all processes. Three ways:

- in turn: rows in random order, one for each process and pass (what accelerate's sampler does);
- sorted: the same with the rows of a step sorted by length;
- dealt: `loop.engines.batching.deal`, as the trainer deals.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loop.engines.batching import deal

BATCH_SIZE, PROMPT = 32, 400
# median tokens of a completion, sigma of its logarithm, max_new_tokens
KINDS = {"4B instruct": (2500, 0.9, 16384), "thinking": (12000, 0.6, 32768), "Llama 8B": (700, 0.7, 8192)}


def lengths_of(median: int, sigma: float, cap: int, stream: random.Random) -> list[int]:
    """The lengths of the rows of a step, in tokens."""
    drawn = (int(median * math.exp(sigma * stream.gauss(0, 1))) for _ in range(BATCH_SIZE))
    return [PROMPT + min(cap, max(16, length)) for length in drawn]


def in_turn(lengths: list[int], num_processes: int) -> int:
    """The tokens of the largest shares where each process takes the next row."""
    return sum(max(lengths[start : start + num_processes]) for start in range(0, len(lengths), num_processes))


def dealt(lengths: list[int], num_processes: int, budget: int) -> int:
    """The tokens of the largest shares as the trainer deals."""
    passes = deal(lengths, num_processes, budget)
    return sum(max(sum(lengths[row] for row in rows) for rows in each) for each in passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    num_steps = parser.parse_args().steps
    print("| rows | processes | in turn | sorted | dealt |\n|---|---|---|---|---|")
    for name, (median, sigma, cap) in KINDS.items():
        for num_processes in (2, 4, 8):
            stream = random.Random(0)
            needed = [0, 0, 0]
            tokens = 0
            for _ in range(num_steps):
                lengths = lengths_of(median, sigma, cap, stream)
                tokens += sum(lengths)
                needed[0] += in_turn(lengths, num_processes)
                needed[1] += in_turn(sorted(lengths), num_processes)
                needed[2] += dealt(lengths, num_processes, PROMPT + cap)
            shares = " | ".join(f"{tokens / num_processes / each:.0%}" for each in needed)
            print(f"| {name} | {num_processes} | {shares} |")


if __name__ == "__main__":
    main()
