"""Directories of weights: whole or not there, and every damage noticed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store.checkpoints import (
    commit_directory,
    committed,
    hash_directory,
    manifest_sha256,
    manifest_size_bytes,
    quarantine,
    read_manifest,
    remove_directory,
    stamps,
    sweep_temporaries,
    temporary_directory,
    verify,
    write_manifest,
)
from store.errors import DamagedCheckpoint, StoreError, UnsafeWeights
from tests.support import ROOT


def written(root: Path, text: str = "weights") -> Path:
    directory = temporary_directory(root)
    (directory / "model.safetensors").write_text(text)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return directory


def test_a_committed_directory_is_whole_and_known_by_its_manifest(tmp_path: Path) -> None:
    final = tmp_path / "checkpoints" / "round-1"
    manifest = commit_directory(written(final.parent), final)
    verify(final, manifest)
    assert committed(final) == manifest == read_manifest(final)
    assert set(manifest["files"]) == {"config.json", "model.safetensors", "tokenizer/vocab.txt"}
    assert manifest_size_bytes(manifest) == 13
    assert manifest_sha256(manifest) == hashlib.sha256((final / "MANIFEST.json").read_bytes()).hexdigest()
    assert os.listdir(final.parent) == ["round-1"]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda d: (d / "tokenizer/vocab.txt").unlink(), "tokenizer/vocab.txt: the file is missing"),
    "truncated": (lambda d: (d / "model.safetensors").write_text("weigh"), "model.safetensors: the size is 5 bytes"),
    "altered": (
        lambda d: (d / "model.safetensors").write_text("weighty"[:7]),
        "model.safetensors: the content differs",
    ),
    "extra": (lambda d: (d / "model.py").write_text(""), "model.py: the file is not in the manifest"),
    "link": (lambda d: (d / "link").symlink_to("config.json"), "link: is a link"),
    "gone": (lambda d: shutil.rmtree(d), "the directory is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_noticed_and_named(tmp_path: Path, damage: str) -> None:
    final = tmp_path / "round-1"
    manifest = commit_directory(written(tmp_path), final)
    act, message = DAMAGES[damage]
    act(final)
    with pytest.raises(DamagedCheckpoint, match=re.escape(message)) as caught:
        verify(final, manifest)
    assert "\n" not in str(caught.value) and str(final) in str(caught.value)
    assert committed(final) is None and not final.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', '{"files": {}, "whole_directory": true}'])
def test_a_damaged_manifest_is_never_trusted(tmp_path: Path, content: str) -> None:
    final = tmp_path / "round-1"
    commit_directory(written(tmp_path), final)
    (final / "MANIFEST.json").write_text(content)
    assert committed(final) is None
    assert (tmp_path / "round-1.damaged" / "model.safetensors").read_text() == "weights"


def test_committing_again_after_a_crash_is_harmless(tmp_path: Path) -> None:
    final = tmp_path / "round-1"
    first = commit_directory(written(tmp_path), final)
    inode = final.stat().st_ino
    assert commit_directory(written(tmp_path), final) == first and final.stat().st_ino == inode, (
        "equal weights are kept"
    )
    other = commit_directory(written(tmp_path, "other"), final)
    assert other != first and committed(final) == other
    (final / "model.safetensors").write_text("broken")
    assert commit_directory(written(tmp_path), final) == first == committed(final)
    assert sorted(os.listdir(tmp_path)) == ["round-1", "round-1.damaged"]


def test_quarantine_never_overwrites(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        (tmp_path / "round-1").mkdir()
        names.append(quarantine(tmp_path / "round-1").name)
    assert names == ["round-1.damaged", "round-1.damaged-2", "round-1.damaged-3"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.PT", "x/training_args.pkl"])
def test_weights_that_run_code_are_refused(tmp_path: Path, name: str) -> None:
    directory = written(tmp_path)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("pickle")
    with pytest.raises(UnsafeWeights, match=re.escape(name)):
        commit_directory(directory, tmp_path / "round-1")
    assert not (tmp_path / "round-1").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    directory = written(tmp_path)
    (directory / "more.safetensors").symlink_to(directory / "model.safetensors")
    with pytest.raises(StoreError, match="is a link"):
        commit_directory(directory, tmp_path / "round-1")


def test_a_base_outside_is_hashed_through_its_links_and_not_written_to(tmp_path: Path) -> None:
    blob, base = tmp_path / "blob", tmp_path / "base"
    blob.write_text("weights")
    (base / ".cache").mkdir(parents=True)
    (base / ".cache" / "lock").write_text("")
    (base / "model.safetensors").symlink_to(blob)
    (base / "pytorch_model.bin").write_text("pickle")
    before = sorted(base.rglob("*"))
    manifest = hash_directory(base)
    assert set(manifest["files"]) == {"model.safetensors"} and sorted(base.rglob("*")) == before
    verify(base, manifest)
    blob.write_text("weightz")
    with pytest.raises(DamagedCheckpoint, match="content differs"):
        verify(base, manifest)
    (base / "model.safetensors").unlink()
    with pytest.raises(UnsafeWeights):
        hash_directory(base)
    with pytest.raises(StoreError, match="no such directory"):
        hash_directory(tmp_path / "nowhere")


def test_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    commit_directory(written(tmp_path), tmp_path / "round-1")
    written(tmp_path)
    assert len(sweep_temporaries(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["round-1"]
    remove_directory(tmp_path / "round-1")
    assert os.listdir(tmp_path) == [] == sweep_temporaries(tmp_path)


def test_removal_takes_the_name_away_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "round-1"
    commit_directory(written(tmp_path), final)

    def lights_out(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", lights_out)
        remove_directory(final)
    assert not final.exists()
    assert len(sweep_temporaries(tmp_path)) == 1 and os.listdir(tmp_path) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_order_of_a_commit_as_the_kernel_sees_it(tmp_path: Path) -> None:
    """Killing the process would not show a missing fsync: the page cache survives it."""
    root = tmp_path / "checkpoints"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from store.checkpoints import commit_directory\n"
        f"commit_directory(Path({str(written(root))!r}), Path({str(root / 'round-1')!r}))"
    )
    log = tmp_path / "log"
    strace = ["strace", "-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2,write", "-o", str(log)]
    if subprocess.run([*strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    subprocess.run([*strace, sys.executable, "-c", code], check=True)
    seen = []
    for line in log.read_text().splitlines():
        if str(root) not in line:
            continue
        call = re.search(r"(fsync|rename|write)", line)
        path = re.search(rf"{re.escape(str(root))}([^>\"]*)", line)
        assert call and path
        seen.append((call[1], re.sub(r"^/(tmp-\w+)", "/tmp", path[1])))
    files = {("fsync", f"/tmp/{name}") for name in ("config.json", "model.safetensors", "tokenizer/vocab.txt")}
    assert set(seen[:3]) == files
    assert seen[3:] == [
        ("fsync", "/tmp/tokenizer"),
        ("write", "/tmp/MANIFEST.json"),
        ("fsync", "/tmp/MANIFEST.json"),
        ("fsync", "/tmp"),
        ("rename", "/tmp"),
        ("fsync", ""),
    ]


@pytest.mark.parametrize("how", ["written", "replaced", "removed", "added"])
def test_stamps_change_with_every_touch(tmp_path: Path, how: str) -> None:
    """Bytes of the same length, an old modification time: what was read whole before is read again all the same."""
    directory = tmp_path / "weights"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"12345678")
    manifest = write_manifest(directory)
    before, times = stamps(directory, manifest), (directory / "model.safetensors").stat()
    assert before and before == stamps(directory, manifest)
    time.sleep(0.02)  # the clock of the file system
    target = directory / "model.safetensors"
    match how:
        case "written":
            target.write_bytes(b"12345679")
        case "replaced":
            (tmp_path / "other").write_bytes(b"12345679")
            (tmp_path / "other").replace(target)
        case "removed":
            target.unlink()
        case _:
            (directory / "more.json").write_text("{}")
    if target.exists():
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stamps(directory, manifest) != before
