"""A checkpoint's way to the nodes of a cluster: in chunks through Ray's object store, each put there once for all nodes.

A node that has part of it, from a delivery that broke off, is sent the rest. The node proves what it has by the manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from store.canonical import sha256_of
from store.errors import DamagedCheckpoint, StoreError

CHUNK_BYTES, NUM_FLYING = 16 << 20, 3  # pieces of a file, and how many of them are on their way at once


def fetch(shelf: Any, name: str, target: Path) -> None:
    """Bring home what a training has written on a node, into a directory. StoreError where something else arrives."""
    for file, measured in ray.get(shelf.measure.remote(name)).items():
        path = target / file
        path.parent.mkdir(parents=True, exist_ok=True)
        offsets = range(0, measured["size_bytes"], CHUNK_BYTES)
        digest, flying = hashlib.sha256(), deque[Any]()
        with path.open("wb") as home:
            for offset in [*offsets, *[None] * NUM_FLYING]:
                if offset is not None:
                    flying.append(shelf.read.remote(name, file, offset, CHUNK_BYTES))
                if flying and (offset is None or len(flying) > NUM_FLYING):
                    piece = ray.get(flying.popleft())
                    home.write(piece)
                    digest.update(piece)
        if digest.hexdigest() != measured["sha256"]:
            raise DamagedCheckpoint(f"{path}: the content differs from what the node has (SHA-256)")


class Delivery:
    """One directory, to the `shelves` of nodes. `lost`: why a node was; `damaged`: what is wrong with what one received."""

    def __init__(self, directory: Path, manifest: dict[str, Any], shelves: Mapping[str, Any]) -> None:
        self.directory, self.manifest, self.shelves = directory, manifest, dict(shelves)
        self.sha256 = sha256_of(manifest)
        self.lost: dict[str, str] = {}
        self.damaged: dict[str, str] = {}

    def prove(self) -> dict[str, str]:
        """The directory's own name, by node, for all that see the same files under it."""
        path = str(self.directory)
        proved = {node: shelf.prove.remote(path, self.manifest) for node, shelf in self.shelves.items()}
        return dict.fromkeys(self._all(proved), path)

    def bring(self) -> dict[str, str]:
        """What the directory is called on each node that has it now, whole and proved."""
        for _ in range(2):  # what arrives damaged is sent once more
            begun = self._all({node: shelf.begin.remote(self.manifest) for node, shelf in self.shelves.items()})
            present = {node: sizes for node, sizes in begun.items() if sizes is not None}
            if not present:
                break
            self._send(present)
            proved = {node: self.shelves[node].finish.remote(self.manifest) for node in present if node in self.shelves}
            self.damaged = {}
            self._all(proved)
            if not self.damaged:
                break
        places = {node: shelf.place.remote(self.sha256) for node, shelf in self.shelves.items()}
        return self._all({node: place for node, place in places.items() if node not in self.damaged})

    def _send(self, present: Mapping[str, Mapping[str, int]]) -> None:
        flying: list[dict[str, Any]] = []
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
                        self._all(flying.pop(0))
        for put in flying:
            self._all(put)

    def _all(self, calls: Mapping[str, Any]) -> dict[str, Any]:
        """The results of calls, by node. A node whose call fails takes no further part."""
        results = {}
        for node, call in calls.items():
            try:
                results[node] = ray.get(call)
            except StoreError as error:
                self.damaged[node] = str(error)
            except RayError as error:
                self.lost[node] = str(error).strip().splitlines()[-1]
                self.shelves.pop(node, None)
        return results
