"""Hashing: right in every block, once per file, ended by whatever the caller is told meanwhile, and never believed too long."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.system.exits import explained
from loop.system.signals import Interrupted, Stop
from store import hashing
from store.hashing import Hasher

ENDLESS_BYTES = 1 << 40  # of a file with nothing in it: to hash it would take half an hour


@pytest.fixture
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files count as written a while ago."""
    monkeypatch.setattr(hashing, "CLOCK_S", -1.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    return tmp_path / "model.safetensors"


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    (tmp_path / "endless").touch()
    os.truncate(tmp_path / "endless", ENDLESS_BYTES)
    return tmp_path / "endless"


def measured(content: bytes) -> dict[str, Any]:
    return {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def num_reads(hasher: Hasher, *paths: Path) -> int:
    """How many files it reads to hash these, and that they are those on the disk."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hashing, "_read", read := Mock(side_effect=hashing._read))
        assert hasher.measure(paths) == [measured(path.read_bytes()) for path in paths]
        return read.call_count


@settings(max_examples=20)
@given(contents=st.lists(st.binary(max_size=40), max_size=12), sync=st.booleans())
def test_each_file_has_its_size_and_hash_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], sync: bool
) -> None:
    directory = tmp_path_factory.mktemp("files")
    paths = [directory / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hashing, "BLOCK_BYTES", 8)
        assert Hasher().measure(paths, sync=sync) == [measured(content) for content in contents]


TOUCHES: dict[str, Callable[[Path], object]] = {
    "written": lambda file: file.write_bytes(b"12345679"),
    "replaced": lambda file: shutil.copy(file, file.with_suffix(".new")).replace(file),
}


@pytest.mark.usefixtures("long_ago")
@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_a_file_is_read_once_until_somebody_touches_it(file: Path, touch: Callable[[Path], object]) -> None:
    """Bytes of the same length, an old modification time: they are read again all the same."""
    hasher = Hasher()
    assert (num_reads(hasher, file), num_reads(hasher, file)) == (1, 0)
    times = file.stat()
    time.sleep(0.02)  # the clock of the file system
    touch(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (num_reads(hasher, file), num_reads(hasher, file)) == (1, 0)


def test_a_file_that_was_just_written_is_not_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next write might leave the same times."""
    monkeypatch.setattr(hashing, "CLOCK_S", float("inf"))
    hasher = Hasher(memory=file.parent / "hashed.json")
    assert (num_reads(hasher, file), num_reads(hasher, file)) == (1, 1)
    assert num_reads(Hasher(memory=hasher.memory), file) == 1


@pytest.mark.usefixtures("long_ago")
def test_another_process_remembers_until_the_machine_starts_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, boot = tmp_path / "hashed.json", tmp_path / "boot"
    boot.write_text("one\n")
    monkeypatch.setattr(hashing, "BOOT_ID", boot)
    assert [num_reads(Hasher(memory=memory), file) for _ in range(2)] == [1, 0]
    boot.write_text("two\n")
    assert [num_reads(Hasher(memory=memory), file) for _ in range(2)] == [1, 0]
    boot.unlink()  # a system that does not say
    assert [num_reads(Hasher(memory=memory), file) for _ in range(2)] == [1, 1]


@pytest.mark.usefixtures("long_ago")
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"boot_id": "BOOT", "files": [1]}', '{"boot_id": "BOOT"}', "\x00"]
)
def test_a_damaged_memory_costs_only_time(file: Path, content: str) -> None:
    memory = file.parent / "hashed.json"
    memory.write_text(content.replace("BOOT", hashing.BOOT_ID.read_text().strip()))
    assert [num_reads(Hasher(memory=memory), file) for _ in range(2)] == [1, 0]
    assert num_reads(Hasher(memory=file.parent / "nowhere" / "hashed.json"), file) == 1


@pytest.mark.usefixtures("long_ago")
def test_the_files_that_were_read_last_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "MOST_KNOWN", 2)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
        Hasher(memory=tmp_path / "hashed.json").measure([path])
    assert num_reads(Hasher(memory=tmp_path / "hashed.json"), *paths) == 1


def test_what_the_caller_is_told_meanwhile_ends_it(endless: Path, file: Path) -> None:
    pulse = Mock(side_effect=[None, RuntimeError("enough")])
    with pytest.raises(RuntimeError, match="enough"):
        Hasher(pulse).measure([file, endless, file, endless])
    assert pulse.call_count == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hashing")]


def test_a_signal_ends_it(endless: Path) -> None:
    with Stop(at_once=True).listening(), pytest.raises(Interrupted, match="SIGTERM"):
        Hasher(lambda: os.kill(os.getpid(), signal.SIGTERM)).measure([endless], sync=True)


CHANGES: dict[str, Callable[[Path], object]] = {
    "longer": lambda file: file.open("ab").write(b"9"),
    "shorter": lambda file: os.truncate(file, 5),
    "as long": lambda file: file.write_bytes(b"87654321"),
}


@pytest.mark.usefixtures("long_ago")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_meanwhile_has_no_hash(
    file: Path, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(file, (1, 1))
    real, hasher = hashlib.sha256, Hasher()

    def begun() -> Any:  # when the first look at the file is behind it
        change(file)
        return real()

    with monkeypatch.context() as patched:
        patched.setattr(hashing.hashlib, "sha256", begun)
        with pytest.raises(OSError, match="somebody writes to this file while it is hashed") as caught:
            hasher.measure([file])
    assert explained(caught.value) == (1, f"{file}: {caught.value.strerror}")
    assert num_reads(hasher, file) == 1, "it is not remembered"


def test_a_file_that_cannot_be_read_is_named_in_one_line(file: Path, tmp_path: Path) -> None:
    (link := tmp_path / "sick.safetensors").symlink_to(
        "/proc/self/mem"
    )  # reading its beginning is an error of the device
    with pytest.raises(OSError, match="Input/output error") as caught:
        Hasher().measure([file, link, file])
    assert explained(caught.value) == (1, f"{link}: Input/output error")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        Hasher().measure([file, tmp_path / "gone.json"])


@pytest.mark.usefixtures("long_ago")
def test_files_that_are_not_on_the_disk_are_not_hashed_either(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasher, full = Hasher(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    with monkeypatch.context() as patched:
        patched.setattr(hashing, "fsync", Mock(side_effect=full))
        with pytest.raises(OSError, match="No space left") as caught:
            hasher.measure([file], sync=True)
    assert caught.value.errno == errno.ENOSPC
    assert num_reads(hasher, file) == 1
