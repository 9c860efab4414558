"""What a node does for the cluster, without a cluster: takes checkpoints in, and runs a worker whose pipes are calls."""

from __future__ import annotations

import select
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.system import trees
from loop.workers import ray_node
from loop.workers.frames import encode_frame
from loop.workers.process import ELSEWHERE, variables
from store.canonical import sha256_of
from store.checkpoints import MANIFEST, hash_directory
from store.errors import StoreError
from tests.support.clusters import all_gone
from tests.support.waiting import wait_until
from tests.support.workers import SETTINGS, fake_model


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ray_node.Shelf:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("loop.workers.ray_node.TAKEN_S", 0.0)
    made = ray_node.Shelf("~/shelf")
    assert made.about()["directory"] == str(tmp_path / "home" / "shelf" / socket.gethostname() / "0")
    return made


def again(before: ray_node.Shelf) -> ray_node.Shelf:
    """The shelf after the process of the one before was killed, whose lock went with it."""
    before.lock.close()
    shelf = ray_node.Shelf("~/shelf")
    assert shelf.root == before.root
    return shelf


def a_checkpoint(directory: Path) -> dict[str, Any]:
    """Files in a directory, one of them empty and one below another directory; their manifest."""
    fake_model(directory)
    (directory / "empty.txt").touch()
    (directory / "more").mkdir()
    (directory / "more" / "vocab.json").write_text("abc" * 100)
    return hash_directory(directory)


def bring(shelf: ray_node.Shelf, source: Path, manifest: dict[str, Any], chunk: int = 64, most: int = 10**9) -> int:
    """Send what the shelf does not have, in chunks, but no more than `most` of them; how many were sent."""
    present = shelf.begin(manifest, 3)
    if present is None:
        return 0
    num = 0
    for name, file in manifest["files"].items():
        for offset in range(present[name] // chunk * chunk, file["size_bytes"], chunk):
            if num == most:
                return num
            shelf.put(sha256_of(manifest), name, offset, (source / name).read_bytes()[offset : offset + chunk])
            num += 1
    shelf.finish(manifest)
    return num


def test_a_checkpoint_is_brought_once_and_a_broken_off_delivery_goes_on(shelf: ray_node.Shelf, tmp_path: Path) -> None:
    manifest = a_checkpoint(source := tmp_path / "source")
    whole = -(-sum(file["size_bytes"] for file in manifest["files"].values()) // 64)
    place = Path(shelf.place(sha256_of(manifest)))
    assert bring(shelf, source, manifest, most=3) == 3 and not place.exists()
    shelf = again(shelf)
    assert 0 < bring(shelf, source, manifest) <= whole + 3
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        *manifest["files"], MANIFEST,
    }  # fmt: skip
    assert hash_directory(source) == manifest
    assert bring(again(shelf), source, manifest) == 0


def test_what_arrives_or_lies_damaged_is_never_served(shelf: ray_node.Shelf, tmp_path: Path) -> None:
    manifest = a_checkpoint(source := tmp_path / "source")
    other = tmp_path / "other"
    shutil.copytree(source, other)
    (other / "more" / "vocab.json").write_text("abd" * 100)
    with pytest.raises(StoreError, match=r"vocab\.json: the content differs from the manifest \(SHA-256\)"):
        bring(shelf, other, manifest)
    place = Path(shelf.place(sha256_of(manifest)))
    assert not place.exists()
    assert bring(shelf, source, manifest) > 1, "it is sent whole once more"
    (place / "config.json").write_text("{}")
    shelf = again(shelf)
    assert bring(shelf, source, manifest) > 1, "a disk has changed it meanwhile"
    shelf.prove(str(source), manifest)
    with pytest.raises(StoreError, match="vocab"):
        shelf.prove(str(other), manifest)


def test_the_shelf_keeps_what_was_used_last(shelf: ray_node.Shelf, tmp_path: Path) -> None:
    manifests = []
    for number in range(4):
        source = tmp_path / f"source-{number}"
        fake_model(source, skill=number / 10)
        manifests.append(hash_directory(source))
        bring(shelf, source, manifests[-1])
    kept = [Path(shelf.place(sha256_of(manifest))).exists() for manifest in manifests]
    assert kept == [True, True, True, True], "three others beside the one that came last"
    assert shelf.begin(manifests[0], 3) is None  # used once more
    fake_model(tmp_path / "source-4", skill=0.9)
    bring(shelf, tmp_path / "source-4", hash_directory(tmp_path / "source-4"))
    kept = [Path(shelf.place(sha256_of(manifest))).exists() for manifest in manifests]
    assert kept == [True, False, True, True]


def test_two_daemons_on_one_node_have_shelves_of_their_own(shelf: ray_node.Shelf) -> None:
    other = ray_node.Shelf("~/shelf")
    assert (shelf.root.name, other.root.name) == ("0", "1")


def test_a_training_leaves_nothing(shelf: ray_node.Shelf, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_text("{}\n")
    (measured,) = shelf.hasher.measure([tmp_path / "rows" / "rows.jsonl"])
    manifest = {"files": {"rows.jsonl": measured}, "whole_directory": False}
    bring(shelf, tmp_path / "rows", manifest)
    room = shelf.begin_training("t", f"{shelf.place(sha256_of(manifest))}/rows.jsonl", "weights")
    assert Path(room["rows"]).read_text() == "{}\n" and not Path(shelf.place(sha256_of(manifest))).exists()
    (Path(room["weights"]) / "a.safetensors").write_bytes(b"12345")
    assert list(shelf.measure("t")) == ["weights/a.safetensors"]
    assert shelf.read("t", "weights/a.safetensors", 2, 2) == b"34"
    shelf = again(shelf)
    assert not Path(room["rows"]).exists(), "its shelf was killed in the middle"
    shelf.end_training("t")


def test_a_worker_is_read_and_written_by_calls_and_ends_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    remote = ray_node.RemoteWorker(
        "loop.workers.child", variables("token") | {ELSEWHERE: "1"}, has_gpu=False, share=(0, 1)
    )
    init = {"op": "load_sampler", "checkpoint": fake_model(tmp_path / "model"), "settings": SETTINGS, "call": 1}
    remote.write(encode_frame(init))
    pieces = remote.read()
    seen = b""
    while b'"result"' not in seen or b'"use"' not in seen:
        seen += next(pieces)
    environment = Path(f"/proc/{remote.process.pid}/environ").read_bytes()
    assert (
        b"RAY_" not in environment and b"CUDA_VISIBLE_DEVICES=\0" in environment and trees.TREE.encode() in environment
    )
    below = [psutil.Process(remote.process.pid), *psutil.Process(remote.process.pid).children(recursive=True)]
    assert len(below) == 3, "a shell, the guard and the engine"
    _, left = remote.end()
    assert left == [] and all_gone(below) and b"".join(pieces) is not None


def test_what_nobody_takes_stays_in_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise a hub that cannot pass on would fill its memory."""
    monkeypatch.setattr("loop.workers.ray_node.MOST_BYTES", 1000)
    remote = ray_node.RemoteWorker("loop.workers.child", variables("token"), has_gpu=False, share=(0, 1))
    init = {"op": "load_sampler", "checkpoint": fake_model(tmp_path / "model"), "settings": SETTINGS, "call": 1}
    remote.write(encode_frame(init))
    seen: list[bytes] = []
    reading = threading.Thread(target=lambda: seen.extend(remote.read()))
    reading.start()
    remote.write(encode_frame({"op": "unknown " + "x" * 3000, "call": 2}))
    wait_until(lambda: sum(map(len, seen)) > 1000)
    remote.write(encode_frame({"op": "load_trainer", "settings": SETTINGS, "call": 3}))
    for _ in range(100):
        wait_until(lambda: select.select([remote.process.stdout], [], [], 0)[0])
        remote.taken(0)
    assert len(b"".join(seen)) == remote.num_sent and b'"call":3' not in b"".join(seen)
    remote.taken(remote.num_sent)
    wait_until(lambda: b'"call":3' in b"".join(seen))
    remote.taken(10**9)
    remote.end()
    reading.join()


def test_a_worker_ends_with_all_it_started_where_only_its_shell_is_killed(tmp_path: Path) -> None:
    """As Ray kills, when it ends an actor. The exit code of an engine that was killed is told all the same."""
    for kill_shell in (True, False):
        remote = ray_node.RemoteWorker("loop.workers.child", variables("token"), has_gpu=False, share=(0, 1))
        shell = psutil.Process(remote.process.pid)
        init = {"op": "load_sampler", "checkpoint": fake_model(tmp_path / "model"), "settings": SETTINGS, "call": 1}
        remote.write(encode_frame(init))
        next(remote.read())
        guard, engine = shell.children(recursive=True)
        (shell if kill_shell else engine).kill()
        assert all_gone([guard, engine])
        assert remote.wait() == (-9 if kill_shell else 137)
        remote.end()
