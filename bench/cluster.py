"""What Ray costs: `python bench/cluster.py [--requests N] [--turns T] [--streams S] [--mb M]`.

A Ray cluster of two nodes on this machine, as in the tests: every figure is one of processes that share its cores.

- tokens/s of two engines on the nodes beside the same two without Ray, in turns: a tiny Llama, whose completions cost nearly nothing, with
  20 tokens each, which is the worst case, and with 200; and SmolLM2-135M with 100;
- CPU time of the hub for a completion, for a stream in which nothing happens, and its memory, with so many streams of fake engines;
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

FAKE = settings(sampler="fake", trainer="fake", batch_size=1)
REAL = settings(batch_size=32)
STALL_S = 600.0


def nothing(*_: Any) -> None:
    """What a bench does with progress and notes."""


class Bench:
    """A cluster, and pools of engines on it and beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.variables: dict[str, str] = {}  # of workers
        self.machines = Machines(directory, 2)
        cluster = Cluster(address=self.machines.address, dir="~/shelf", insecure=True)
        self.hub = Hub(cluster, directory / "hub.log")
        self.nodes = self.hub.nodes()

    def worker(self, init: dict[str, Any], tag: str, config: EngineConfig, has_gpu: bool, **more: Any) -> Worker:
        how: dict[str, Any] = {"log_file": self.directory / f"{tag}.log", "stall_timeout_s": STALL_S, "tag": tag}
        return Worker(init | {"settings": config}, has_gpu=has_gpu, environment=self.variables, **how | more)

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


def drawn(pool: Pool, num: int, num_tokens_each: int) -> int:
    """Answer so many requests; how many tokens that gave."""
    return num_tokens(pool.generate(requests(num), SamplingParams(temperature=1.0, max_new_tokens=num_tokens_each)))


def overhead(bench: Bench, name: str, checkpoint: CheckpointRef, num: int, num_tokens_each: int, turns: int) -> None:
    """Two engines on two nodes beside two without Ray."""
    pools = {"Ray": bench.on_nodes(checkpoint, REAL, bench.nodes), "alone": bench.beside(checkpoint, REAL)}
    rates: dict[str, list[float]] = {engines: [] for engines in pools}
    for turn, engines in in_turns(pools, turns + 1):
        tokens, seconds = timed(partial(drawn, pools[engines], num, num_tokens_each))
        if turn:  # the first one warms up
            rates[engines].append(tokens / seconds)
    for pool in pools.values():
        pool.close()
    ratios = [ray / alone for ray, alone in zip(rates["Ray"], rates["alone"], strict=True)]
    without, over = (statistics.median(rates[engines]) for engines in ("alone", "Ray"))
    print(
        f"two engines, {name}, at most {num_tokens_each} tokens a completion: {without:,.0f} tokens/s without Ray, {over:,.0f} on "
        f"two nodes; ratio {statistics.median(ratios):.2f}, of the turns {min(ratios):.2f} to {max(ratios):.2f}",
        flush=True,
    )


def smollm2(directory: Path) -> CheckpointRef:
    from loop.engines.hf_models import convert_smollm2

    convert_smollm2(directory)
    return CheckpointRef(sha256="", path=directory)


def cpu_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def streams(bench: Bench, num: int, num_requests: int, step_s: float, idle_s: float) -> None:
    """What the hub takes with so many engines at once, each of which completes one request every `step_s`."""
    hub = psutil.Process(bench.hub.process.pid)
    before = hub.memory_info().rss
    bench.variables = {"LOOP_FAKE_STEP_S": str(step_s)}
    places = [bench.nodes[index % len(bench.nodes)] for index in range(num)]
    pool = bench.on_nodes(fake_model(bench.directory / "fake", sha256="fake"), FAKE, places)
    used = cpu_s(hub)
    time.sleep(idle_s)
    each_s = (cpu_s(hub) - used) / num / idle_s
    used, began = cpu_s(hub), time.monotonic()
    params = SamplingParams(temperature=1.0, max_new_tokens=20)
    total = sum(len(batch) for batch in pool.generate(requests(num_requests), params))
    used, seconds = cpu_s(hub) - used, time.monotonic() - began
    actors = [each for node in bench.machines.nodes for each in bench.machines.processes(node)]
    resident = [each.memory_info().rss for each in actors if "RemoteWorker" in " ".join(each.cmdline())]
    print(
        f"{num} streams of fake engines: {1000 * each_s:.2f} ms of the hub's CPU a second for each in which nothing happens;"
    )
    print(
        f"  {total:,} completions in {seconds:.1f} s: {1000 * (used / total - each_s * seconds * num / total):.2f} ms more for one"
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
    parser.add_argument("--requests", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--mb", type=int, default=300)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        try:
            tiny = CheckpointRef(
                sha256="", path=make_tiny_model(bench.directory / "tiny", trained=False)
            )  # it rarely ends
            overhead(bench, "a tiny Llama", tiny, asked.requests, 20, asked.turns)
            overhead(bench, "a tiny Llama", tiny, asked.requests // 2, 200, asked.turns)
            overhead(
                bench,
                "SmolLM2-135M",
                smollm2(bench.directory / "smollm2"),
                max(4, asked.requests // 64),
                100,
                asked.turns,
            )
            streams(bench, asked.streams, asked.streams * max(2, asked.requests // 64), 0.25, 5.0)
            delivery(bench, asked.mb)
        finally:
            bench.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
