"""Kill the daemon again and again, at named places and at random moments, and compare the end with an undisturbed run's.

`python tests/whole/kills.py --kills 1000` prints what it did and fails at the first difference. Every kill is SIGKILL of the
daemon's whole process tree, or of the daemon alone at a failpoint; either way nothing of it may survive.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from store.db import open_database
from store.failpoints import POINTS
from store.ledger import Ledger
from tests.support.runs import KEEPING, check_end, dump, end_of, environment, write_run

CONFIG = KEEPING + "\n[storage]\nkeep_last = 0\nmin_free_bytes = 0\n"
KILLED = -9
HANG_S = 120.0
NEVER = frozenset(
    {"checkpoint.set_aside", "checkpoint.replacing"}  # not reached while nothing is damaged
    | {point for point in POINTS if point.startswith("training.")}  # nor by the fake trainer: test_resuming.py
)


def daemon(config: Path, failpoint: str = "", kill_after_s: float | None = None) -> int:
    """Run `loopd` to its end, or to the kill; its exit code."""
    command = [sys.executable, "-P", "-m", "loop.daemon", "--config", str(config)]
    variables = environment() | {"LOOP_FAILPOINT": failpoint}
    with (config.parent / "journal").open("ab") as journal:
        process = subprocess.Popen(command, env=variables, stderr=journal, start_new_session=True)
    return process.wait(HANG_S) if kill_after_s is None else end_of(process, kill_after_s)


def finish(config: Path) -> None:
    """Run `loopd` to the end of the run."""
    assert daemon(config) == 0, (config.parent / "journal").read_text()[-2000:]


def release(config: Path) -> None:
    """What `loopctl resume` does: the daemon holds a run whose process keeps vanishing."""
    path = config.parent / ".loop" / "loop.db"
    if not path.exists():
        return  # killed before anything was written
    with closing(open_database(path)) as db:
        ledger = Ledger(db)
        if run := ledger.run():
            ledger.hold_run(run.id, "user", "so that there is something to release")
            ledger.release_run(run.id)


def check(config: Path, expected: dict[str, Any]) -> None:
    """Killed no more, it ends as the undisturbed run; the store is sound, and nothing runs or lies around."""
    finish(config)
    check_end(config, expected)
    left = sorted(path.name for path in (config.parent / ".loop" / "checkpoints").iterdir())
    assert left == ["round-0002"], left


def undisturbed(directory: Path) -> dict[str, Any]:
    """What a run leaves that nobody kills."""
    finish(write_run(directory, CONFIG))
    return dump(directory / ".loop")


def chain(directory: Path, draw: random.Random, most: int, expected: dict[str, Any]) -> Counter[str]:
    """One run from its beginning to its end, killed at most `most` times; how often, by the place."""
    config = write_run(directory, CONFIG)
    killed: Counter[str] = Counter()
    points = sorted(set(POINTS) - NEVER)
    while killed.total() < most:
        release(config)  # or it would wait for a person after the fifth kill in one stage
        if draw.random() < 0.6:
            place = draw.choice(points)
            code = daemon(config, f"{place}=kill@{1 + int(draw.expovariate(0.15))}")
        else:
            place, code = "anywhere", daemon(config, kill_after_s=0.15 + draw.expovariate(0.8))
        if code == 0:
            break
        assert code == KILLED, (code, (directory / "journal").read_text()[-2000:])
        killed[place] += 1
    release(config)
    check(config, expected)
    return killed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    killed: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:
        expected = undisturbed(Path(place) / "undisturbed")
        number = 0
        while killed.total() < arguments.kills:
            chains = [
                pool.submit(chain, Path(place) / str(n), random.Random(arguments.seed * 100_000 + n), 40, expected)
                for n in range(number, number + 8)
            ]
            number += 8
            for each in chains:
                killed += each.result()
            print(f"{killed.total()} kills in {number} runs, {time.monotonic() - began:.0f} s", flush=True)
    print(", ".join(f"{place}: {times}" for place, times in sorted(killed.items())))
    print(f"{killed.total()} kills in {number} runs: every end was that of an undisturbed run")


if __name__ == "__main__":
    main()
