"""Published benchmarks by name: `humaneval+`, `livecodebench/v6:2025-02..2025-05@official`, `mbpp@google=mbpp.jsonl`.

NAME, then a window of dates, the harness whose prompt and decoding count, and a file or directory that has the published
files: the last three may each be left out. A benchmark has a file of its own here, and a line in the table below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.known import gsm8k, humaneval, ifeval, livecodebench, math500, mbpp, mmlu_pro, others, plus
from loop.grading.known.benchmark import Benchmark, Harness, PlacedRow
from loop.words import shown

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        humaneval.BENCHMARK,
        plus.HUMANEVAL,
        mbpp.FULL,
        mbpp.SANITIZED,
        plus.MBPP,
        *livecodebench.BENCHMARKS,
        gsm8k.BENCHMARK,
        math500.BENCHMARK,
        mmlu_pro.BENCHMARK,
        ifeval.BENCHMARK,
        others.BIGCODEBENCH,
        others.BIGCODEBENCH_HARD,
        others.SHELL,
    )
}
_DAY = r"\d{4}-\d\d(?:-\d\d)?"
_SOURCE = re.compile(
    rf"(?P<name>[a-z0-9+-]+(?:/[a-z0-9]+)?)(?::(?P<window>{_DAY}\.\.{_DAY}))?(?:@(?P<harness>[a-z-]+))?(?:=(?P<path>.+))?"
)


@dataclass(frozen=True)
class Wanted:
    """A suite by name: the benchmark, and what its source adds. `name` is the source without the path."""

    benchmark: Benchmark
    name: str
    harness: str | None
    window: str
    path: str | None

    @property
    def published(self) -> Harness | None:
        """How the named harness asks and decodes."""
        return self.benchmark.harnesses[self.harness] if self.harness else None

    def rows(self, rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
        """The rows that are problems of the suite."""
        begin, _, end = self.window.partition("..")
        for line, row in self.benchmark.rows(rows):
            date = fields.date(row) or ""
            if not self.window or (begin <= date[: len(begin)] and date[: len(end)] <= end):
                yield line, row


def wanted(source: str) -> Wanted | None:
    """What a source names; None if it is not the name of a benchmark. ConfigError where only a part of it is wrong."""
    match = _SOURCE.fullmatch(source)
    benchmark = BENCHMARKS.get(match["name"]) if match else None
    if match is None or benchmark is None:
        return None
    name, harness, window = benchmark.name, match["harness"], match["window"] or ""
    if benchmark.refused:
        raise ConfigError(f"{name} cannot be graded here: {benchmark.refused}; choose another suite")
    if harness and harness not in benchmark.harnesses:
        known = ", ".join(f"{name}@{each}" for each in benchmark.harnesses) or f"{name} alone"
        raise ConfigError(f"{shown(source)}: no harness {shown(harness)} is known; what can be had is {known}")
    if window and not benchmark.has_dates:
        raise ConfigError(f"{shown(source)}: the problems of {name} have no dates; leave out :{window}")
    window = window or (benchmark.harnesses[harness].window if harness else "")
    return Wanted(benchmark, source.partition("=")[0], harness, window, match["path"])
