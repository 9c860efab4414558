"""Starts the processes of a group with torchrun, and notes which of them died and how: `python -m ... SCRATCH TORCHRUN'S ARGUMENTS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from loop.engines.slate import Slate, error_of

DIED = "died"  # a slate: [[rank, exit code]] of the first process that ended without saying why


def main(scratch: Path, arguments: list[str]) -> None:
    """Run the group to its end. The exit code is 1 where a process failed, and torchrun ends the others then."""
    try:
        run.main(arguments)
    except ChildFailedError as failed:
        failures = sorted(failed.failures.items(), key=lambda each: each[1].timestamp)
        died = [(rank, failure.exitcode) for rank, failure in failures if not error_of(scratch, rank).read()[1]]
        Slate(scratch / DIED).write(json.dumps(died[:1]))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
