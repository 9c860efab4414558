"""Two ways of a fine-tune over two nodes: the product's, which is torchrun's own rendezvous, and Ray Train's TorchTrainer.

`python bench/cluster_training.py [--turns T] [--steps S]`. Both run the same processes (`loop.engines.distributed_rank`) on a tiny model, on
a Ray cluster of two nodes on this machine: seconds from the call to its result, and what of it is not training.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import in_turns, timed
from loop.config.machine import Cluster
from loop.engines.base import CheckpointRef, TrainingResult
from loop.workers.cluster import Hub
from loop.workers.node_trainer import NodeTrainer
from loop.workers.worker import Worker
from tests.support.clusters import Machines
from tests.support.engines import many_rows, no_progress, settings, training, write_rows
from tests.support.tiny import make_tiny_model

ENGINE = settings(device="cpu", dtype="float32", num_training_processes=1)
STALL_S = 600.0


def of_rank(told: dict[str, Any]) -> None:
    """One process of the fine-tune, as Ray Train starts it. It joins a group of its own in place of Ray's."""
    import torch.distributed as dist

    from loop.engines.distributed_rank import run
    from loop.engines.trl_trainer import Job

    dist.destroy_process_group()
    os.environ |= {"MASTER_PORT": told["port"], "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run(Job.model_validate_json(told["job"]), Path(told["scratch"]))


class Bench:
    def __init__(self, directory: Path, steps: int) -> None:
        self.directory, self.count = directory, 0
        self.machines = Machines(directory, 2)
        self.hub = Hub(Cluster(address=self.machines.address, dir="~/shelf", insecure=True), directory / "hub.log")
        self.parent = CheckpointRef(sha256="", path=make_tiny_model(directory / "parent"))
        self.rows = write_rows(directory / "rows.jsonl", many_rows(30))
        self.recipe = training(batch_size=8, num_steps=steps)
        import ray

        ray.init(address=self.machines.address, log_to_driver=False, configure_logging=False)

    def place(self) -> Path:
        self.count += 1
        place = self.directory / f"out-{self.count}"
        (place / "out").mkdir(parents=True)
        return place

    def worker(self, init: dict[str, Any], tag: str, config: Any, has_gpu: bool, **more: Any) -> Worker:
        log = self.directory / f"{tag}.log"
        return Worker(init | {"settings": config}, log_file=log, stall_timeout_s=STALL_S, tag=tag, **more)

    def torchrun(self) -> TrainingResult:
        trainer = NodeTrainer(
            self.hub, self.hub.nodes(), ENGINE, self.worker, lambda: None, no_progress, print, lambda: False
        )
        return trainer.fit(self.rows, self.parent, self.recipe, self.place() / "out")

    def ray_train(self) -> TrainingResult:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from loop.engines.rows import write_rows as split
        from loop.engines.trl_trainer import Job

        place = self.place()
        rows, held_out = split(self.rows, self.recipe, place)
        job = Job(
            engine=ENGINE, rows=rows, held_out=held_out, parent=self.parent, settings=self.recipe, out_dir=place / "out"
        )
        with socket.socket() as free:
            free.bind(("", 0))
            port = str(free.getsockname()[1])
        TorchTrainer(
            of_rank,
            train_loop_config={"job": job.model_dump_json(), "scratch": str(place), "port": port},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=str(place / "storage")),
        ).fit()
        return TrainingResult.model_validate_json((place / "result.json").read_text())

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.hub.close()
        self.machines.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), asked.steps)
        try:
            ways = {"torchrun": bench.torchrun, "TorchTrainer": bench.ray_train}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            losses: dict[str, Any] = {}
            for _, name in in_turns(ways, asked.turns):
                result, took = timed(ways[name])
                seconds[name].append(took)
                losses[name] = result.losses
            ours, theirs = (statistics.median(seconds[name]) for name in ways)
            apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
            print(
                f"{asked.steps} steps of a tiny model on two nodes: {ours:.1f} s by torchrun, {theirs:.1f} s by TorchTrainer,"
            )
            print(f"  ratio {theirs / ours:.2f}; their losses differ by at most {apart:.1g}")
        finally:
            bench.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
