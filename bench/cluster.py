"""What Ray costs: `python bench/cluster.py [--requests N] [--turns T] [--streams S] [--mb M]`.

A Ray cluster of two nodes on this machine, as in the tests: every figure is one of processes that share its cores.

- tokens/s of two engines on the nodes beside the same two without Ray, in turns: a tiny Llama with 20 tokens a completion, which is the
  worst case, since a completion costs nearly nothing;
- CPU time of the hub for a completion, and its memory with so many streams of fake engines at once;
- MB/s of bringing a checkpoint of M megabytes to two nodes that share no path, proved.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from bench.measuring import in_turns, num_tokens, timed
from loop.config.machine import Cluster
from loop.engines.base import CheckpointRef, EngineConfig, SamplingParams
from loop.workers.cluster import Hub, Node
from loop.workers.nodes import Placement, pool_on_nodes
from loop.workers.pool import Pool
from loop.workers.worker import RemoteSampler, Worker
from tests.support.clusters import Machines
from tests.support.engines import settings
from tests.support.tiny import make_tiny_model
from tests.support.workers import fake_model, requests

PARAMS = SamplingParams(temperature=1.0, max_new_tokens=20)
FAKE = settings(sampler="fake", trainer="fake")
REAL = settings(batch_size=32)
STALL_S = 600.0


def nothing(*_: Any) -> None:
    """What a bench does with progress and notes."""


class Bench:
    """A cluster, and pools of engines on it and beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.machines = Machines(directory, 2)
        cluster = Cluster(address=self.machines.address, dir="~/shelf", insecure=True)
        self.hub = Hub(cluster, directory / "hub.log")
        self.nodes = self.hub.nodes()

    def worker(self, init: dict[str, Any], tag: str, config: EngineConfig, has_gpu: bool, **more: Any) -> Worker:
        how: dict[str, Any] = {"log_file": self.directory / f"{tag}.log", "stall_timeout_s": STALL_S, "tag": tag}
        return Worker(init | {"settings": config}, has_gpu=has_gpu, **how | more)

    def on_nodes(self, checkpoint: CheckpointRef, config: EngineConfig, places: list[Node]) -> Pool:
        placement = Placement(self.hub, config, self.nodes, places)
        return pool_on_nodes(placement, checkpoint, self.worker, progress=nothing, pulse=nothing, note=print)

    def beside(self, checkpoint: CheckpointRef, config: EngineConfig) -> Pool:
        def start(checkpoint: CheckpointRef, pulse: Any) -> RemoteSampler:
            init = {"op": "load_sampler", "checkpoint": checkpoint}
            return RemoteSampler(self.worker(init, "beside", config, False, progress=nothing, pulse=pulse))

        return Pool([start, start], checkpoint, progress=nothing, pulse=nothing, note=print)

    def close(self) -> None:
        self.hub.close()
        self.machines.close()


def drawn(pool: Pool, num: int) -> int:
    """Answer so many requests; how many tokens that gave."""
    return num_tokens(pool.generate(requests(num), PARAMS))


def overhead(bench: Bench, num: int, turns: int) -> None:
    """Two engines on two nodes beside two without Ray."""
    checkpoint = CheckpointRef(sha256="", path=make_tiny_model(bench.directory / "tiny"))
    pools = {"Ray": bench.on_nodes(checkpoint, REAL, bench.nodes), "alone": bench.beside(checkpoint, REAL)}
    rates: dict[str, list[float]] = {name: [] for name in pools}
    for turn, name in in_turns(pools, turns + 1):
        tokens, seconds = timed(partial(drawn, pools[name], num))
        if turn:  # the first one warms up
            rates[name].append(tokens / seconds)
    for pool in pools.values():
        pool.close()
    ratios = [ray / alone for ray, alone in zip(rates["Ray"], rates["alone"], strict=True)]
    print(
        f"two engines, tiny Llama, 20 tokens a completion: {statistics.median(rates['alone']):,.0f} tokens/s without Ray,"
    )
    print(
        f"  {statistics.median(rates['Ray']):,.0f} on two nodes; ratio {statistics.median(ratios):.2f} (wanted at least 0.97)"
    )


def streams(bench: Bench, num: int, num_requests: int) -> None:
    """What the hub takes with so many engines at once."""
    hub = psutil.Process(bench.hub.process.pid)
    before = hub.memory_info().rss
    places = [bench.nodes[index % len(bench.nodes)] for index in range(num)]
    pool = bench.on_nodes(fake_model(bench.directory / "fake", sha256="fake"), FAKE, places)
    used, began = sum(hub.cpu_times()[:2]), time.monotonic()
    total = sum(len(batch) for batch in pool.generate(requests(num_requests), PARAMS))
    cpu_s, seconds = sum(hub.cpu_times()[:2]) - used, time.monotonic() - began
    actors = [each for node in bench.machines.nodes for each in bench.machines.processes(node)]
    resident = [each.memory_info().rss for each in actors if "RemoteWorker" in " ".join(each.cmdline())]
    print(
        f"{num} streams of fake engines, {total:,} completions in {seconds:.1f} s: {1000 * cpu_s / total:.2f} ms of the hub's CPU for one"
    )
    print(
        f"  the hub: {before / 1e6:.0f} MB before, {(hub.memory_info().rss - before) / num / 1e6:.2f} MB more for each stream"
    )
    print(f"  an actor: {statistics.median(resident) / 1e6:.0f} MB beside its worker")
    pool.close()


def delivery(bench: Bench, megabytes: int) -> None:
    """A checkpoint for both nodes."""
    checkpoint = fake_model(bench.directory / "large", 0.25, sha256="large")
    with (checkpoint.path / "more.safetensors").open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(10**6))
    names, seconds = timed(lambda: bench.hub.deliver(checkpoint, bench.nodes))
    assert len(names) == len(bench.nodes), bench.hub.failed
    print(f"{megabytes} MB to two nodes, proved by SHA-256: {seconds:.1f} s, {2 * megabytes / seconds:.0f} MB/s in all")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--mb", type=int, default=300)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        try:
            overhead(bench, asked.requests, asked.turns)
            streams(bench, asked.streams, asked.requests * 4)
            delivery(bench, asked.mb)
        finally:
            bench.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
