"""The process that a worker is: on this machine, or wherever another `Starter` puts it.

`loop.workers.worker` talks to it through two pipes and asks how it ended. Beside this one there is the process on a node of a
cluster (`loop.workers.cluster`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from loop.system import ourselves, trees
from loop.system.gpus import is_any_busy
from loop.workers.liveness import Used, used_by

MAX_LOG_BYTES = 16 << 20
OLD_LOG_BYTES = 4 << 20  # a log of this size is set aside when a worker starts
LOG_HEAD_BYTES, LOG_TAIL_BYTES = 1 << 20, 1 << 16  # what is kept of a log that is cut
# How often a thread of OpenMP looks for work before it sleeps; `python bench/busy.py` measures it (docs/engines.md).
SPIN_COUNT = "3000"
ELSEWHERE = "LOOP_WORKER_ELSEWHERE"  # in the environment of a worker on another machine than the daemon's


class Process(Protocol):
    """A process with two pipes that are read and written without a buffer. The rest is as of `subprocess.Popen`.

    `why`: in words, why it was lost, where more is known than an exit code.
    """

    stdin: Any
    stdout: Any

    @property
    def why(self) -> str: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def beats(self, message: Mapping[str, Any]) -> None:
        """Its heart has beaten."""

    def used(self) -> Used:
        """What all that it consists of has used by now."""

    def is_gpu_busy(self) -> bool:
        """Whether a GPU that it may use computes."""

    def end(self, token: str) -> list[int]:
        """End it and all that it has started, whose environment holds `token`. The pids that even SIGKILL does not end."""


class Starter(Protocol):
    """Starts a command with these variables in its environment, beside those that hold where it runs, and its log.

    OSError where that is not possible.
    """

    def __call__(self, command: Sequence[str], variables: Mapping[str, str], log: Path, has_gpu: bool) -> Process: ...


class LocalProcess(subprocess.Popen[bytes]):
    """A process on this machine, in a session of its own."""

    why = ""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path, has_gpu: bool) -> None:
        environment = ourselves.environment() | {trees.PARENT: str(os.getpid())} | dict(variables)
        self.devices = environment.get("CUDA_VISIBLE_DEVICES") if has_gpu else ""
        with log.open("ab") as stderr:
            super().__init__(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0,
                start_new_session=True, env=environment,
            )  # fmt: skip

    def beats(self, message: Mapping[str, Any]) -> None:
        """Nothing to note: what it uses can be seen from here."""

    def used(self) -> Used:
        return used_by(self.pid)

    def is_gpu_busy(self) -> bool:
        return is_any_busy(self.devices)

    def end(self, token: str) -> list[int]:
        trees.end_guard(self)
        return trees.sweep(token, self.pid)


def variables(token: str) -> dict[str, str]:
    """What every worker has in its environment, wherever it runs."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of nvidia-smi and of loop.system.gpus
        # torch that was asked for CUDA is of no use in a forked process. vLLM starts its engine in a process of its own:
        # by fork, unless this is set; and the question itself starts no CUDA, if the other is set before torch is imported.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # vLLM renames its processes, which without this deletes the environment that shows whose they are.
        "SPT_NOENV": "1",
        **({} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPIN_COUNT}),
        trees.TREE: token,
        "PYTHONUNBUFFERED": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def set_log_aside(log: Path) -> None:
    """Begin a new log where the old one is large; one old log is kept."""
    if log.exists() and log.stat().st_size > OLD_LOG_BYTES:
        log.replace(log.with_name(f"{log.stem}.old{log.suffix}"))


def cut_log(log: Path) -> None:
    """Keep the beginning and the end of a log that grew too large. The worker, which appends, writes on at the end."""
    with contextlib.suppress(OSError):  # a run does not stop because of a log
        if (size := log.stat().st_size) > MAX_LOG_BYTES:
            with log.open("r+b") as file:
                file.seek(size - LOG_TAIL_BYTES)
                tail = file.read(LOG_TAIL_BYTES)
                file.truncate(LOG_HEAD_BYTES)
            with log.open("ab") as file:
                file.write(b"\n[cut here: this log was larger than %d bytes]\n" % MAX_LOG_BYTES + tail)
