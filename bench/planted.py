"""Planted differences between two scripted models: how often `loopctl compare` finds them, and what its sequential form spends.

`python bench/planted.py [--runs R] [--problems N] [--samples S]`. Success rates of the problems are Beta(0.6, 0.9), as of a suite with many problems that
a model always or never solves; the other model gains most where neither is sure. No model runs and no program is graded.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loop.judging.sequential import NUM_LOOKS, Finding, said_by
from policies.statistics import paired_gain


def differences_of(draw: random.Random, planted: float, num_problems: int, num_samples: int) -> list[Fraction]:
    """What two models come to on the same problems, B less A, where B is better by `planted` on average."""
    rates = [draw.betavariate(0.6, 0.9) for _ in range(num_problems)]
    room = [4 * rate * (1 - rate) for rate in rates]
    scale = planted * num_problems / sum(room)

    def passed(rate: float) -> int:
        return sum(draw.random() < rate for _ in range(num_samples))

    pairs = ((rate, min(1.0, max(0.0, rate + scale * more))) for rate, more in zip(rates, room, strict=True))
    return [Fraction(passed(b) - passed(a), num_samples) for a, b in pairs]


def sequentially(differences: list[Fraction], num_looks: int = NUM_LOOKS) -> tuple[Finding, float]:
    """What the sequential form says, and the share of the problems after which it does."""
    for number in range(1, num_looks + 1):
        part = differences[: round(number / num_looks * len(differences))]
        if (said := said_by(part, complete=number == num_looks).finding) != "unclear":
            break
    return said, number / num_looks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=8)
    asked = parser.parse_args()
    print(
        f"{asked.runs} runs on {asked.problems} problems x {asked.samples}: share of runs that name B, that name A; completions spent"
    )
    for planted in (0.03, 0.02, 0.0, -0.03):
        fixed, found, spent = Counter[str](), Counter[str](), 0.0
        for run in range(asked.runs):
            differences = differences_of(random.Random(f"{planted} {run}"), planted, asked.problems, asked.samples)
            gain = paired_gain(differences, 0.975)
            fixed["B" if gain.lower > 0 else "A" if gain.upper < 0 else ""] += 1
            said, share = sequentially(differences)
            found[said[0]] += 1
            spent += share / asked.runs
        rates = [each[side] / asked.runs for each in (fixed, found) for side in "BA"]
        print(
            f"{100 * planted:+.0f}pp: all at once {rates[0]:.3f} {rates[1]:.3f}; sequential {rates[2]:.3f} {rates[3]:.3f}, {spent:.2f} spent",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
