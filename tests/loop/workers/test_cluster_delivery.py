"""A checkpoint's way to two nodes that share no path: proved, sent again where it was damaged, gone on with where it broke off."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.workers import ray_delivery
from store.checkpoints import hash_directory
from tests.support.clusters import Machines, machines
from tests.support.waiting import wait_until
from tests.support.workers import fake_model

pytestmark = pytest.mark.slow
MB = 10**6


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    for made in machines(tmp_path_factory.mktemp("cluster"), 2):
        import ray

        ray.init(address=made.address, namespace="ssd-loop", log_to_driver=False, configure_logging=False)
        yield made
        ray.shutdown()


class Chunks:
    """Counts the chunks of deliveries; `each` is called with the number and the bytes of each, and gives what is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num, self.each = 0, lambda number, piece: piece
        put = ray_delivery.ray.put

        def counted(piece: bytes) -> Any:
            self.num += 1
            return put(self.each(self.num, piece))

        monkeypatch.setattr(ray_delivery.ray, "put", counted)


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Chunks:
    return Chunks(monkeypatch)


def shelves(two: Machines) -> dict[str, Any]:
    from loop.workers.ray_hub import on_node
    from loop.workers.ray_node import Shelf

    return {node.node_id: on_node(Shelf, node.node_id).remote("~/shelf") for node in two.nodes}


def weights(directory: Path, megabytes: int) -> dict[str, Any]:
    """A checkpoint of so many bytes that nobody can guess; its manifest."""
    fake_model(directory)
    with (directory / "more.safetensors").open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(MB))
    return hash_directory(directory)


def num_chunks(manifest: dict[str, Any]) -> int:
    return sum(-(-file["size_bytes"] // ray_delivery.CHUNK_BYTES) for file in manifest["files"].values())


def same(place: str, source: Path, manifest: dict[str, Any]) -> bool:
    return all((Path(place) / name).read_bytes() == (source / name).read_bytes() for name in manifest["files"])


def test_300_megabytes_to_two_nodes_each_chunk_once(two: Machines, chunks: Chunks, tmp_path: Path) -> None:
    manifest = weights(tmp_path / "source", 300)
    delivery = ray_delivery.Delivery(tmp_path / "source", manifest, shelves(two))
    places = delivery.bring()
    assert len(places) == 2 and not delivery.failed
    assert all(same(place, tmp_path / "source", manifest) for place in places.values())
    assert chunks.num == num_chunks(manifest)
    again = ray_delivery.Delivery(tmp_path / "source", manifest, delivery.shelves)
    assert again.bring() == places and chunks.num == num_chunks(manifest), "it is there already"


def damaged(number: int) -> Callable[[int, bytes], bytes]:
    """Turns a bit of this chunk, counted from 1."""
    return lambda num, piece: bytes([piece[0] ^ 1]) + piece[1:] if num == number else piece


def test_a_chunk_that_is_damaged_on_the_way_is_caught_and_all_is_sent_once_more(
    two: Machines, chunks: Chunks, tmp_path: Path
) -> None:
    manifest = weights(tmp_path / "source", 60)
    whole = num_chunks(manifest)
    chunks.each = damaged(whole - 1)
    delivery = ray_delivery.Delivery(tmp_path / "source", manifest, shelves(two))
    places = delivery.bring()
    assert len(places) == 2 and all(same(place, tmp_path / "source", manifest) for place in places.values())
    assert chunks.num == 2 * whole


def test_what_is_damaged_each_time_is_nowhere_served(two: Machines, chunks: Chunks, tmp_path: Path) -> None:
    manifest = weights(tmp_path / "source", 40)
    whole = num_chunks(manifest)
    chunks.each = lambda num, piece: damaged(1)((num - 1) % whole + 1, piece)
    delivery = ray_delivery.Delivery(tmp_path / "source", manifest, shelves(two))
    assert delivery.bring() == {}
    assert len(delivery.failed) == 2
    for why in delivery.failed.values():
        assert "differs from the manifest (SHA-256)" in why and "it was brought there twice: look at that disk" in why
    for number in range(2):
        assert not list(two.shelf(number).glob(f"*/*/{delivery.sha256}*"))


def test_a_node_that_is_lost_in_the_middle_goes_on_by_chunk(two: Machines, chunks: Chunks, tmp_path: Path) -> None:
    """The other node has all of it; the one that comes back is sent what it lacks."""
    manifest = weights(tmp_path / "source", 300)
    lost = two.nodes[1]
    delivery = ray_delivery.Delivery(tmp_path / "source", manifest, shelves(two))

    def kill(number: int, piece: bytes) -> bytes:
        if number == 12:
            for process in two.processes(lost):
                process.kill()
        return piece

    chunks.each = kill
    places = delivery.bring()
    assert list(places) == [two.nodes[0].node_id] and list(delivery.failed) == [lost.node_id]
    assert same(places[two.nodes[0].node_id], tmp_path / "source", manifest)
    assert chunks.num == num_chunks(manifest)
    raylet = lost.all_processes["raylet"][0].process.pid
    wait_until(lambda: not psutil.pid_exists(raylet) or psutil.Process(raylet).status() == psutil.STATUS_ZOMBIE)
    two.remove(lost)
    back = two.add(two.directory / "home-1")
    chunks.num, chunks.each = 0, lambda number, piece: piece
    delivery = ray_delivery.Delivery(tmp_path / "source", manifest, shelves(two))
    places = delivery.bring()
    assert same(places[back.node_id], tmp_path / "source", manifest) and len(places) == 2
    assert 0 < chunks.num <= num_chunks(manifest) - 12 + ray_delivery.NUM_FLYING + 2
