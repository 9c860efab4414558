"""Whether one checkpoint is better than another on the same problems: the gain in pass@1 and its interval.

An interval takes some 20 ms and never changes once both checkpoints are measured, so the evaluating stage stores those of its
round. What it did not store (an older store, a round that is still evaluated) is computed here, once in a process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loop.reading.reader import Reader
from store.records import Evaluation

if TYPE_CHECKING:
    from fractions import Fraction  # `loopctl status` does not wait for it

_COMPUTED: dict[tuple[Path, str], Gain | None] = {}  # by run directory and `key_of`
STORED_AS = "gains"  # this key of the evaluating stage's output holds gains by `key_of`


@dataclass(frozen=True, slots=True, repr=False)
class Gain:
    """pass@1 of one checkpoint minus that of another, with a two-sided 95% interval, and on how many problems it differs."""

    gain: float
    interval: Sequence[float]
    num_improved: int
    num_worsened: int


def gain(store: Reader, measured: Evaluation | None, baseline: Evaluation | None) -> Gain | None:
    """The gain of one checkpoint over another on the problems that both answered; None without such problems."""
    if measured is None or baseline is None:
        return None
    if measured.id == baseline.id:
        return Gain(0.0, (0.0, 0.0), 0, 0)
    key = key_of(measured, baseline)
    for number in (measured.round, measured.round + 1):  # as the candidate of one round, or the head of the next
        if stored := store.output(number, "evaluating").get(STORED_AS, {}).get(key):
            return Gain(**stored)
    if (store.run_dir, key) not in _COMPUTED:
        _COMPUTED[store.run_dir, key] = gain_of(store.pass_rates(measured), store.pass_rates(baseline))
    return _COMPUTED[store.run_dir, key]


def key_of(measured: Evaluation, baseline: Evaluation) -> str:
    """Both ids, and how many problems each answered: a later round may ask the same head for more of them."""
    sizes = [str((evaluation.metrics or {}).get("num_problems", 0)) for evaluation in (measured, baseline)]
    return "/".join([measured.id, baseline.id, *sizes])


def gain_of(rates: Mapping[str, Fraction], baseline_rates: Mapping[str, Fraction]) -> Gain | None:
    """The gain by problem's pass rates, on the problems that both have; None without such problems."""
    from policies.statistics import paired_gain

    common = sorted(rates.keys() & baseline_rates.keys())
    if not common:
        return None
    paired = paired_gain([rates[task_id] - baseline_rates[task_id] for task_id in common], 0.975)
    return Gain(paired.gain, (paired.lower, paired.upper), paired.num_improved, paired.num_worsened)
