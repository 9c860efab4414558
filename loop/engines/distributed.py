"""A fine-tune by several processes of one group, started by torchrun. Runs only inside a worker.

`train_in_group` starts the group and waits; `loop.engines.distributed_rank` is one process of it. They talk through
small files in a scratch directory, which cannot hang. Whatever is started descends from the worker's guard and inherits its
token, so it ends with the worker. Nothing here ends a group that stands still: the worker's stall watch does, and is told
for which process the others wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from loop.engines.base import Progress, Tell, TrainingResult
from loop.engines.distributed_launch import DIED
from loop.engines.slate import Slate, error_of, left_by
from loop.engines.trl_trainer import Job
from loop.errors import EngineError, LeftTraining

POLL_S = 0.2
QUIET_S = 5.0  # without a step, before it is looked whether a process is waited for


def train_in_group(
    job: Job, device: torch.device, scratch: Path, progress: Progress, note: Tell, waits: Tell
) -> TrainingResult:
    """Run `train` in `num_training_processes` processes on this machine. It raises what the first of them said.

    Where machines meet, each has that many, and all are one group.
    """
    (scratch / "job.json").write_text(job.model_dump_json())
    group = _Group(job, device, scratch)
    returncode = group.run(progress, note, waits)
    for left in group.left:
        if text := left.read()[1]:
            raise LeftTraining(text)
    result, why = scratch / "result.json", group.why_it_ended()
    if result.exists():  # the weights are written
        if why or returncode:
            print(f"the losses on held-out rows are not measured: {why or 'the group was ended'}", file=sys.stderr)
        return TrainingResult.model_validate_json(result.read_text())
    raise EngineError(
        why
        or "a training process was ended from outside (out of memory?) and the others with it; lower "
        "training.micro_batch_size, or see the worker's log"
    )


class _Group:
    """The processes of a fine-tune, and what they write on their slates."""

    def __init__(self, job: Job, device: torch.device, scratch: Path) -> None:
        self.engine, self.meeting, self.device, self.scratch = job.engine, job.meeting, device, scratch
        self.progress, self.note = Slate(scratch / "progress"), Slate(scratch / "note")
        num = self.engine.num_training_processes
        self.first, self.num_ranks = (
            (num * job.meeting.number, num * job.meeting.num_machines) if job.meeting else (0, num)
        )
        numbers = range(self.first, self.first + num)
        self.ranks = [Slate(scratch / f"rank-{number}") for number in numbers]
        self.errors, self.left = (
            [error_of(scratch, each) for each in numbers],
            [left_by(scratch, each) for each in numbers],
        )
        self.died = Slate(scratch / DIED)
        for slate in (self.progress, self.note, self.died, *self.ranks, *self.errors, *self.left):
            slate.clear()

    def run(self, progress: Progress, note: Tell, waits: Tell) -> int:
        """Start the group and pass on what it says until it has ended. Its exit code."""
        seen, noted, moved_at, waited_for = 0, 0, time.monotonic(), ""
        with subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, env=self._environment()) as process:
            try:
                while process.returncode is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_S)
                    number, text = self.progress.read()
                    if number > seen:
                        seen, moved_at = number, time.monotonic()
                        done, total = map(int, text.split())
                        progress(done, total)
                    number, text = self.note.read()
                    if number > noted:
                        noted = number
                        note(text)
                    who = self.waited_for() if time.monotonic() - moved_at >= QUIET_S else ""
                    if who != waited_for:
                        waited_for = who
                        waits(who)
            finally:
                process.terminate()  # torchrun ends its processes then; nothing happens where it has ended
        return process.returncode

    def why_it_ended(self) -> str | None:
        """What the first process said that failed. One that died could say nothing; what the others say follows from that."""
        died = self.died.read()[1]
        for rank, code in json.loads(died) if died else []:
            who = f"rank {rank} of {self.num_ranks} training processes"
            if code == -signal.SIGKILL:
                return f"{who} was killed (out of memory?); lower training.micro_batch_size, or see the worker's log"
            how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with exit code {code}"
            return f"{who} ended {how}; its last words are in the worker's log"
        said = [each for each in self.errors if each.read()[1]]
        return min(said, key=lambda each: each.file.stat().st_mtime_ns).read()[1] if said else None

    def _command(self) -> list[str]:
        command = [sys.executable, "-P", "-m", "loop.engines.distributed_launch", str(self.scratch)]
        command += ["--max-restarts=0", f"--nproc-per-node={len(self.ranks)}", *self._where()]
        return [*command, "-m", "loop.engines.distributed_rank", str(self.scratch)]

    def _where(self) -> list[str]:
        """Torchrun's arguments that say where the processes find each other."""
        if self.meeting is None:
            return ["--standalone"]
        places: dict[str, Any] = {"nnodes": self.meeting.num_machines, "node-rank": self.meeting.number}
        places |= {"master-addr": self.meeting.address, "master-port": self.meeting.port}
        return [f"--{name}={value}" for name, value in places.items()]

    def _environment(self) -> dict[str, str]:
        threads = self.engine.num_threads or max(1, len(os.sched_getaffinity(0)) // len(self.ranks))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if self.device.type == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""  # transformers would take a GPU where torch sees one
        if self.meeting and (interface := interface_of(self.meeting.own_address)):
            # Otherwise gloo takes the address that the machine's name stands for, which may be one of its own alone.
            environment = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} | environment
        return environment

    def waited_for(self) -> str:
        """Which process keeps the others, in words; empty where that is not plain.

        One that is stopped does; else those that have begun fewer collective operations than the others.
        """
        told = [tuple(map(int, text.split())) if text else (0, -1) for _, text in (each.read() for each in self.ranks)]
        counts = [count for _, count in told]
        late = [place for place, (pid, _) in enumerate(told) if pid and _is_stopped(pid)]
        late = late or [place for place, count in enumerate(counts) if count < max(counts)]
        if not late:
            return ""
        named = " and ".join(f"rank {self.first + place}" for place in late)
        return f"the others of {self.num_ranks} training processes wait for {named}"


def interface_of(address: str) -> str | None:
    """The network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return str(name)
    return None


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
