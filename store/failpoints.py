"""Named places where the order of writes matters, and where a test can make the process die or the disk be full.

Unarmed, which is always outside tests, reaching one costs a comparison. `LOOP_FAILPOINT=name=action@count` arms one, with
the action "kill" (SIGKILL), "exit" (at once, with 3), "hang" (it waits for ever) or "full" (no space left), at the count-th
time that it is reached; the count defaults to 1, and `+` after it means from then on. `full#1` is for process 1 of a training
alone. Several are separated by commas.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "LOOP_FAILPOINT"
ACTIONS = ("kill", "exit", "hang", "full")

# name -> what has just happened when it is reached
POINTS = {
    "store.begun": "a transaction holds the write lock",
    "store.commit": "all rows of a transaction are written and not yet committed",
    "store.committed": "a transaction is on disk and not yet acknowledged",
    "checkpoint.files_synced": "the weights are on disk, without a manifest",
    "checkpoint.manifest_synced": "the manifest is on disk, under the temporary name",
    "checkpoint.replacing": "other weights under the final name were removed",
    "checkpoint.renamed": "the directory has its final name, which may not be on disk",
    "checkpoint.named": "the final name is on disk; the ledger does not know of it",
    "checkpoint.set_aside": "a damaged directory was renamed; the ledger may not know of it",
    "checkpoint.collected": "the ledger says collected; the directory is still there",
    "checkpoint.removing": "the directory is on its way out under a temporary name",
    "training.weights_written": "the weights of a candidate are written, what belongs beside them is not, and nothing is synced",
    "training.shards_written": "weights and moments of a training are on disk, the rest of its state is not",
    "training.written": "all of a training's state is on disk, under a temporary name",
    "training.renamed": "it has its name, which may not be on disk; the state before is still there",
    "file.written": "a file such as the high-water mark is on disk under a temporary name",
    "file.named": "it has its name, which may not be on disk",
    "round.safe_point": "between two stages, or two batches of one",
}


def _armed() -> dict[str, tuple[str, int, bool]]:
    armed = {}
    for part in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, _, rest = part.partition("=")
        action, _, count = rest.partition("@")
        if name not in POINTS or action.partition("#")[0] not in ACTIONS:
            raise ValueError(f"{VARIABLE}: {part!r} is no place and action; the places are {', '.join(POINTS)}")
        armed[name] = (action, int(count.rstrip("+") or 1), count.endswith("+"))
    return armed


ARMED = _armed()
_reached: Counter[str] = Counter()


def reach(name: str) -> None:
    """Say that this place was reached."""
    if not ARMED:
        return
    assert name in POINTS, name
    _reached[name] += 1
    action, count, onwards = ARMED.get(name, ("", 0, False))
    action, _, process = action.partition("#")
    if process and process != os.environ.get("RANK"):  # as torchrun numbers them
        return
    if action and (_reached[name] == count or (onwards and _reached[name] > count)):
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "exit":
            os._exit(3)
        while action == "hang":
            signal.pause()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
