"""A checkpoint's way to the nodes of a cluster: in chunks through Ray's object store, each put there once for all nodes.

A node that has part of it, from a delivery that broke off, is sent the rest. The node proves what it has by the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from store.canonical import sha256_of
from store.errors import DamagedCheckpoint, StoreError

CHUNK_BYTES, NUM_FLYING = 16 << 20, 3  # pieces of a file, and how many of them are on their way at once
NUM_KEPT = 4  # checkpoints on a node: base, head, tip and candidate
CALL_S = 600.0  # for a node to write a chunk or to look at what it has: its disk may be slow
LEAST_RATE = 5e6  # bytes a second in which a node reads what it proves
MAX_WORDS = 400


def in_words(error: BaseException) -> str:
    """The one line of an error that says what is wrong, without Ray's traceback of where it was raised."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, GetTimeoutError):
        return "it gave no answer"
    if cause is not error and isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"its disk is full: {cause.filename}"  # other words than the kernel's, which mean this machine's disk
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1][:MAX_WORDS] if lines else type(cause).__name__


def fetch(shelf: Any, name: str, target: Path) -> None:
    """Bring home what a training has written on a node, into a directory. StoreError where something else arrives."""
    for file, measured in ray.get(shelf.measure.remote(name), timeout=10 * CALL_S).items():
        path = target / file
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise DamagedCheckpoint(f"{file}: a node gives this name to a file of weights")
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, flying = hashlib.sha256(), deque[Any]()
        offsets = deque(range(0, measured["size_bytes"], CHUNK_BYTES))
        with path.open("wb") as home:
            while offsets or flying:
                while offsets and len(flying) < NUM_FLYING:
                    flying.append(shelf.read.remote(name, file, offsets.popleft(), CHUNK_BYTES))
                piece = ray.get(flying.popleft(), timeout=CALL_S)
                home.write(piece)
                digest.update(piece)
        if digest.hexdigest() != measured["sha256"]:
            raise DamagedCheckpoint(f"{path}: the content differs from what the node has (SHA-256)")


class Delivery:
    """One directory, to the `shelves` of nodes. `failed`: why a node does not have it."""

    def __init__(self, directory: Path, manifest: dict[str, Any], shelves: Mapping[str, Any]) -> None:
        self.directory, self.manifest, self.shelves = directory, manifest, dict(shelves)
        self.sha256 = sha256_of(manifest)
        self.read_s = CALL_S + sum(file["size_bytes"] for file in manifest["files"].values()) / LEAST_RATE
        self.failed: dict[str, str] = {}
        self.damaged: dict[str, str] = {}

    def prove(self) -> dict[str, str]:
        """The directory's own name, by node, for all that see the same files under it."""
        path = str(self.directory)
        proved = {node: shelf.prove.remote(path, self.manifest) for node, shelf in self.shelves.items()}
        places = dict.fromkeys(self._all(proved, self.read_s), path)
        self.failed |= {node: f"{error}; is it the same path there?" for node, error in self.damaged.items()}
        return places

    def bring(self) -> dict[str, str]:
        """What the directory is called on each node that has it now, whole and proved."""
        for _ in range(2):  # what arrives damaged is sent once more
            begun = {node: shelf.begin.remote(self.manifest, NUM_KEPT - 1) for node, shelf in self.shelves.items()}
            present = {node: sizes for node, sizes in self._all(begun, self.read_s).items() if sizes is not None}
            self.damaged = {}
            if not present:
                break
            self._send(present)
            left = [node for node in present if node in self.shelves]
            self._all({node: self.shelves[node].finish.remote(self.manifest) for node in left}, self.read_s)
            if not self.damaged:
                break
        for node, error in self.damaged.items():
            self._give_up(node, f"{error}; it was brought there twice: look at that disk")
        return self._all({node: shelf.place.remote(self.sha256) for node, shelf in self.shelves.items()}, CALL_S)

    def _send(self, present: Mapping[str, Mapping[str, int]]) -> None:
        flying: deque[dict[str, Any]] = deque()
        for name, file in self.manifest["files"].items():
            size = file["size_bytes"]
            with (self.directory / name).open("rb") as source:
                for offset in range(0, size, CHUNK_BYTES):
                    end = min(offset + CHUNK_BYTES, size)
                    wanting = [node for node in present if present[node][name] < end and node in self.shelves]
                    if not wanting:
                        continue
                    chunk = ray.put(os.pread(source.fileno(), end - offset, offset))
                    put = {node: self.shelves[node].put.remote(self.sha256, name, offset, chunk) for node in wanting}
                    flying.append(put)
                    if len(flying) > NUM_FLYING:
                        self._all(flying.popleft(), CALL_S)
        for put in flying:
            self._all(put, CALL_S)

    def _all(self, calls: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The results of calls, by node. A node whose call fails takes no further part, unless what it has is damaged."""
        results = {}
        for node, call in calls.items():
            try:
                results[node] = ray.get(call, timeout=timeout_s)
            except StoreError as error:
                self.damaged[node] = in_words(error)
            except (RayError, OSError) as error:
                self._give_up(node, in_words(error))
        return results

    def _give_up(self, node: str, why: str) -> None:
        self.failed.setdefault(node, why)
        self.shelves.pop(node, None)
