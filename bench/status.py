"""How long a cold `loopctl status` takes, as a whole process, on small and large stores.

`python bench/status.py [--where DIR] [--runs N] [--completions N]`. The stores take a few minutes and 2.5 GB the first time, and stay.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import ROOT, environment
from bench.stores import store


def seconds(where: Path, *command: str) -> tuple[float, float]:
    """Wall and CPU time of one process. Its bytecode is there already, as after an installation."""
    variables = environment(PYTHONPYCACHEPREFIX=str(where / "bytecode"), NO_COLOR="1")
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env=variables, stdout=subprocess.DEVNULL)
    _, state, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(state)
    assert process.returncode in (0, 3), f"{command}: exit code {process.returncode}"
    return took, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--completions", type=int, default=1_000_000, help="of the large stores")
    options = parser.parse_args()
    commands = {"python -c pass": ("-c", "pass")}
    for completions, rounds in itertools.product((1_000, options.completions), (10, 1_000)):
        config = store(options.where, completions, rounds)
        name = f"loopctl status: {completions:,} completions, {rounds:,} rounds"
        commands[name] = ("-m", "loop.cli.main", "status", "--config", str(config))
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for turn in range(options.runs + 1):  # in turns, so that a busy moment meets them all; the first only warms up
        for name, command in commands.items():
            times = seconds(options.where, *command)
            if turn:
                took[name].append(times)
    medians = {name: statistics.median(wall for wall, _ in times) for name, times in took.items()}
    _, first, *_ = medians.values()
    print(f"{'':<58}{'median':>9}{'fastest':>9}{'slowest':>9}{'CPU':>9}{'ratio':>7}")
    for name, times in took.items():
        walls, cpu_s = zip(*times, strict=True)
        figures = (medians[name], min(walls), max(walls), statistics.median(cpu_s))
        ratio = f"{medians[name] / first:>7.2f}" if name.startswith("loopctl") else ""
        print(f"{name:<58}" + "".join(f"{value * 1000:>6.0f} ms" for value in figures) + ratio)


if __name__ == "__main__":
    main()
