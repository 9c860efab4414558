"""Write the hashed word runs of MBPP that the overlap tests compare against.

    python tests/support/make_mbpp_ngrams.py path/to/mbpp.jsonl [--output FILE]

The tests must run in a bare clone, where MBPP is not at hand, and the benchmark's texts should not be copied into this
project. A list of hashes serves both: it tells whether a run of words occurs in MBPP, but not which words those are.
The hashes are sorted and carry no date, so that running the script again on the same MBPP file changes nothing.
"""

import argparse
import gzip
from pathlib import Path

from loop.grading.json_lines import read_file, sound
from tests.support import TESTS
from tests.support.overlap import RUN_LENGTH, fingerprints

HASH_FILE = TESTS / "data" / "mbpp_ngrams.txt.gz"

HEADER = f"""\
# Hashed {RUN_LENGTH}-word runs of the MBPP problem texts (field `text` of mbpp.jsonl).
# Each line holds the first 8 bytes, as 16 hex digits, of the SHA-256 of {RUN_LENGTH} consecutive words
# joined by single spaces. Words are lower-cased and stripped of punctuation (tests/support/overlap.py).
# A text of fewer than {RUN_LENGTH} words is hashed whole. The hashes are distinct and in ascending order.
# Written by tests/support/make_mbpp_ngrams.py for tests/loop/prompts/test_disjoint.py.
"""


def read_hashes(path: Path = HASH_FILE) -> frozenset[str]:
    """The hashes of a file that this script has written, without its header."""
    body = gzip.decompress(path.read_bytes()).decode("ascii")
    return frozenset(line for line in body.splitlines() if not line.startswith("#"))


def main(arguments: list[str] | None = None) -> None:
    """Write the hashes of the MBPP file that the command line names, compressed without a time stamp."""
    parser = argparse.ArgumentParser(description="Write the hashed word runs of MBPP for the overlap tests.")
    parser.add_argument("mbpp", type=Path, help="MBPP problems, one JSON object per line")
    parser.add_argument("--output", type=Path, default=HASH_FILE, help="file to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    rows = sound(read_file(options.mbpp, "MBPP problems", "name mbpp.jsonl"))
    hashes = sorted({mark for _, row in rows for mark in fingerprints(row["text"])})
    body = HEADER + "".join(f"{mark}\n" for mark in hashes)
    options.output.write_bytes(gzip.compress(body.encode("ascii"), compresslevel=9, mtime=0))
    print(f"{len(hashes)} hashes written to {options.output}")


if __name__ == "__main__":
    main()
