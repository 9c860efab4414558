"""How long it takes to hash a checkpoint's files: one after the other, in threads, and once they are known.

    python -m bench.hashing [--files NUM] [--mb SIZE] [--turns NUM]

The files are in the page cache, so that the figures are about the processor and not about the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bench.measuring import in_turns, timed
from store.hashing import CLOCK_S, Hasher


def one_by_one(paths: list[Path]) -> list[str]:
    hashes = []
    for path in paths:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes


def hashed(hasher: Hasher, paths: list[Path]) -> list[str]:
    return [measured["sha256"] for measured in hasher.measure(paths)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--mb", type=int, default=256, help="size of each file in MB")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    knowing = Hasher()
    ways = {
        "one by one": one_by_one,
        "in threads": lambda paths: hashed(Hasher(), paths),
        "known": lambda paths: hashed(knowing, paths),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, str(number)) for number in range(arguments.files)]
        for path in paths:
            path.write_bytes(os.urandom(1_000_000) * arguments.mb)
        time.sleep(2 * CLOCK_S)  # a hasher does not remember files that were written this moment
        expected = hashed(knowing, paths)
        for _, way in in_turns(ways, arguments.turns):
            hashes, taken = timed(lambda way=way: ways[way](paths))  # type: ignore[misc]
            assert hashes == expected
            seconds[way].append(taken)
    num_gb = arguments.files * arguments.mb / 1000
    before = statistics.median(seconds["one by one"])
    print(f"{arguments.files} files, {num_gb:g} GB, {len(os.sched_getaffinity(0))} cores")
    for way, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{way:>12}: {median:8.4f} s, {before / median:8.2f} times as fast as one by one")


if __name__ == "__main__":
    main()
