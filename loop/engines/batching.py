"""How the rows of one optimizer step are dealt to processes and cut into forward passes. Plain arithmetic, no torch."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

MAX_EXCHANGES = 20  # for each pass of a step
Pass = list[list[int]]  # of each process the rows that it takes, as indices


def deal(lengths: Sequence[int], num_processes: int, budget: int) -> list[Pass]:
    """Every index of `lengths` once, in passes: of each process the rows that it takes then. The largest pass comes first.

    The rows of a process are a single sequence without padding, of at most `budget` tokens, but for a single longer row. All
    processes wait for the slowest in each layer of each pass, so a pass gives them nearly equal tokens: the longest rows are
    dealt first, each to whom has least (LPT; R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969). Dealt are either
    passes and processes at once, or processes first, who then fill their passes; `slowest` says which is better. Then rows of the
    fullest shares are exchanged for others as long as that makes the passes shorter. A process may get nothing in a pass.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    ways = (_at_once(order, lengths, num_processes, budget), _processes_first(order, lengths, num_processes, budget))
    passes = min(ways, key=lambda passes: (slowest(passes, lengths), len(passes)))
    few = num_processes > 1 and len(lengths) <= 16 * num_processes  # of more rows, the shares are nearly equal anyway
    num_left = MAX_EXCHANGES if few else 0
    while num_left and sum(_exchange(passes, number, lengths, budget) for number in range(len(passes))):
        num_left -= 1
    return sorted(passes, key=lambda each: -slowest([each], lengths))


def slowest(passes: Sequence[Pass], lengths: Sequence[int]) -> int:
    """The tokens of each pass's largest share, summed: how long the passes take together."""
    return sum(max(sum(lengths[row] for row in rows) for rows in each) for each in passes)


def _exchange(passes: list[Pass], number: int, lengths: Sequence[int], budget: int) -> bool:
    """Give a row of a pass's fullest share away, or exchange it for one of another share, where that saves most time."""

    def size(rows: Sequence[int]) -> int:
        return sum(lengths[row] for row in rows)

    def fits(rows: Sequence[int]) -> bool:
        return len(rows) <= 1 or size(rows) <= budget

    full = max(passes[number], key=size)
    best, gain = None, 0
    for other in passes:
        touched = [passes[number]] if other is passes[number] else [passes[number], other]
        before = slowest(touched, lengths)
        for share in other:
            if share is full:
                continue
            for given in full:
                for taken in ([], *([row] for row in share)):
                    ours = [row for row in full if row != given] + taken
                    theirs = [row for row in share if [row] != taken] + [given]
                    if not (fits(ours) and fits(theirs)):
                        continue
                    after = [
                        [ours if each is full else theirs if each is share else each for each in one] for one in touched
                    ]
                    if (saved := before - slowest(after, lengths)) > gain:
                        best, gain = (share, ours, theirs), saved
    if best is not None:
        share, ours, theirs = best
        full[:], share[:] = ours, theirs
    return best is not None


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
    return [[list(rows) for rows in each] for each in itertools.zip_longest(*filled, fillvalue=())]


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
