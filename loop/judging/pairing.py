"""Which results are compared with which, and what speaks against it. What was not measured alike is refused, by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from loop.errors import LoopError
from loop.judging.results import Results
from loop.words import count, one_line, safe, shown

DESPITE = ("problems", "prompts", "decoding", "tests")
"""What a comparison may differ in where the user says so."""


class Pairs(NamedTuple):
    """The results to compare, suite by suite, and the suites that only one side has."""

    pairs: list[tuple[Results, Results]]
    only_a: list[str]
    only_b: list[str]


def paired(
    a: Sequence[Results], b: Sequence[Results], metrics: Sequence[str] = (), despite: Collection[str] = ()
) -> Pairs:
    """Pair the suites by name; one suite on either side is one pair. LoopError, with a line for each mistake, if that cannot be.

    `metrics`: what to compare, the first of them that a suite has; without any, the harness's main metric.
    """
    of_a, of_b = _by_suite(a), _by_suite(b)
    names = [name for name in of_a if name in of_b]
    if not names and len(of_a) == len(of_b) == 1:
        (ours,), (theirs,) = of_a.values(), of_b.values()
        pairs = [_chosen(ours, theirs, metrics)]
    elif not names:
        raise LoopError(
            f"no suite is on both sides: A has {_list(of_a)}, B has {_list(of_b)}; give results of the same suites"
        )
    else:
        pairs = [_chosen(of_a[name], of_b[name], metrics) for name in names]
    mistakes, checked = [], []
    for pair in pairs:
        refused, alike = _checked(*pair, despite)
        mistakes += refused
        checked.append(alike)
    if mistakes:
        raise LoopError("\n".join(mistakes))
    common = {name for pair in pairs for name in (pair[0].suite, pair[1].suite)}
    return Pairs(checked, [name for name in of_a if name not in common], [name for name in of_b if name not in common])


def _by_suite(results: Sequence[Results]) -> dict[str, dict[str, Results]]:
    """By suite, then by metric. LoopError if two files say the same."""
    suites: dict[str, dict[str, Results]] = {}
    for each in results:
        other = suites.setdefault(each.suite, {}).setdefault(each.metric, each)
        if other is not each:
            raise LoopError(
                f"{safe(each.file)}: holds {safe(each.suite)}, as {safe(other.file)} does; name one file, or a directory with one of them"
            )
    return suites


def _chosen(a: Mapping[str, Results], b: Mapping[str, Results], metrics: Sequence[str]) -> tuple[Results, Results]:
    """Both sides' results by the metric that is compared."""
    wanted = [metric for metric in metrics if metric in a and metric in b]
    common = [metric for metric in a if metric in b]
    if metrics and not wanted:
        raise LoopError(
            f"--metric: neither side's {safe(next(iter(a.values())).suite)} has {_list(metrics)} on both sides; there: {_list(a)}"
        )
    if not common:
        return next(iter(a.values())), next(iter(b.values()))  # refused further on, by name
    metric = (wanted or common)[0]
    ours, theirs = a[metric].scored(), b[metric].scored()
    if not metrics and len(common) > 1:
        note = f"compared by {metric}; --metric names another: {', '.join(name for name in common if name != metric)}"
        ours = replace(ours, notes=(*ours.notes, note))
    return ours, theirs


def _checked(a: Results, b: Results, despite: Collection[str]) -> tuple[list[str], tuple[Results, Results]]:
    """A line for each thing that forbids the comparison; and both sides on the problems that they share, with a note for what was
    allowed to differ.
    """
    mistakes, notes = [], []
    for kind, words in _differences(a, b):
        if kind in despite:
            notes.append(f"A and B differ in {kind}: {words}")
        else:
            mistakes.append(
                f"{safe(a.file)} and {safe(b.file)} differ in {kind}: {safe(words)}; compare what was measured alike, or give --despite {kind}"
            )
    common = a.problems.keys() & b.problems.keys()
    if not common:
        return [f"{safe(a.file)} and {safe(b.file)} have no problem in common; give results of the same suite"], (a, b)
    shared = tuple({id: side.problems[id] for id in side.problems if id in common} for side in (a, b))
    return mistakes, (replace(a, problems=shared[0], notes=(*a.notes, *notes)), replace(b, problems=shared[1]))


def _differences(a: Results, b: Results) -> Iterable[tuple[str, str]]:
    """What differs, as far as both files say: which of DESPITE, and how."""
    only_a, only_b = (sorted(x.problems.keys() - y.problems.keys()) for x, y in ((a, b), (b, a)))
    if only_a or only_b:
        parts = [
            f"{count(len(ids), 'problem')} only in {side} ({_list(ids)})"
            for ids, side in ((only_a, "A"), (only_b, "B"))
            if ids
        ]
        yield "problems", ", ".join(parts)
    common = [id for id in a.problems if id in b.problems]
    for key, kind in (("content", "problems"), ("prompt", "prompts")):
        pairs = [(id, getattr(a.problems[id], key), getattr(b.problems[id], key)) for id in common]
        if changed := [id for id, ours, theirs in pairs if ours and theirs and ours != theirs]:
            yield (
                kind,
                f"{len(changed):,} of {count(len(common), 'problem')} were asked with another text ({_list(changed)})",
            )
            break  # another problem has another prompt
    for key in sorted(a.decoding.keys() & b.decoding.keys()):
        if a.decoding[key] != b.decoding[key]:
            yield "decoding", f"{key} {shown(a.decoding[key])} and {shown(b.decoding[key])}"
    tests = {"harness": (a.harness, b.harness), "metric": (a.metric, b.metric)}
    tests |= {key: (a.conditions[key], b.conditions[key]) for key in a.conditions if key in b.conditions}
    for key, (ours, theirs) in tests.items():
        if ours != theirs:
            yield "tests", f"{key} {shown(ours)} and {shown(theirs)}"


def _list(names: Iterable[str]) -> str:
    """The first few names, safely."""
    names = list(names)
    return ", ".join(one_line(name, 40) for name in names[:3]) + (
        f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    )
