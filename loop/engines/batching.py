"""How the rows of one optimizer step are cut into forward passes with little padding. Plain arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], budget: int, pass_cost: int) -> list[list[int]]:
    """Every index of `lengths` once, in lists that are a forward pass each; the longest rows come first.

    A list takes as many tokens as it has rows, times its longest row: at most `budget`, but for a single longer row. Of all
    cuts of the sorted rows this one takes the fewest tokens, where each pass counts as `pass_cost` more.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    best: list[tuple[int, int]] = [(0, 0)]  # at index n, for the first n rows: the cost, and where the last pass begins
    for end in range(1, len(order) + 1):
        cuts = []
        for start in range(end - 1, -1, -1):
            tokens = (end - start) * lengths[order[start]]
            if tokens > budget and end - start > 1:
                break  # one row more would only take more
            cuts.append((best[start][0] + tokens + pass_cost, start))
        best.append(min(cuts))
    passes: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        passes.append(order[start:end])
        end = start
    return passes[::-1]
