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
from tests.support.waiting import wait_until

WAITING = '[schedule]\nevery = "7d"\n'  # the first round is due at once, the second in a week
AT_WORK = '[schedule]\nevery = "continuous"\n'


def answer(config: Path, command: str) -> Any:
    """What a command of loopctl answers."""
    done = loopctl(command, "--json", "--config", str(config))
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def is_at_it(config: Path, state: str) -> bool:
    """Whether the daemon is in that state and has decided a round."""
    status = answer(config, "status")
    return (
        status["state"] == state
        and sum(status["rounds"][outcome] for outcome in ("kept", "carried", "rolled_back")) > 0
    )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(f"{'loopd':<34}{'RSS':>9}{'PSS':>9}{'CPU':>8}{'its workers':>13}")
    for words, more, state in (("waiting", WAITING, "idle"), ("rounds of the fake engine", AT_WORK, "running")):
        with tempfile.TemporaryDirectory(prefix="bench-loopd-") as place:
            config = write_configuration(Path(place), rounds=0, more=more, num_problems=20)
            pid = answer(config, "start")["pid"]
            try:
                wait_until(lambda config=config, state=state: is_at_it(config, state))
                rss, pss, own, workers = measure(pid, options.seconds)
            finally:
                loopctl("stop", "--now", "--config", str(config))
        print(f"{words:<34}{rss:>6.0f} MB{pss:>6.0f} MB{own:>6.1f} %{workers:>11.1f} %")


if __name__ == "__main__":
    main()
