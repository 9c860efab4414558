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
from unittest.mock import Mock

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
    sweep_temporaries,
    temporary_directory,
    verify,
)
from store.errors import DamagedCheckpoint, StoreError
from store.hashing import Hasher
from tests.support import ROOT


def written(root: Path, text: str = "weights") -> Path:
    directory = temporary_directory(root)
    (directory / "tokenizer").mkdir()
    for name, content in {"model.safetensors": text, "config.json": "{}", "tokenizer/vocab.txt": "a\nb\n"}.items():
        (directory / name).write_text(content)
    return directory


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """A committed directory."""
    commit_directory(written(tmp_path), tmp_path / "round-1")
    return tmp_path / "round-1"


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
    "altered": (lambda d: (d / "model.safetensors").write_text("weighty"), "model.safetensors: the content differs"),
    "extra": (lambda d: (d / "model.py").write_text(""), "model.py: the file is not in the manifest"),
    "link": (lambda d: (d / "link").symlink_to("config.json"), "link: is a link"),
    "gone": (lambda d: shutil.rmtree(d), "the directory is missing"),
}


@pytest.mark.parametrize(("act", "message"), DAMAGES.values(), ids=DAMAGES)
def test_every_damage_is_noticed_and_named(final: Path, act: Callable[[Path], object], message: str) -> None:
    manifest = read_manifest(final)
    act(final)
    with pytest.raises(DamagedCheckpoint, match=re.escape(message)) as caught:
        verify(final, manifest)
    assert "\n" not in str(caught.value) and str(final) in str(caught.value)
    assert committed(final) is None and not final.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', '{"files": {}, "whole_directory": true}'])
def test_a_damaged_manifest_is_never_trusted(final: Path, tmp_path: Path, content: str) -> None:
    (final / "MANIFEST.json").write_text(content)
    assert committed(final) is None
    assert (tmp_path / "round-1.damaged" / "model.safetensors").read_text() == "weights"


def test_committing_again_after_a_crash_is_harmless(final: Path, tmp_path: Path) -> None:
    first, inode = read_manifest(final), final.stat().st_ino
    assert commit_directory(written(tmp_path), final) == first
    assert final.stat().st_ino == inode, "equal weights are kept"
    other = commit_directory(written(tmp_path, "other"), final)
    assert other != first and committed(final) == other
    (final / "model.safetensors").write_text("broken")
    assert commit_directory(written(tmp_path), final) == first == committed(final)
    assert sorted(os.listdir(tmp_path)) == ["round-1", "round-1.damaged"]


def test_what_a_hasher_has_committed_it_verifies_without_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.hashing.CLOCK_S", -1.0)  # as if the files had been written a while ago
    hasher, final = Hasher(), tmp_path / "round-1"
    manifest = commit_directory(written(tmp_path), final, hasher)
    with monkeypatch.context() as patched:
        patched.setattr("store.hashing._read", Mock(side_effect=AssertionError("it was read again")))
        verify(final, manifest, hasher)
        assert committed(final, hasher) == manifest
        with pytest.raises(AssertionError, match="read again"):
            verify(final, manifest)
    time.sleep(0.02)  # the clock of the file system
    (final / "model.safetensors").write_text("weighty")
    with pytest.raises(DamagedCheckpoint, match=r"model\.safetensors: the content differs"):
        verify(final, manifest, hasher)


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
    with pytest.raises(StoreError, match=f"{re.escape(name)}: can run code"):
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
    with pytest.raises(StoreError, match="holds no safetensors"):
        hash_directory(base)
    with pytest.raises(StoreError, match="no such directory"):
        hash_directory(tmp_path / "nowhere")


def test_leftovers_are_swept_and_nothing_else(final: Path, tmp_path: Path) -> None:
    written(tmp_path)
    assert len(sweep_temporaries(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["round-1"]
    remove_directory(final)
    assert os.listdir(tmp_path) == [] == sweep_temporaries(tmp_path)


def test_removal_takes_the_name_away_first(final: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", Mock(side_effect=KeyboardInterrupt))
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
    calls = re.findall(rf"(fsync|rename|write).*?{re.escape(str(root))}([^>\"]*)", log.read_text())
    seen = [(call, re.sub(r"^/(tmp-\w+)", "/tmp", path)) for call, path in calls]
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
