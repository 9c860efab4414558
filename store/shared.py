"""What the runs of an experiment have done, by what it was made from: `shared/<key>.json` in the experiment's directory.

A key is the hash of all inputs of a stage, and of nothing that is only a run's own, its name or its arm. A run that begins
a stage holds the key's lock, so that no two runs do the same at once. An entry is a claim: its reader verifies it. The
supervisor puts a file into each run directory, by which the run knows of all this.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from store.checkpoints import make_directory, remove_directory, temporary_directory
from store.durable import written
from store.records import Json

MEMBERSHIP = "experiment.json"  # in a run directory: which experiment it belongs to
WEIGHTS = ".weights"
EVENT = "stage_shared"


@dataclass(frozen=True, slots=True)
class Registry:
    """The experiment's memory, as one run sees it."""

    directory: Path
    run_dir: Path
    arm: str
    seed: int
    keeps_rounds: int  # checkpoints of this many rounds stay here, by hard links, until no other run can want them

    @contextlib.contextmanager
    def turn(self, key: str, wait: Callable[[str], None]) -> Iterator[None]:
        """Hold a key's lock. While another run holds it, `wait` is called with that run's name; what it raises ends it."""
        make_directory(self.directory)
        descriptor = os.open(self.directory / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    wait(os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another run")
            lock.write(f"{self.arm}/seed-{self.seed}\n".encode())
            lock.truncate()
            yield

    def known(self, key: str) -> Json | None:
        """The entry under a key; None if there is none, if it cannot be read, or if this run wrote it."""
        entry = read_entry(self.directory / f"{key}.json")
        return entry if entry is not None and self.run_dir_of(entry) != self.run_dir else None

    def run_dir_of(self, entry: Json) -> Path:
        """The run directory of whoever did it."""
        return Path(os.path.normpath(self.directory / entry["run_dir"]))

    def register(self, key: str, entry: Json) -> None:
        """Say that this run has done it. Durable when it returns."""
        run_dir = os.path.relpath(self.run_dir, self.directory)
        ours = {"key": key, "ran_in": {"arm": self.arm, "seed": self.seed}, "run_dir": run_dir}
        write_json(self.directory / f"{key}.json", entry | ours)

    def keep(self, key: str, round: int, weights: Path) -> None:
        """Keep a committed checkpoint under a key. What cannot be linked is not kept: another run then trains itself."""
        if round > self.keeps_rounds:
            return
        kept = self.directory / f"{key}{WEIGHTS}"
        with contextlib.suppress(OSError):
            scratch = temporary_directory(self.directory)
            link_tree(weights, scratch / "weights")
            if kept.exists():
                remove_directory(kept)
            os.rename(scratch / "weights", kept)
            os.rmdir(scratch)

    def weights_of(self, key: str, entry: Json) -> list[Path]:
        """Where the weights of an entry may lie."""
        return [self.directory / f"{key}{WEIGHTS}", self.run_dir_of(entry) / entry["path"]]


def registry_of(run_dir: Path) -> Registry | None:
    """The registry that a run takes part in; None for a run that belongs to no experiment.

    A run directory that was moved or copied away from its experiment is a run of its own: it writes to no place that lies
    where the registry would be.
    """
    entry = read_entry(run_dir / MEMBERSHIP) or {}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        shared = Path(os.path.normpath(run_dir / entry["shared"]))
        if shared.is_dir() and Path(os.path.normpath(shared / entry["run_dir"])) == run_dir:
            return Registry(shared, run_dir, str(entry["arm"]), int(entry["seed"]), int(entry["keeps_rounds"]))
    return None


def read_entry(path: Path) -> Json | None:
    """A JSON object from a file; None if there is none."""
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) else None


def write_json(path: Path, value: Json) -> None:
    """Write a file, and the directory that it lies in, durably."""
    make_directory(path.parent)
    with written(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def link_tree(source: Path, target: Path) -> None:
    """Link the plain files of a directory into a new one; where that is impossible (another file system), copy them."""
    import shutil

    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
            continue
        try:
            os.link(path, copy, follow_symlinks=False)
        except OSError:
            shutil.copyfile(path, copy, follow_symlinks=False)
