"""What `loopd` takes of memory and CPU: while it waits for its next round, and while it runs rounds of the fake engine.

`python bench/daemon.py [--seconds S]`. PSS counts shared pages once over all who share them; CPU is the share of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import loopctl
from bench.stores import write_configuration

PATIENCE_S = 60.0
WAITING = '[schedule]\nevery = "7d"\n'  # the first round is due at once, the second in a week
AT_WORK = '[schedule]\nevery = "continuous"\n'


def answer(config: Path, command: str) -> Any:
    """What a command of loopctl answers."""
    done = loopctl(command, "--json", "--config", str(config))
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def until(config: Path, state: str) -> int:
    """Wait until the daemon is in that state and has decided a round; its process."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        status = answer(config, "status")
        decided = status["rounds"]["kept"] + status["rounds"]["rolled_back"]
        if status["pid"] and status["state"] == state and decided:
            return int(status["pid"])
        time.sleep(0.2)
    raise AssertionError(f"not {state} after {PATIENCE_S:g} s: {status}")


def measure(pid: int, seconds: float) -> tuple[float, ...]:
    """Over some seconds: the daemon's own RSS and PSS in MB and its CPU in percent, and the CPU of its workers that ended."""
    process = psutil.Process(pid)
    rss = pss = 0
    before, started = process.cpu_times(), time.monotonic()
    while time.monotonic() - started < seconds:
        memory = process.memory_full_info()
        rss, pss = max(rss, memory.rss), max(pss, memory.pss)
        time.sleep(0.5)
    after, took = process.cpu_times(), time.monotonic() - started
    own = after.user + after.system - before.user - before.system
    workers = after.children_user + after.children_system - before.children_user - before.children_system
    return rss / 1e6, pss / 1e6, 100 * max(0.0, own) / took, 100 * max(0.0, workers) / took


def end(pid: int) -> None:
    """As a service manager does it: SIGTERM, and after a while SIGKILL."""
    process = psutil.Process(pid)
    process.terminate()
    try:
        process.wait(timeout=PATIENCE_S)
    except psutil.TimeoutExpired:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(f"{'loopd':<34}{'RSS':>9}{'PSS':>9}{'CPU':>8}{'its workers':>13}")
    for words, more, state in (("waiting", WAITING, "idle"), ("rounds of the fake engine", AT_WORK, "running")):
        with tempfile.TemporaryDirectory(prefix="bench-loopd-") as place:
            config = write_configuration(Path(place), rounds=0, more=more, num_problems=20)
            pid = int(answer(config, "start")["pid"])
            try:
                assert until(config, state) == pid
                rss, pss, own, workers = measure(pid, options.seconds)
            finally:
                end(pid)
        print(f"{words:<34}{rss:>6.0f} MB{pss:>6.0f} MB{own:>6.1f} %{workers:>11.1f} %")


if __name__ == "__main__":
    main()
