"""Benchmarks that cannot be graded here, and why: a name that is known and refused says more than one that is not known."""

from loop.grading.known.benchmark import Benchmark

_LIBRARIES = "numpy, pandas, matplotlib, scipy, sklearn, seaborn, requests and a hundred more"
_ONE_PROCESS = (
    f"its solutions need {_LIBRARIES}, of which the sandbox has none, and its tests patch the solution's own module, so both "
    "would have to share a process"
)
BIGCODEBENCH = Benchmark("bigcodebench", "BigCodeBench, 1,140 problems", refused=_ONE_PROCESS)
BIGCODEBENCH_HARD = Benchmark("bigcodebench/hard", "BigCodeBench-Hard, 148 problems", refused=_ONE_PROCESS)
SHELL = Benchmark(
    "multipl-e/sh",
    "HumanEval in Shell, MultiPL-E's translation",
    refused="its tests and a solution are one Bash script, which could print what passes, and the sandbox has no shell",
)
