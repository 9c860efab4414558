"""What `loopd` takes of memory and CPU: while it waits for its next round, and while it runs rounds of the fake engine.

`python bench/daemon.py [--seconds S]`. PSS counts shared pages once over all who share them; CPU is the share of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.stores import write_configuration  # noqa: E402

PATIENCE_S = 60.0
WAITING = '[schedule]\nevery = "7d"\n'  # the first round is due at once, the second in a week
AT_WORK = '[schedule]\nevery = "continuous"\n'


def loopctl(config: Path, *arguments: str) -> Any:
    """The JSON answer of a command."""
    command = [sys.executable, "-m", "loop.cli.main", *arguments, "--json", "--config", str(config)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def until(config: Path, state: str) -> int:
    """Wait until the daemon is in that state and has decided a round; its process."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer = loopctl(config, "status")
        decided = answer["rounds"]["kept"] + answer["rounds"]["rolled_back"]
        if answer["pid"] and answer["state"] == state and decided:
            return int(answer["pid"])
        time.sleep(0.2)
    raise AssertionError(f"not {state} after {PATIENCE_S:g} s: {answer}")


def measure(pid: int, seconds: float) -> dict[str, float]:
    """The daemon's own memory and CPU, and the CPU of those of its workers that ended, over some seconds."""
    process = psutil.Process(pid)
    most: dict[str, int] = {"rss": 0, "pss": 0}
    before, started = process.cpu_times(), time.monotonic()
    while time.monotonic() - started < seconds:
        memory = process.memory_full_info()
        most = {name: max(value, getattr(memory, name)) for name, value in most.items()}
        time.sleep(0.5)
    after, took = process.cpu_times(), time.monotonic() - started
    own = after.user + after.system - before.user - before.system
    workers = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "rss": most["rss"] / 1e6,
        "pss": most["pss"] / 1e6,
        "own": 100 * max(0.0, own) / took,
        "workers": 100 * max(0.0, workers) / took,
    }


def end(pid: int) -> None:
    """As a service manager does it: SIGTERM, and after a while SIGKILL."""
    process = psutil.Process(pid)
    process.terminate()
    try:
        process.wait(timeout=PATIENCE_S)
    except psutil.TimeoutExpired:
        process.kill()


def main() -> None:
    """Measure and print a line per situation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(f"{'loopd':<34}{'RSS':>9}{'PSS':>9}{'CPU':>8}{'its workers':>13}")
    for words, more, state in (("waiting", WAITING, "idle"), ("rounds of the fake engine", AT_WORK, "running")):
        with tempfile.TemporaryDirectory(prefix="bench-loopd-") as place:
            config = write_configuration(Path(place), rounds=0, more=more, num_problems=20)
            pid = int(loopctl(config, "start")["pid"])
            try:
                assert until(config, state) == pid
                found = measure(pid, options.seconds)
            finally:
                end(pid)
        memory = f"{found['rss']:>6.0f} MB{found['pss']:>6.0f} MB"
        print(f"{words:<34}{memory}{found['own']:>6.1f} %{found['workers']:>11.1f} %")


if __name__ == "__main__":
    main()
