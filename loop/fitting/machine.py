"""What this machine has: the memory of its GPUs, its main memory within the limits of a container, and its disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from loop.system.gpus import device_names, total_bytes

# One for version 2 of control groups and one for version 1, from inside a container.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# Dense bfloat16 operations and bytes of memory a second, by the vendor's data sheets; the first name that fits counts.
RATES = {
    "B200": (2.25e15, 8.0e12), "H200": (9.9e14, 4.8e12), "H100 PCIe": (7.6e14, 2.0e12), "H100": (9.9e14, 3.35e12),
    "A100": (3.12e14, 2.0e12), "L40S": (3.62e14, 8.6e11), "L4": (1.21e14, 3.0e11), "A10": (1.25e14, 6.0e11),
    "RTX 4090": (1.65e14, 1.0e12), "RTX 3090": (7.1e13, 9.4e11), "RTX 5090": (2.1e14, 1.8e12),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of each visible GPU, of main memory and free on the disk of the run; `gpu` is what the first one is called."""

    gpus: tuple[int, ...]
    memory: int
    disk_free: int
    cores: int = 1
    gpu: str = ""

    @property
    def rates(self) -> tuple[float, float] | None:
        """Operations and bytes a second of a GPU; None for one that is not in RATES."""
        return next((rates for name, rates in RATES.items() if name in self.gpu), None)


def this_machine(run_dir: Path, device: str) -> Machine:
    """As a run in `run_dir` with this `engine.device` would find it. "cpu" has no GPUs."""
    gpus = tuple(total_bytes().values()) if device != "cpu" else ()
    place = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = device_names() if gpus else [""]
    return Machine(gpus, main_memory(), shutil.disk_usage(place).free, cores, names[0] if names else "")


def main_memory() -> int:
    """The memory of this machine in bytes, or less where a control group allows less."""
    total = int(psutil.virtual_memory().total)
    for path in LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # there is no such group, or its limit is "max"
            continue
    return total
