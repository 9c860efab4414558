"""How soon a loss is seen, and how soon nothing is left of what was lost: `python bench/cluster_losses.py [--only KIND ...]`.

Two fake engines sample on two nodes of a Ray cluster on this machine, as in the tests. One of each kind is lost in the middle, by
`kill -9` or, for the silent node, by SIGSTOP. Seen: the pool's note names the loss, or its call ends. Gone: no worker lives any
more on the node that was lost; of the hub and the head, on any node. What was stopped is not gone before it wakes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from loop.config.machine import Cluster
from loop.errors import EngineError
from loop.workers.cluster import Hub
from tests.support.clusters import Machines, lives, machines
from tests.support.on_nodes import (
    Engines,
    engines_of,
    kill_actor,
    kill_engine,
    kill_guard,
    kill_node,
    kill_raylet,
    stop_node,
)  # fmt: skip
from tests.support.waiting import wait_until
from tests.support.workers import PARAMS, requests

SLOW = {"LOOP_FAKE_STEP_S": "0.05"}
BEFORE = 100  # completions that are there when the loss comes
ON_A_NODE: dict[str, Callable[[Machines, Any], None]] = {
    "engine": kill_engine, "guard": kill_guard, "actor": kill_actor, "raylet": kill_raylet, "node": kill_node, "silent": stop_node,
}  # fmt: skip
KINDS = [*ON_A_NODE, "hub", "head"]


def lose(kind: str, two: Machines, hub: Hub) -> list[psutil.Process]:
    """Do it; the workers that must be gone then, of those that are not stopped."""
    node = two.nodes[0]
    if kind in ON_A_NODE:
        its = engines_of(two, node)
        ON_A_NODE[kind](two, node)
        return its if kind != "silent" else []
    its = [each for each_node in two.nodes for each in engines_of(two, each_node)]
    if kind == "hub":
        hub.process.kill()
    else:
        for name in ("gcs_server", "raylet"):
            two.ray.head_node.all_processes[name][0].process.kill()
    return its


def gone_after(its: list[psutil.Process], began: float) -> float:
    wait_until(lambda: not [each for each in its if lives(each)])
    return time.monotonic() - began


def measure(kind: str, directory: Path) -> tuple[float, float | None]:
    """Seconds until a loss is seen, and until its workers are gone."""
    with contextmanager(machines)(directory, 2) as two, ThreadPoolExecutor(1) as thread:
        cluster = Cluster(address=two.address, dir="~/shelf", insecure=True)
        with closing(Hub(cluster, directory / "hub.log")) as hub:
            engines = Engines(hub, directory, **SLOW)
            began, num, gone = 0.0, 0, None
            try:
                for batch in engines.pool.generate(requests(10**5), PARAMS):
                    num += len(batch)
                    if not began and num >= BEFORE:
                        began = time.monotonic()
                        if its := lose(kind, two, hub):
                            gone = thread.submit(gone_after, its, began)
                    if engines.notes:
                        break
            except EngineError as error:
                engines.notes.append(str(error))
            seen_s = time.monotonic() - began
            print(f"{kind}: {engines.notes[0][:160]}", file=sys.stderr)
            gone_s = gone.result() if gone else None
            for process in (each for node in two.nodes for each in two.processes(node)):
                if lives(process) and process.status() == psutil.STATUS_STOPPED:
                    process.resume()
            engines.pool.close()
    return seen_s, gone_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    asked = parser.parse_args()
    print("| lost | seen after | its workers gone after |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for kind in asked.only:
            seen_s, gone_s = measure(kind, Path(directory) / kind)
            print(f"| {kind} | {seen_s:.1f} s | {'-' if gone_s is None else f'{gone_s:.1f} s'} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
