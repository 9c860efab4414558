"""A checkpoint as a Hugging Face model directory: whole under its name, or not there at all.

Weights are hashed while they are copied, so what arrives is what the ledger knows. Only plain model files are taken: no
code, no pickles, nothing hidden. Merging an adapter into its base needs torch, so it happens in a worker.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from loop.engines.base import CheckpointRef
from loop.errors import LoopError, NoRoom
from loop.workers.worker import Worker
from store.canonical import sha256_of
from store.checkpoints import make_directory, verify
from store.durable import fsync
from store.errors import DamagedCheckpoint
from store.records import Checkpoint, Json

CARD, GENERATION_CONFIG, ADAPTER_CONFIG = "README.md", "generation_config.json", "adapter_config.json"
MODEL_FILES = (".json", ".jinja", ".model", ".safetensors", ".txt")
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
TEMPLATES = "additional_chat_templates"
OURS = ("MANIFEST.json", CARD)
STALL_S = 24 * 3600.0  # a merge reports nothing on the way; a dead worker is noticed all the same
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint and all that it takes to export it. `base`: the full weights that an adapter belongs to."""

    row: Checkpoint
    path: Path
    words: str  # "round 3" or "the base"
    origin: str  # model.source, by which an adapter names its base
    revision: str | None = None
    licences: Mapping[str, Path] = field(default_factory=dict)  # the base's, for checkpoints without
    base: Source | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """The exported directory. `sha256` covers the name and the content of every file."""

    path: Path
    files: list[Json]
    sha256: str
    was_there: bool

    @property
    def size_bytes(self) -> int:
        return sum(entry["size_bytes"] for entry in self.files)


def checked_target(directory: str, *, again: bool = False) -> Path:
    """The directory to export to. LoopError if it is not empty; `again` allows files, which are compared later."""
    path = Path(os.path.realpath(directory))
    try:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir():
            what = "is a file" if existing == path else f"{existing} is a file"
            raise LoopError(f"{directory}: {what}; name another directory")
        if path.is_dir() and not again and any(path.iterdir()):
            raise LoopError(f"{directory}: is not empty; name another directory, or empty this one")
    except OSError as error:
        raise LoopError(f"{directory}: {error.strerror}; name another directory") from None
    return path


def export(
    source: Source, directory: Path, *, card: str, decoding: Json, merge: bool, logs: Path, again: bool = False
) -> Exported:
    """Write the checkpoint, its card and a generation config into `directory`, which appears once all of it is on disk.

    `decoding`: the settings that the figures in the card were measured with. `again`: a directory that holds the same files
    counts as exported.
    """
    parent = directory.parent
    _room_for(source, merge, parent)
    make_directory(parent)
    scratch = parent / f".{directory.name[:100]}.{os.urandom(4).hex()}.partial"
    scratch.mkdir()
    try:
        if merge and source.base is not None:
            _merge(source, source.base, scratch, logs)
        else:
            _copy(source, scratch)
        _write_texts(source, scratch, card, decoding)
        files = listed(scratch)
        sha256 = _sha256_of(files)
        for path in [*scratch.rglob("*"), scratch]:
            fsync(path)
        was_there = _put(scratch, directory, sha256, again)
        fsync(parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(f"{parent}: the disk is full; free some space, or export to another one") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exported(directory, files, sha256, was_there)


def listed(directory: Path) -> list[Json]:
    """Every file with its size and SHA-256, in order of its name."""
    files = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(directory).as_posix()
        files.append({"name": name, "size_bytes": path.stat().st_size, "sha256": digest})
    return files


def _sha256_of(files: list[Json]) -> str:
    return sha256_of({entry["name"]: entry["sha256"] for entry in files})


def licences_in(directory: Path, manifest: Json) -> dict[str, Path]:
    """The licence texts beside weights: file name -> path."""
    return {name: directory / name for name in manifest["files"] if _is_licence(name)}


def _is_licence(name: str) -> bool:
    is_text = PurePosixPath(name).suffix.lower() in ("", ".txt", ".md", ".rst", ".html", ".pdf")
    return "/" not in name and name.upper().startswith(LICENCES) and is_text


def _is_wanted(name: str) -> bool:
    """Whether a file of a checkpoint is part of the model."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts) or path.name in OURS:
        return False
    if len(path.parts) > 1:
        return path.parts[0] == TEMPLATES and path.suffix == ".jinja"
    return path.suffix in MODEL_FILES or _is_licence(name)


def _room_for(source: Source, merge: bool, parent: Path) -> None:
    existing = next(path for path in (parent, *parent.parents) if path.exists())
    needed = (source.base if merge and source.base else source).row.size_bytes
    if (free := shutil.disk_usage(existing).free) < needed:
        words = f"{needed:,} bytes are needed and {free:,} are free; make room, or export to another disk"
        raise NoRoom(f"{existing}: {words}")


def _copy(source: Source, target: Path) -> None:
    for name, expected in source.row.manifest["files"].items():
        if _is_wanted(name):
            _copied(source, name, target / name, expected["sha256"])


def _copied(source: Source, name: str, target: Path, expected: str) -> None:
    """Copy one file. LoopError if its content is not what the manifest says."""
    digest = hashlib.sha256()
    target.parent.mkdir(exist_ok=True)
    try:
        with (source.path / name).open("rb") as file, target.open("wb") as out:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                out.write(piece)
    except FileNotFoundError as error:
        raise LoopError(f"{source.words}: {error.filename} is missing; `loopctl verify` checks all files") from None
    if digest.hexdigest() != expected:
        damage = f"{source.path / name}: the content differs from the manifest (SHA-256)"
        raise LoopError(f"{source.words} is damaged: {damage}; nothing was exported")


def _merge(source: Source, base: Source, target: Path, logs: Path) -> None:
    for part in (source, base):
        try:
            verify(part.path, part.row.manifest)
        except DamagedCheckpoint as damage:
            raise LoopError(f"{part.words} is damaged: {damage}; nothing was exported") from None
    checkpoint = CheckpointRef(sha256=source.row.sha256, path=source.path, base_path=base.path)
    worker = Worker(
        {"op": "merge_adapter", "checkpoint": checkpoint, "target": str(target)},
        log_file=logs / "export.log",
        stall_timeout_s=STALL_S,
        progress=lambda done, total: None,
        tag="merging the adapter",
    )
    worker.end()


def _write_texts(source: Source, target: Path, card: str, decoding: Json) -> None:
    places = (target, source.path, *([source.base.path] if source.base else []))
    paths = [place / GENERATION_CONFIG for place in places]
    before = next((_json(path) for path in paths if path.is_file()), {})
    _write_json(target / GENERATION_CONFIG, generation_config(before, decoding))
    if (adapter := target / ADAPTER_CONFIG).is_file():
        named = {"base_model_name_or_path": source.origin, "revision": source.revision}
        _write_json(adapter, _json(adapter) | named)
    for name, path in source.licences.items():
        if not (target / name).exists():
            shutil.copyfile(path, target / name)
    (target / CARD).write_text(card, encoding="utf-8")


def generation_config(before: Json, decoding: Json) -> Json:
    """The model's own generation config with these decoding settings, from which transformers and vLLM take their defaults.

    Strings that end a completion stay out, because transformers would then want the tokenizer at every call.
    """
    replaced = {"temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "max_length"}
    after = {key: value for key, value in before.items() if key not in replaced}
    after["max_new_tokens"] = decoding["max_new_tokens"]
    if decoding.get("repetition_penalty", 1.0) != 1.0:
        after["repetition_penalty"] = decoding["repetition_penalty"]
    if not decoding["temperature"]:
        return after | {"do_sample": False}
    return after | {"do_sample": True, **{key: decoding[key] for key in ("temperature", "top_k", "top_p")}}


def _json(path: Path) -> Json:
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _put(scratch: Path, directory: Path, sha256: str, again: bool) -> bool:
    """Rename the scratch directory; True if the directory held the same files already."""
    if again and directory.is_dir() and any(directory.iterdir()):
        if _sha256_of(listed(directory)) == sha256:
            return True
        raise LoopError(f"{directory}: holds other files than this export; name another directory, or empty this one")
    try:
        os.rename(scratch, directory)  # onto a name that is free, or onto an empty directory
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise LoopError(f"{directory}: something else appeared there meanwhile; name another directory") from None
        raise
    return False
