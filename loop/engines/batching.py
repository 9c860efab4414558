"""How the rows of one optimizer step are dealt to processes and cut into forward passes. Plain arithmetic, no torch."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

Pass = list[list[int]]  # of each process the rows that it takes, as indices


def deal(lengths: Sequence[int], num_processes: int, budget: int) -> list[Pass]:
    """Every index of `lengths` once, in passes: of each process the rows that it takes then. The largest pass comes first.

    The rows of a process are a single sequence without padding, of at most `budget` tokens, but for a single longer row. All
    processes wait for the slowest in each layer of each pass, so a pass gives them nearly equal tokens: the longest rows are
    dealt first, each to whom has least (LPT; R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969). Dealt are either
    passes and processes at once, or processes first, who then fill their passes; `slowest` says which is better. A process may
    get nothing in a pass.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    ways = (_at_once(order, lengths, num_processes, budget), _processes_first(order, lengths, num_processes, budget))
    return min(ways, key=lambda passes: (slowest(passes, lengths), len(passes)))


def slowest(passes: Sequence[Pass], lengths: Sequence[int]) -> int:
    """The tokens of each pass's largest share, summed: how long the passes take together."""
    return sum(max(sum(lengths[row] for row in rows) for rows in each) for each in passes)


def _at_once(order: Sequence[int], lengths: Sequence[int], num_processes: int, budget: int) -> list[Pass]:
    fewest = -(-sum(lengths) // max(1, budget * num_processes))
    num_passes = min(fewest, -(-len(lengths) // num_processes))  # with as many, each row is by itself
    while True:
        shares = _dealt(order, lengths, num_processes * num_passes)
        if all(len(rows) == 1 or sum(lengths[row] for row in rows) <= budget for rows in shares):
            break
        num_passes += 1
    shares.sort(key=lambda rows: -sum(lengths[row] for row in rows))
    return [shares[start : start + num_processes] for start in range(0, len(shares), num_processes)]


def _processes_first(order: Sequence[int], lengths: Sequence[int], num_processes: int, budget: int) -> list[Pass]:
    filled = [_filled(rows, lengths, budget) for rows in _dealt(order, lengths, num_processes)]
    return [list(each) for each in itertools.zip_longest(*filled, fillvalue=[])]


def _dealt(order: Sequence[int], lengths: Sequence[int], num_shares: int) -> list[list[int]]:
    """The rows in so many shares."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    least = [(0, share) for share in range(num_shares)]
    for row in order:
        taken, share = least[0]
        heapq.heapreplace(least, (taken + lengths[row], share))
        shares[share].append(row)
    return shares


def _filled(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The rows, longest first, in shares within the budget: each goes where it leaves least room (best fit decreasing)."""
    shares: list[list[int]] = []
    taken: list[int] = []
    for row in rows:
        fitting = [share for share, size in enumerate(taken) if size + lengths[row] <= budget]
        if fitting:
            share = max(fitting, key=taken.__getitem__)
            shares[share].append(row)
            taken[share] += lengths[row]
        else:
            shares.append([row])
            taken.append(lengths[row])
    return [shares[share] for share in sorted(range(len(shares)), key=lambda share: -taken[share])]
