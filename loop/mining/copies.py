"""Finds near copies among functions, so that none of two stands in the training prompts or in another split than the other."""

from __future__ import annotations

import ast
import copy
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from loop.mining.functions import Function
from policies.data import shingles, similarity

SIMILARITY = 0.7


MIN_FILES = 8
"""Where functions stand in fewer files, each is a group of its own beside its near copies, since files could not be divided."""


def groups(functions: Sequence[Function], least: float = SIMILARITY) -> dict[str, str]:
    """For each function's id its group: its file or, where files hold near copies of each other's functions, the first of them."""
    by_file = len({function.file for function in functions}) >= MIN_FILES
    units = {function.id: function.file if by_file else function.id for function in functions}
    parent = {unit: unit for unit in units.values()}

    def top(unit: str) -> str:
        while parent[unit] != unit:
            parent[unit] = unit = parent[parent[unit]]
        return unit

    for left, right in near_copies(functions, least):
        first, second = sorted((top(units[left.id]), top(units[right.id])))
        parent[second] = first
    return {id: top(unit) for id, unit in units.items()}


def near_copies(functions: Sequence[Function], least: float = SIMILARITY) -> Iterator[tuple[Function, Function]]:
    """All pairs with this Jaccard index or more over runs of characters of their code, with parameters and variables renamed.

    Exact, by prefix filtering (Bayardo et al., Scaling up all pairs similarity search, 2007): two such sets, in one order of all
    runs from rare to common, share one of the first n - ceil(least * n) + 1 runs of each.
    """
    sets = [shingles(normalised(function)) for function in functions]
    common = Counter(run for each in sets for run in each)
    holders: dict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(sets)), key=lambda index: len(sets[index])):
        runs = sorted(sets[number], key=lambda run: (common[run], run))
        prefix = runs[: len(runs) - math.ceil(least * len(runs)) + 1]
        for other in dict.fromkeys(other for run in prefix for other in holders[run]):
            if len(sets[other]) >= least * len(runs) and similarity(sets[other], sets[number]) >= least:
                yield functions[other], functions[number]
        for run in prefix:
            holders[run].append(number)


def normalised(function: Function) -> str:
    """The function's code without docstring, comments, annotations and its own name; its variables are numbered."""
    node = copy.deepcopy(function.node)
    first = node.body[0]
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
        and node.body[1:]
    ):
        del node.body[0]
    node.name, node.decorator_list, node.returns = "f", [], None
    names: dict[str, str] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.arg):
            part.annotation = None
            names.setdefault(part.arg, f"v{len(names)}")
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            names.setdefault(part.id, f"v{len(names)}")
    for part in ast.walk(node):
        if isinstance(part, ast.arg):
            part.arg = names[part.arg]
        elif isinstance(part, ast.Name):
            part.id = names.get(part.id, part.id)
    return ast.unparse(node)
