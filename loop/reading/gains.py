"""Whether one checkpoint is better than another on the same problems: the gain in pass@1 and its interval.

An interval takes some 20 ms and never changes once both checkpoints are measured, so the evaluating stage stores those of its
round. What it did not store (an older store, a round that is still evaluated) is computed here at each look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loop.reading.reader import Reader
from store.records import Evaluation

STORED_AS = "gains"  # this key of the evaluating stage's output holds gains by `key_of`


@dataclass(frozen=True, slots=True)
class Gain:
    """pass@1 of one checkpoint minus that of another, with a two-sided 95% interval, and on how many problems it differs."""

    gain: float
    interval: Sequence[float]
    num_improved: int
    num_worsened: int


def gain(store: Reader, ours: Evaluation | None, theirs: Evaluation | None) -> Gain | None:
    """Ours minus theirs, on the problems that both answered; None if there are none."""
    if ours is None or theirs is None:
        return None
    if ours.id == theirs.id:
        return Gain(0.0, (0.0, 0.0), 0, 0)
    key = key_of(ours, theirs)
    for number in (ours.round, ours.round + 1):  # measured as the candidate of one round, or as the head of the next
        if stored := store.output(number, "evaluating").get(STORED_AS, {}).get(key):
            return Gain(**stored)
    return _computed(store, ours, theirs)


def key_of(ours: Evaluation, theirs: Evaluation) -> str:
    """Both ids, and how many problems both answered: a later round may ask the same head for more of them."""
    num_problems = min((evaluation.metrics or {}).get("num_problems", 0) for evaluation in (ours, theirs))
    return f"{ours.id}/{theirs.id}/{num_problems}"


def _computed(store: Reader, ours: Evaluation, theirs: Evaluation) -> Gain | None:
    from policies.statistics import paired_gain

    our_rates, their_rates = store.pass_rates(ours), store.pass_rates(theirs)
    common = sorted(our_rates.keys() & their_rates.keys())
    if not common:
        return None
    paired = paired_gain([our_rates[task_id] - their_rates[task_id] for task_id in common], 0.975)
    return Gain(paired.gain, (paired.lower, paired.upper), paired.num_improved, paired.num_worsened)
