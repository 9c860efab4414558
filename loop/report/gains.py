"""Paired gains of very many rounds: what `policies.statistics.paired_gain` says, to the last bit, in a seventh of the time.

The policies are plain arithmetic without numpy; a page of 200 rounds needs several hundred of their intervals.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from policies.statistics import NUM_DRAWS, PairedGain, paired_gain, subset_draws, subset_means


@functools.lru_cache(maxsize=512)
def paired(differences: tuple[Fraction, ...]) -> PairedGain:
    """A gain with its two-sided 95% interval."""
    return paired_gain(differences, 0.975, fast_subset_means)


def fast_subset_means(scores: list[int], scale: int) -> Sequence[float]:
    """`subset_means`, where whole numbers in a float are exact; elsewhere itself."""
    import numpy

    num_scores = len(scores)
    most = max(sum(map(abs, scores)), num_scores * scale)
    if 2**num_scores <= NUM_DRAWS or most >= 2**53:
        return subset_means(scores, scale)
    exact = numpy.float32 if most < 2**24 else numpy.float64
    rows = numpy.array([scores, scores[::-1], [1] * num_scores], dtype=exact).T  # (num_scores, 3)
    sums = (_picks(num_scores).astype(exact, copy=False) @ rows).astype(numpy.float64)  # (NUM_DRAWS / 2, 3)
    counts = numpy.concatenate([sums[:, 2], sums[:, 2]])
    totals = numpy.concatenate([sums[:, 0], sums[:, 1]])[counts > 0]
    means: Any = numpy.sort(totals / (counts[counts > 0] * scale))
    return means.tolist()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4)
def _picks(num_scores: int) -> Any:
    """Which scores each draw picks: 0 or 1, (NUM_DRAWS / 2, num_scores)."""
    import numpy

    draws = numpy.frombuffer(subset_draws(num_scores), dtype=numpy.uint8).reshape(NUM_DRAWS // 2, -1)
    return numpy.unpackbits(draws, axis=1, bitorder="little")[:, :num_scores].astype(numpy.float32)
