"""A daemon with the fake engine, rounds as fast as they go, and something happening to it every few seconds.

`python tests/whole/soak.py --minutes 20` ends with a clean verification, flat memory and file descriptors, and no orphans, or with
an error. What happens: pauses, rollbacks, pins, collections, stops, kills of the daemon and of its workers, a full disk at
some write.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from loop.daemon.control import NotRunning, ask
from loop.errors import LoopError
from loop.reading.reader import reader
from tests.support.daemons import Daemon
from tests.support.runs import KEEPING

CONFIG = KEEPING.replace("rounds = 2", "rounds = 0").replace("num_steps = 20", "num_steps = 5") + (
    "\n[storage]\nkeep_last = 1\nmin_free_bytes = 0\n"
)
SETTLE_S = 30.0  # memory after that is compared with memory before
MOST_GROWTH_BYTES = 12 << 20


class Soak:
    """The run, its daemon as it is now, and what was done to it."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.daemon = Daemon(directory, CONFIG)
        self.run_dir = self.daemon.run_dir
        self.draw = random.Random(seed)
        self.did: Counter[str] = Counter()
        self.memory: list[tuple[float, int, int]] = []  # age of the daemon in seconds, resident bytes, descriptors
        self.spawn()

    def spawn(self, failpoint: str = "") -> None:
        self.process = self.daemon.spawn(LOOP_FAILPOINT=failpoint)
        self.since = time.monotonic()

    def ask(self, command: str, **arguments: object) -> None:
        try:
            ask(self.run_dir, command, **arguments)
        except NotRunning:
            return  # it is starting
        except LoopError as error:
            assert "did not answer" not in str(error), error

    def act(self) -> None:
        """One thing, chosen by chance."""
        what = self.draw.choice(
            ["pause", "rollback", "pin", "gc", "stop", "kill", "worker", "full", "nothing", "nothing"]
        )
        self.did[what] += 1
        match what:
            case "pause":
                self.ask("pause")
                self.ask("pause")
                time.sleep(self.draw.uniform(0, 2))
                self.ask("resume")
            case "rollback":
                self.ask("rollback", to=self.draw.choice(["base", "best"]))
            case "pin":
                self.ask(self.draw.choice(["pin", "unpin"]), round=self.draw.randint(1, 3))
            case "gc":
                self.ask("gc", dry_run=self.draw.random() < 0.5)
            case "stop" | "full":
                self.process.terminate()
                assert self.process.wait(30) == 0
                count = self.draw.randint(1, 60)
                self.spawn(f"store.commit=full@{count}" if what == "full" else "")
            case "kill":
                self.daemon.kill(self.process)
                self.spawn()
            case "worker":
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()

    def look(self) -> None:
        """Note what the daemon takes; it must be there, and not held."""
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}"
        seen = psutil.Process(self.process.pid)
        self.memory.append((time.monotonic() - self.since, seen.memory_info().rss, seen.num_fds()))
        self.ask("resume")  # workers that are killed three times in a row hold the run, as they should

    def end(self) -> None:
        """Stop it and check everything."""
        self.daemon.end(self.process)
        assert self.daemon.alone()
        with reader(self.run_dir) as store:
            run = store.run
        young = [rss for age, rss, _ in self.memory if age < SETTLE_S]
        old = [rss for age, rss, _ in self.memory if age >= SETTLE_S]
        descriptors = [fds for _, _, fds in self.memory]
        print(f"done to it: {dict(self.did)}")
        print(
            f"rounds: {run.num_kept} kept, {run.num_carried} carried, {run.num_rolled_back} rolled back, {run.num_failed} failed"
        )
        most = f"{max(young) / 1e6:.1f} MB young, {max(old or young) / 1e6:.1f} MB older than {SETTLE_S:g} s"
        print(f"memory: at most {most}")
        print(f"file descriptors: {min(descriptors)} to {max(descriptors)}; verification clean; no orphans")
        assert max(old or young) - max(young) < MOST_GROWTH_BYTES, "memory grows"
        assert max(descriptors) < 64, "file descriptors leak"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        soak = Soak(Path(place) / "run", arguments.seed)
        until = time.monotonic() + 60 * arguments.minutes
        quiet_until = 0.0
        try:
            while time.monotonic() < until:
                time.sleep(soak.draw.uniform(0.5, 3.0))
                soak.look()
                if time.monotonic() > quiet_until:
                    soak.act()
                    if soak.draw.random() < 0.05:
                        quiet_until = time.monotonic() + 2 * SETTLE_S  # let it grow old for once
            soak.end()
        finally:
            soak.process.kill()


if __name__ == "__main__":
    main()
