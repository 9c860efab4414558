"""Directories of weights: written so that they are whole or not there, and verified before they are loaded.

A checkpoint is known by the SHA-256 of its manifest, which holds size and SHA-256 of every file: `sha256sum
MANIFEST.json` gives the checkpoint's hash. It grows in `checkpoints/tmp-*` and gets its final name only when every byte
of it is on disk. What the ledger says of it is not here.

A crash after the rename and before the ledger's row leaves a whole directory that nobody knows of. The retry may take it
as it is (`committed`), or commit its own: equal weights are kept, others are replaced, damaged ones are set aside.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import chain, count, takewhile
from pathlib import Path

from store.canonical import canonical_json, sha256_of
from store.durable import fsync
from store.errors import DamagedCheckpoint, StoreError
from store.failpoints import reach
from store.hashing import Hasher
from store.records import Json

CHECKPOINTS = "checkpoints"  # in a run directory
MANIFEST = "MANIFEST.json"
TEMPORARY = "tmp-"
TRAINING = ".training-"  # and a key: what one unfinished training keeps; not temporary, since it outlives its process
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, so that their names outlast a power cut."""
    missing = list(takewhile(lambda directory: not directory.exists(), (path, *path.parents)))
    path.mkdir(parents=True, exist_ok=True)
    for directory in reversed(missing):
        fsync(directory.parent)


def sync_tree(directory: Path) -> None:
    """Fsync all plain files of a directory, the directory and its name."""
    for path in (*_plain_files(directory, StoreError), directory, directory.parent):
        fsync(path)


def temporary_directory(root: Path) -> Path:
    """A new empty directory under `root` (the run's checkpoints/) for weights that are being written."""
    import tempfile  # here and below: `loopctl status` loads this module, and must not wait for what only writers use

    make_directory(root)
    return Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=root))


def commit_directory(tmp_dir: Path, final_dir: Path, hasher: Hasher | None = None) -> Json:
    """Make a directory durable under its final name, on the same file system; its manifest.

    Order: every file and directory is fsynced, the manifest is written and fsynced, the directory is fsynced, renamed,
    and its parent fsynced. StoreError for weights that can run code, and for anything that is not a plain file.
    `hasher` knows the files afterwards.
    """
    manifest = write_manifest(tmp_dir, hasher)
    if final_dir.exists():
        if committed(final_dir, hasher) == manifest:
            fsync(final_dir.parent)  # whoever renamed it may have been killed before this
            remove_directory(tmp_dir)
            return manifest
        if final_dir.exists():
            remove_directory(final_dir)
            reach("checkpoint.replacing")
    os.rename(tmp_dir, final_dir)
    reach("checkpoint.renamed")
    fsync(final_dir.parent)
    reach("checkpoint.named")
    return manifest


def write_manifest(directory: Path, hasher: Hasher | None = None) -> Json:
    """Fsync all that is in the directory, describe it in MANIFEST.json and fsync that; the manifest.

    Files are hashed while the disk writes them.
    """
    (directory / MANIFEST).unlink(missing_ok=True)
    paths = {path.relative_to(directory).as_posix(): path for path in _plain_files(directory, StoreError)}
    for path in paths.values():
        if path.suffix.lower() in PICKLES:
            raise StoreError(f"{path}: can run code when it is loaded; write safetensors")
    files = _measured(paths, hasher, sync=True)
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir():
            fsync(path)
    reach("checkpoint.files_synced")
    manifest: Json = {"files": files, "whole_directory": True}
    (directory / MANIFEST).write_bytes(canonical_json(manifest).encode("utf-8", "surrogatepass"))
    fsync(directory / MANIFEST)
    fsync(directory)
    reach("checkpoint.manifest_synced")
    return manifest


def hash_directory(directory: Path, hasher: Hasher | None = None) -> Json:
    """The manifest of weights that are not ours to write beside: links are followed, hidden files left out.

    Pickled weights beside safetensors are left out, as they are never loaded; without safetensors: StoreError.
    """
    if not directory.is_dir():
        raise StoreError(f"{directory}: no such directory")
    files = {path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()}
    visible = {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.parts)}
    if not any(name.suffix == ".safetensors" for name in visible):
        raise StoreError(f"{directory}: holds no safetensors; convert the weights first")
    wanted = {name.as_posix(): path for name, path in visible.items() if name.suffix.lower() not in PICKLES}
    return {"files": _measured(wanted, hasher), "whole_directory": False}


def verify(directory: Path, manifest: Json, hasher: Hasher | None = None) -> None:
    """Read every byte; DamagedCheckpoint names a file that is missing, too many, or not as the manifest says.

    A file that `hasher` knows is not read again. OSError for one that cannot be read.
    """
    if not directory.is_dir():
        raise DamagedCheckpoint(f"{directory}: the directory is missing")
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: the file is missing")
        size = path.stat().st_size
        if size != expected["size_bytes"]:
            raise DamagedCheckpoint(f"{path}: the size is {size} bytes, the manifest says {expected['size_bytes']}")
    if manifest["whole_directory"]:
        for path in _plain_files(directory, DamagedCheckpoint):
            name = path.relative_to(directory).as_posix()
            if name not in manifest["files"] and name != MANIFEST:
                raise DamagedCheckpoint(f"{path}: the file is not in the manifest")
    found = _measured({name: directory / name for name in manifest["files"]}, hasher)
    for name, expected in manifest["files"].items():
        if found[name]["sha256"] != expected["sha256"]:
            raise DamagedCheckpoint(f"{directory / name}: the content differs from the manifest (SHA-256)")


def committed(directory: Path, hasher: Hasher | None = None) -> Json | None:
    """The manifest of a directory that was committed and is whole; None if there is none. A damaged one is set aside."""
    if not directory.exists():
        return None
    try:
        manifest = read_manifest(directory)
        verify(directory, manifest, hasher)
        return manifest
    except DamagedCheckpoint:
        quarantine(directory)
        return None


def read_manifest(directory: Path) -> Json:
    """The manifest as it lies in the directory; DamagedCheckpoint if there is none that can be read."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path}: the manifest is missing or unreadable") from error
    if not isinstance(manifest, dict) or manifest.keys() != {"files", "whole_directory"}:
        raise DamagedCheckpoint(f"{path}: is not a manifest")
    return manifest


def manifest_sha256(manifest: Json) -> str:
    """The hash by which the checkpoint is known."""
    return sha256_of(manifest)


def manifest_size_bytes(manifest: Json) -> int:
    """The size of all files together."""
    return sum(file["size_bytes"] for file in manifest["files"].values())


def quarantine(directory: Path) -> Path:
    """Set a damaged directory aside as `<name>.damaged`, or `.damaged-2` and so on; its new path."""
    names = chain([f"{directory.name}.damaged"], (f"{directory.name}.damaged-{number}" for number in count(2)))
    target = next(path for path in map(directory.with_name, names) if not path.exists())
    os.rename(directory, target)
    fsync(directory.parent)
    reach("checkpoint.set_aside")
    return target


def remove_directory(directory: Path) -> None:
    """Remove weights; interrupted, it leaves a temporary directory and never half a checkpoint."""
    if not directory.name.startswith(TEMPORARY):
        doomed = temporary_directory(directory.parent) / directory.name
        os.rename(directory, doomed)
        fsync(directory.parent)
        reach("checkpoint.removing")
        directory = doomed.parent
    _remove(directory)


def sweep_temporaries(root: Path) -> list[str]:
    """Remove what interrupted writes left under `root`; the names. Only while nothing is being written there."""
    leftovers = sorted(path for path in root.glob(f"{TEMPORARY}*") if path.is_dir())
    for path in leftovers:
        _remove(path)
    return [path.name for path in leftovers]


def _remove(directory: Path) -> None:
    """Remove a tree that another thread may be removing as well."""
    import shutil

    while directory.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)


def _plain_files(directory: Path, refusal: type[StoreError]) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise refusal(f"{path}: is a link or no plain file; a checkpoint holds its own bytes")
        if path.is_file():
            yield path


def _measured(paths: Mapping[str, Path], hasher: Hasher | None, *, sync: bool = False) -> Json:
    return dict(zip(paths, (hasher or Hasher()).measure([*paths.values()], sync=sync), strict=True))
